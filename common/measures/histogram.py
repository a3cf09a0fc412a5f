"""Scores in bins: what sites can add up, and how exact the ranking measures are that follow from it.

A histogram counts negatives and positives in B bins of equal width over [0, 1]; those of patients and of sites add up,
so what follows from the sum of several sites' is, to the last bit, what follows from their patients pooled. Two scores
of one bin are as good as tied. AUROC counts a tie of a positive and a negative as one half, and the true order of such
a pair adds 0, 1/2 or 1: it is off by at most

    sum over bins of (positives x negatives) / 2, divided by all pairs of a positive and a negative.

Average precision is the mean, over the positives, of the precision at each one's score (no interpolation, as in
scikit-learn). With T positives and F negatives in the bins above, a bin of p and n gives its j-th positive at least
(T + j) / (T + F + n + j) and at most (T + p) / (T + F + p), which bounds it from both sides.

Sources: Hanley and McNeil, Radiology 1982 (AUROC as the share of pairs in order); Davis and Goadrich, ICML 2006 (why
precision-recall curves are not interpolated in straight lines).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError

Histogram = NDArray[np.int64]  # (2, B): row 0 negatives, row 1 positives; bin b holds scores from b/B to below (b+1)/B


@dataclass(frozen=True)
class Bounded:
    """A measure by bins: the exact one of the scores behind it lies in [low, high]."""

    value: float
    low: float
    high: float


def histogram(scores: ArrayLike, outcomes: ArrayLike, bins: int) -> Histogram:
    """Count scores.

    Args:
        scores: in [0, 1]; 1 belongs to the last bin.
        outcomes: of the same length, whether each is a positive.
        bins: B.

    Raises:
        ConfigError: a score is no number from 0 to 1.
    """
    values, positive = np.asarray(scores, np.float64).ravel(), np.asarray(outcomes, bool).ravel()
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ConfigError("scores must be from 0 to 1. Give the probabilities of the model.")
    places = np.minimum((values * bins).astype(np.int64), bins - 1) + bins * positive
    return np.bincount(places, minlength=2 * bins).reshape(2, bins)


def auroc(counts: Histogram) -> Bounded | None:
    """Share of pairs of a positive and a negative in order, ties half; None without both kinds."""
    negatives, positives = counts.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    if not pairs:
        return None
    tied = float((negatives * positives).sum() / 2)
    above = float((positives * (np.cumsum(negatives) - negatives)).sum())
    return Bounded(float((above + tied) / pairs), float(above / pairs), float((above + 2 * tied) / pairs))


def average_precision(counts: Histogram) -> Bounded | None:
    """Mean precision at the positives, each bin a tie; None without a positive."""
    from scipy.special import digamma  # noqa: PLC0415 - heavy

    negatives, positives = counts[:, ::-1].astype(np.float64)  # from the highest bin down
    all_positives = positives.sum()
    if not all_positives:
        return None
    there = positives > 0
    n, p = negatives[there], positives[there]
    t, f = np.cumsum(positives)[there] - p, np.cumsum(negatives)[there] - n
    value = (p * (t + p) / (t + p + f + n)).sum()
    high = (p * (t + p) / (t + p + f)).sum()
    # The sum over j of (T + j) / (T + c + j), c = F + n, is p - c (psi(T + c + p + 1) - psi(T + c + 1)).
    low = (p - (f + n) * (digamma(t + f + n + p + 1) - digamma(t + f + n + 1))).sum()
    return Bounded(float(value / all_positives), float(low / all_positives), float(high / all_positives))


def roc_curve(counts: Histogram) -> NDArray[np.float64]:
    """(B + 1, 2) false positive rate and sensitivity, from no case to all of them, the threshold falling."""
    negatives, positives = _from_above(counts)
    return np.column_stack([_shares(negatives), _shares(positives)])


def precision_recall_curve(counts: Histogram) -> NDArray[np.float64]:
    """(points, 2) recall and precision at each bin's lower edge, from the highest that holds a positive."""
    negatives, positives = _from_above(counts)
    some = positives > 0
    return np.column_stack([_shares(positives)[some], (positives[some] / (positives + negatives)[some])])


def _from_above(counts: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts at and above each lower edge, from none to all."""
    negatives, positives = np.cumsum(counts[:, ::-1], axis=1, dtype=np.float64)
    return np.insert(negatives, 0, 0.0), np.insert(positives, 0, 0.0)


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts / counts[-1] if counts[-1] else counts


__all__ = ["Bounded", "Histogram", "auroc", "average_precision", "histogram", "precision_recall_curve", "roc_curve"]
