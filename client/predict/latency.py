"""How long a study takes: by volume and by slice, median and 95th percentile.

Times are of a model that is loaded and has run once: the first pass of a network costs more than the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Seconds:
    """Where the time of one study went."""

    reading: float
    network: float  # with resampling to its grid and back
    writing: float

    @property
    def all(self) -> float:
        """From the first file to the last."""
        return self.reading + self.network + self.writing


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one part of the work, over the studies."""

    part: str
    volume_median: float
    volume_95: float
    slice_median: float
    slice_95: float


class Timed(Protocol):
    """A study that was answered."""

    @property
    def slices(self) -> int:
        """A picture is one slice."""

    @property
    def seconds(self) -> Seconds:
        """Where the time went."""


def latency_of(studies: Sequence[Timed]) -> tuple[Latency, ...]:
    """Reading, network, writing and all of them; empty of no studies."""
    if not studies:
        return ()
    slices = np.array([study.slices for study in studies])
    rows = []
    for part in ("reading", "network", "writing", "all"):
        volumes = 1000 * np.array([getattr(study.seconds, part) for study in studies])
        figures = (float(np.percentile(of, q)) for of in (volumes, volumes / slices) for q in (50, 95))
        rows.append(Latency(part, *figures))
    return tuple(rows)


__all__ = ["Latency", "Seconds", "Timed", "latency_of"]
