"""What a site has for a run: counted by the worker, looked at by the policy and by the person who approves."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Offer:
    """What this site has for the run. Stays at the site."""

    patients: int
    declared_size: int
    cohort_id: str
    usable: int  # studies
    quarantined: dict[str, int]  # studies by error code
    tensors: dict[str, tuple[int, ...]]  # name -> shape, of the run's model; all are float32
    training: int  # of the patients, those who are held out neither for validation nor for testing

    @property
    def parameters(self) -> int:
        """Number of values in the run's model."""
        return sum(math.prod(shape) for shape in self.tensors.values())


__all__ = ["Offer"]
