"""Random numbers of an augmentation, one a crop, all from the generator passed in (a CPU generator)."""

import math

import torch
from torch import Tensor


def spread(count: int, limit: float, generator: torch.Generator) -> Tensor:
    """(N) uniform in [-limit, limit)."""
    return (2 * torch.rand(count, generator=generator) - 1) * limit


def between(count: int, limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    """(N) uniform in [low, high)."""
    return limits[0] + (limits[1] - limits[0]) * torch.rand(count, generator=generator)


def factor(count: int, limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    """(N) whose logarithm is uniform between the limits': twice as much is as likely as half as much."""
    low, high = map(math.log, limits)
    return between(count, (low, high), generator).exp()


def chosen(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(N) bool; where all are chosen nothing is drawn."""
    if probability >= 1:
        return torch.ones(count, dtype=torch.bool)
    return torch.rand(count, generator=generator) < probability


__all__ = ["between", "chosen", "factor", "spread"]
