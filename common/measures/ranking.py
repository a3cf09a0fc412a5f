"""How well scores rank what has a property above what has not: AUROC and average precision, exact, with ties.

AUROC is the chance that one drawn from those with the property scores higher than one drawn from those without, a tie
counting one half (Hanley and McNeil, Radiology 1982). Average precision is the area under the precision-recall steps,
without interpolation: each score is a threshold, and equal scores pass it together (Davis and Goadrich, ICML 2006).
"""

import torch
from torch import Tensor


def auroc(scores: Tensor, truth: Tensor) -> float | None:
    """The area under the ROC curve.

    Args:
        scores: (N) finite; higher means the property is likelier.
        truth: (N) bool.

    Returns:
        In [0, 1]; None where all, or none, have the property.
    """
    positive = int(truth.sum())
    negative = len(truth) - positive
    if not positive or not negative:
        return None
    # Mann and Whitney: the sum of ranks, equal scores sharing the mean of theirs.
    _, place, times = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    ranks = times.cumsum(0) - (times - 1) / 2
    above = float(ranks[place][truth].sum()) - positive * (positive + 1) / 2
    return above / (positive * negative)


def average_precision(scores: Tensor, truth: Tensor) -> float | None:
    """The area under the precision-recall steps; see `auroc`."""
    positive = int(truth.sum())
    if not positive or positive == len(truth):
        return None
    levels, place = torch.unique(scores.double(), return_inverse=True)
    zeros = torch.zeros(len(levels), dtype=torch.float64)
    hits = zeros.index_add(0, place, truth.double()).flip(0)  # the highest score first
    shown = zeros.index_add(0, place, torch.ones(len(truth), dtype=torch.float64)).flip(0)
    return float((hits * hits.cumsum(0) / shown.cumsum(0)).sum()) / positive


__all__ = ["auroc", "average_precision"]
