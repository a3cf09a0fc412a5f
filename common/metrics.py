"""How good a segmentation is, from the counts of its confusion matrix.

Conventions. Every score is a ratio of voxel counts in [0, 1], higher is better, and 0/0 is 1: where nothing was to be
found or claimed, nothing was wrong. So an empty mask predicted empty scores 1 everywhere; with any false voxel its Dice
is 0. Unqualified scores are means over the foreground classes; `foreground-dice` merges the classes into one.
"Sensitivity" and "recall" are the same number under the names of two readerships. Definitions: Taha and Hanbury,
BMC Medical Imaging 2015.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.errors import ConfigError


def scores(prediction: Tensor, target: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Compare one study's labels with the truth.

    Args:
        prediction: (*spatial) integer labels 0..K, 0 the background.
        target: The same shape.
        classes: Names of the classes 1..K.

    Returns:
        dice, iou, sensitivity, specificity, precision, recall, foreground-dice, and dice-<class> for each class.

    Raises:
        ConfigError: the shapes differ, or a label lies outside 0..K.
    """
    return scores_of(confusion(prediction, target, len(classes)), classes)


def confusion(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count voxels by truth and prediction; the matrices of a study's parts add up to the study's.

    Returns:
        (K+1, K+1) int64 on the CPU, row the truth, column the prediction.
    """
    if prediction.shape != target.shape:
        raise ConfigError(
            f"the prediction has shape {tuple(prediction.shape)}, its truth {tuple(target.shape)}; they must be equal. "
            "Compare them on one grid."
        )
    width = classes + 1
    for name, labels in (("prediction", prediction), ("truth", target)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= classes:
            raise ConfigError(f"the {name} has labels outside 0..{classes}. Map them to the classes of the run first.")
    pairs = target.flatten().to(torch.int64) * width + prediction.flatten().to(torch.int64)
    return torch.bincount(pairs, minlength=width**2).reshape(width, width).cpu()


def scores_of(matrix: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """The scores of a confusion matrix; see `scores`."""
    each = [_binary(*_counts(matrix, index)) for index in range(1, len(classes) + 1)]
    mean = mean_scores(each)
    hit, extra, missed, clear = (
        int(part.sum()) for part in (matrix[1:, 1:], matrix[:1, 1:], matrix[1:, :1], matrix[:1, :1])
    )
    merged = _binary(hit, extra, missed, clear)["dice"]
    by_class = {f"dice-{name}": values["dice"] for name, values in zip(classes, each, strict=True)}
    return mean | {"foreground-dice": merged} | by_class


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over rows that all have the same ones; of no rows, no scores."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def _counts(matrix: Tensor, index: int) -> tuple[int, int, int, int]:
    hit = int(matrix[index, index])
    extra = int(matrix[:, index].sum()) - hit
    missed = int(matrix[index].sum()) - hit
    return hit, extra, missed, int(matrix.sum()) - hit - extra - missed


def _binary(hit: int, extra: int, missed: int, clear: int) -> dict[str, float]:
    return {
        "dice": _ratio(2 * hit, 2 * hit + extra + missed),
        "iou": _ratio(hit, hit + extra + missed),
        "sensitivity": _ratio(hit, hit + missed),
        "specificity": _ratio(clear, clear + extra),
        "precision": _ratio(hit, hit + extra),
        "recall": _ratio(hit, hit + missed),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


__all__ = ["confusion", "mean_scores", "scores", "scores_of"]
