"""How good a segmentation is, from the counts of its confusion matrix.

Every score is a ratio of voxel counts in [0, 1], higher is better. The unit is the patient: the matrices of all of a
patient's images are added before any ratio is taken, so that an archive of single slices scores as the volumes it was
cut from, and no slice that happens to be empty counts as a 1 or a 0. A site's scores are means over its patients.

Within a patient 0/0 is 1: where nothing was to be found or claimed, nothing was wrong. So a patient without a class
scores 1 for it when none is predicted; with any false voxel the Dice is 0. A class that NO patient of a site has is not
scored there: it would be 1 for a model that never predicts it, and says nothing of one that finds it.

Unqualified scores are means over the classes scored; specificity, which asks for no voxel of a class, is over all
classes; `foreground-dice` merges the classes into one. "Sensitivity" and "recall" are the same number under the names
of two readerships. Definitions: Taha and Hanbury, BMC Medical Imaging 2015.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from common.errors import ConfigError


def site_scores(patients: Sequence[Tensor], classes: Sequence[str], *, every_class: bool = False) -> dict[str, float]:
    """Mean scores over a site's patients.

    Args:
        patients: A (K+1, K+1) confusion matrix of each, over all of the patient's images.
        classes: Names of the classes 1..K.
        every_class: Also score a class that none of them has. Which names are there then tells nothing of the patients.

    Returns:
        dice, iou, sensitivity, precision, recall, specificity, foreground-dice, and dice-<class> for each class scored;
        where no patient has any class, specificity alone; of no patients, nothing.
    """
    present = {index for index in range(1, len(classes) + 1) if every_class or any(m[index].any() for m in patients)}
    return mean_scores([scores_of(matrix, classes, present) for matrix in patients])


def confusion(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count voxels by truth and prediction; the matrices of a patient's images add up to the patient's.

    Args:
        prediction: (*spatial) integer labels 0..K, 0 the background.
        target: The same shape.
        classes: K.

    Returns:
        (K+1, K+1) int64 on the CPU, row the truth, column the prediction.

    Raises:
        ConfigError: the shapes differ, or a label lies outside 0..K.
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


def scores_of(matrix: Tensor, classes: Sequence[str], present: Collection[int] | None = None) -> dict[str, float]:
    """The scores of a confusion matrix, see `site_scores`; present: the classes that are scored, None: all."""
    each = {index: _binary(*_counts(matrix, index)) for index in range(1, len(classes) + 1)}
    scored = {index: values for index, values in each.items() if present is None or index in present}
    found = mean_scores(list(scored.values()))
    found["specificity"] = mean_scores(list(each.values()))["specificity"]
    if not scored:
        return found
    hit, extra, missed, clear = (
        int(part.sum()) for part in (matrix[1:, 1:], matrix[:1, 1:], matrix[1:, :1], matrix[:1, :1])
    )
    found["foreground-dice"] = _binary(hit, extra, missed, clear)["dice"]
    return found | {f"dice-{classes[index - 1]}": values["dice"] for index, values in scored.items()}


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


__all__ = ["confusion", "mean_scores", "scores_of", "site_scores"]
