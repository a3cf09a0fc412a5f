"""Whether probabilities mean what they say: reliability, expected calibration error, Brier score.

Probabilities go into bins of equal width; in each the mean probability stands beside the share of positives, and the
expected calibration error is the mean of their distances, weighted by what lies in each bin (Naeini et al., AAAI 2015;
Guo et al., ICML 2017). Brier's score is the mean squared distance of probability and outcome (Monthly Weather Review
1950). The counts of bins add over patients and sites, and both follow from the sums.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError
from common.measures.histogram import Histogram

BINS = 15  # as in Guo et al.


@dataclass(frozen=True, eq=False)
class Reliability:
    """Sums by bin (B,): how many, of their probabilities, of positives; and of all squared distances. They add up."""

    count: NDArray[np.int64]
    probability: NDArray[np.float64]
    positive: NDArray[np.int64]
    squares: float

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.count + other.count,
            self.probability + other.probability,
            self.positive + other.positive,
            self.squares + other.squares,
        )


def reliability(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = BINS) -> Reliability:
    """Sums of probabilities in [0, 1], each with whether it was a positive; 1 belongs to the last bin.

    Raises:
        ConfigError: a probability is no number from 0 to 1.
    """
    values, positive = np.asarray(probabilities, np.float64).ravel(), np.asarray(outcomes, bool).ravel()
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ConfigError("probabilities must be from 0 to 1.")
    places = np.minimum((values * bins).astype(np.int64), bins - 1)
    return Reliability(
        np.bincount(places, minlength=bins),
        np.bincount(places, weights=values, minlength=bins).astype(np.float64),
        np.bincount(places[positive], minlength=bins),
        float(np.square(values - positive).sum()),
    )


def reliability_of(counts: Histogram, bins: int = BINS) -> Reliability:
    """The same from a histogram, whose bins are taken for their centres."""
    width = counts.shape[1]
    centres = (np.arange(width) + 0.5) / width
    places = np.minimum((centres * bins).astype(np.int64), bins - 1)
    negatives, positives = counts
    both = negatives + positives
    return Reliability(
        np.bincount(places, weights=both, minlength=bins).astype(np.int64),
        np.bincount(places, weights=both * centres, minlength=bins).astype(np.float64),
        np.bincount(places, weights=positives, minlength=bins).astype(np.int64),
        float((positives * np.square(1 - centres) + negatives * np.square(centres)).sum()),
    )


def curve(sums: Reliability) -> NDArray[np.float64]:
    """(bins that hold anything, 2) mean probability and share of positives."""
    some = sums.count > 0
    return np.column_stack([sums.probability[some], sums.positive[some]]) / sums.count[some, None]


def calibration_error(sums: Reliability) -> float | None:
    """Expected calibration error; None of nothing."""
    total = int(sums.count.sum())
    return float(np.abs(sums.probability - sums.positive).sum() / total) if total else None


def brier(sums: Reliability) -> float | None:
    """Brier's score; None of nothing."""
    total = int(sums.count.sum())
    return sums.squares / total if total else None


__all__ = ["BINS", "Reliability", "brier", "calibration_error", "curve", "reliability", "reliability_of"]
