"""How well volumes agree: error of each patient, and the limits of agreement over patients.

Volumes in ml (1000 mm3); of pictures without spacing in pixels. The limits are Bland and Altman's (Lancet 1986): the
mean of the differences, found minus truth, and 1.96 of their standard deviations (n - 1) to both sides, between which
95 % of differences lie where they are normal. Their standard errors are that paper's: s / sqrt(n) of the mean,
s sqrt(3 / n) of a limit, with Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_Z = 1.96


@dataclass(frozen=True)
class Agreement:
    """Limits of agreement of n pairs; an interval is None where fewer than two pairs tell nothing of it."""

    n: int
    bias: float  # mean of found - truth
    deviation: float | None
    low: float | None
    high: float | None
    bias_interval: tuple[float, float] | None
    low_interval: tuple[float, float] | None
    high_interval: tuple[float, float] | None


def voxel_ml(spacing_mm: Sequence[float]) -> float:
    """Volume of a voxel in ml."""
    return math.prod(spacing_mm) / 1000


def relative_error(found: float, truth: float) -> float | None:
    """(found - truth) / truth; None where there is nothing to be found, and so no share of it."""
    return (found - truth) / truth if truth else None


def agreement(found: ArrayLike, truth: ArrayLike, level: float = 0.95) -> Agreement:
    """Bland and Altman's limits of at least one pair.

    Args:
        found: volume of each patient by the model.
        truth: by the label.
        level: of the intervals around mean and limits.
    """
    differences = np.asarray(found, np.float64) - np.asarray(truth, np.float64)
    n, bias = differences.size, float(differences.mean())
    if n < 2:
        return Agreement(n, bias, None, None, None, None, None, None)
    from scipy.stats import t  # noqa: PLC0415 - heavy

    deviation = float(differences.std(ddof=1))
    factor = float(t.ppf((1 + level) / 2, n - 1))
    low, high = bias - _Z * deviation, bias + _Z * deviation
    of_mean, of_limit = factor * deviation / math.sqrt(n), factor * deviation * math.sqrt(3 / n)
    intervals = [(at - half, at + half) for at, half in ((bias, of_mean), (low, of_limit), (high, of_limit))]
    return Agreement(n, bias, deviation, low, high, *intervals)


__all__ = ["Agreement", "agreement", "relative_error", "voxel_ml"]
