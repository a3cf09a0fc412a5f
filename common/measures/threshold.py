"""Where a probability becomes a yes: chosen on VALIDATION patients, then kept for the test.

A threshold that is chosen on the patients whose scores are told makes these too good. `chosen` sees the validation
patients' scores alone and gives one number; who scores test patients takes it as it is. A score at the threshold is a
yes. Of several that are equally good the highest is taken, so that fewer are called positive.

youden: the largest sensitivity + specificity - 1 (Youden, Cancer 1950). f1: the largest F1, which for voxels is Dice.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError
from common.measures.histogram import Histogram

Rule = Literal["youden", "f1"]


@dataclass(frozen=True)
class Threshold:
    """The threshold, and what the rule says of the validation patients at it."""

    value: float
    rule: Rule
    on_validation: float


def chosen(scores: ArrayLike, outcomes: ArrayLike, rule: Rule = "youden") -> Threshold:
    """The best of the scores themselves.

    Args:
        scores: (N,) of validation cases.
        outcomes: (N,) whether each is a positive.
        rule: what is best.

    Raises:
        ConfigError: the validation patients are not of both kinds.
    """
    values, positive = np.asarray(scores, np.float64), np.asarray(outcomes, bool)
    candidates, places = np.unique(values, return_inverse=True)
    counts = np.bincount(places + len(candidates) * positive, minlength=2 * len(candidates)).reshape(2, -1)
    return _best(candidates, counts, rule)


def chosen_by_bins(counts: Histogram, rule: Rule = "f1") -> Threshold:
    """The best of the bins' lower edges.

    Raises:
        ConfigError: the validation patients are not of both kinds.
    """
    return _best(np.arange(counts.shape[1]) / counts.shape[1], counts, rule)


def _best(candidates: NDArray[np.float64], counts: NDArray[np.int64], rule: Rule) -> Threshold:
    """Of candidates ascending, with the negatives and positives from each up to the next."""
    negatives, positives = counts.sum(axis=1)
    if not negatives or not positives:
        raise ConfigError(
            "a threshold is chosen on validation patients with and without the class, and these are of one kind. Give "
            "more validation patients, or take the threshold as it is."
        )
    false, hit = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1].astype(np.float64)
    worth = hit / positives - false / negatives if rule == "youden" else 2 * hit / (positives + hit + false)
    best = int(np.flatnonzero(np.isclose(worth, worth.max(), rtol=0, atol=1e-12))[-1])
    return Threshold(float(candidates[best]), rule, float(worth[best]))


__all__ = ["Rule", "Threshold", "chosen", "chosen_by_bins"]
