"""What a site has for a run: counted by the worker, looked at by the policy and by the person who approves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from common.errors import ErrorCode

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]  # of a part's tensors, by name; all are float32

# The part of requests, updates and offers that an earlier version wrote down, which had one and named none.
ONLY_PART = "weights"


@dataclass(frozen=True)
class Offer:
    """What this site has for the run. Stays at the site."""

    patients: int
    declared_size: int
    cohort_id: str
    usable: int  # studies
    quarantined: dict[str, int]  # studies by error code
    parts: dict[str, Shapes]  # what leaves with an update, by the part's name
    training: int  # of the patients, those who are held out neither for validation nor for testing

    @property
    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of all tensors, of one part after the other."""
        return [(name, shape) for part in self.parts.values() for name, shape in part.items()]

    @property
    def parameters(self) -> int:
        """Number of values in all parts together."""
        return sum(math.prod(shape) for _, shape in self.tensors)


def offer_from_json(values: Mapping[str, Any]) -> Offer:
    """An offer from what `dataclasses.asdict` made of it, this version's or an earlier one's.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is none.
    """
    parts = values["parts"] if "parts" in values else {ONLY_PART: values["tensors"]}
    return Offer(
        patients=int(values["patients"]),
        training=int(values["training"]),
        declared_size=int(values["declared_size"]),
        cohort_id=str(values["cohort_id"]),
        usable=int(values["usable"]),
        quarantined={str(ErrorCode(code)): int(count) for code, count in values["quarantined"].items()},
        parts={
            str(part): {str(name): tuple(map(int, shape)) for name, shape in tensors.items()}
            for part, tensors in parts.items()
        },
    )


__all__ = ["ONLY_PART", "Offer", "Shapes", "offer_from_json"]
