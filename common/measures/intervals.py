"""How sure a figure is: the bootstrap by patient, and DeLong's variance of AUROC.

What is drawn again is the PATIENT, with all of their images: images of one patient resemble each other, and an interval
that draws images is too narrow. The interval is the percentile one (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993); of few patients it is too narrow, too, and of one there is none.

DeLong, DeLong and Clarke-Pearson (Biometrics 1988) give the variance of AUROC, and of the difference of two on the same
patients, from each case's share of pairs in order; by midranks as Sun and Xu (IEEE Signal Processing Letters 2014). It
takes cases for independent: one a patient. Where all pairs are in order it is 0 and tells nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure and the interval around it, None where nothing can be said of that."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Of two AUROC on the same cases: first minus second; p of no difference, two-sided."""

    value: float
    low: float | None
    high: float | None
    p: float | None


def bootstrap(
    patients: ArrayLike,
    statistic: Callable[[NDArray[Any]], float],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic over patients.

    Args:
        patients: (N, ...) a row for each patient, at least one.
        statistic: of such rows; NaN where it is not defined. Resamples without it do not count.
        rng: draws the patients.
        resamples: how often.
        level: of the interval.
    """
    return bootstrap_each(patients, lambda rows: [statistic(rows)], rng, resamples=resamples, level=level)[0]


def bootstrap_each(
    patients: ArrayLike,
    statistics: Callable[[NDArray[Any]], Sequence[float]],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> list[Interval]:
    """The same of several statistics at once, over the same draws; see `bootstrap`."""
    rows = np.asarray(patients)
    values = list(statistics(rows))
    if len(rows) < 2:
        return [Interval(float(value), None, None) for value in values]
    drawn = np.array([statistics(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(resamples)], np.float64)
    return [_interval(float(value), column, level) for value, column in zip(values, drawn.T, strict=True)]


def delong(scores: ArrayLike, outcomes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC of M sets of scores of the same cases, and their covariance.

    Args:
        scores: (M, N), higher means positive.
        outcomes: (N,) whether each case is a positive.

    Returns:
        (M,) and (M, M); the covariance is NaN where there are not two of each kind.

    Raises:
        ConfigError: there is no positive or no negative.
    """
    values, positive = np.atleast_2d(np.asarray(scores, np.float64)), np.asarray(outcomes, bool)
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        raise ConfigError("AUROC needs a positive and a negative case. Score patients of both kinds.")
    ours, theirs = values[:, positive], values[:, ~positive]
    # Share of the negatives below each positive, and of the positives above each negative; ties count half.
    of_positives = np.stack([_midranks(row) for row in np.hstack([ours, theirs])])
    v10 = (of_positives[:, :m] - np.stack([_midranks(row) for row in ours])) / n
    v01 = 1 - (of_positives[:, m:] - np.stack([_midranks(row) for row in theirs])) / m
    return v10.mean(axis=1), _covariance(v10) / m + _covariance(v01) / n


def auroc_interval(scores: ArrayLike, outcomes: ArrayLike, level: float = 0.95) -> Interval:
    """DeLong's normal interval of one AUROC, within [0, 1].

    Raises:
        ConfigError: there is no positive or no negative.
    """
    (value,), ((variance,),) = delong(scores, outcomes)
    if not variance > 0:
        return Interval(float(value), None, None)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return Interval(float(value), max(0.0, float(value - half)), min(1.0, float(value + half)))


def auroc_difference(first: ArrayLike, second: ArrayLike, outcomes: ArrayLike, level: float = 0.95) -> Difference:
    """Two AUROC on the same cases, by DeLong's test.

    Raises:
        ConfigError: there is no positive or no negative.
    """
    values, covariance = delong(np.stack([np.asarray(one, np.float64) for one in (first, second)]), outcomes)
    value = float(values[0] - values[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if not variance > 1e-15:  # the same order of cases: rounding alone is left
        return Difference(value, None, None, None)
    error = math.sqrt(variance)
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return Difference(value, value - half, value + half, 2 * (1 - NormalDist().cdf(abs(value) / error)))


def _interval(value: float, drawn: NDArray[np.float64], level: float) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size or math.isnan(value):
        return Interval(value, None, None)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2)[places]


def _covariance(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if rows.shape[1] < 2:
        return np.full((len(rows), len(rows)), math.nan)
    return np.atleast_2d(np.cov(rows))


__all__ = [
    "RESAMPLES",
    "Difference",
    "Interval",
    "auroc_difference",
    "auroc_interval",
    "bootstrap",
    "bootstrap_each",
    "delong",
]
