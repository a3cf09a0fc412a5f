"""Counts of right and wrong answers."""

import torch
from torch import Tensor

from common.errors import ConfigError
from common.labelmap import marks


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
    _check(prediction, target, classes)
    width = classes + 1
    pairs = target.flatten().to(torch.int64) * width + prediction.flatten().to(torch.int64)
    return torch.bincount(pairs, minlength=width**2).reshape(width, width).cpu()


def crossed(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """Count voxels of classes that may overlap, each by itself; the tables of a patient's images add up.

    Args:
        prediction: (*spatial) integer labels, the sum of 2^(k - 1) over the classes k that are there.
        target: The same shape.
        classes: K.

    Returns:
        (K+1, 2, 2) int64 on the CPU: first of any class at all, then of each; row 1 where it is in truth, column 1
        where it is predicted.

    Raises:
        ConfigError: the shapes differ, or a label has another bit.
    """
    _check(prediction, target, 2**classes - 1)
    tables = [_table(target != 0, prediction != 0)]
    for number in range(1, classes + 1):
        tables.append(_table(*(marks(labels, number, overlap=True) for labels in (target, prediction))))
    return torch.stack(tables)


def _table(truth: Tensor, claimed: Tensor) -> Tensor:
    """(2, 2) int64 of two bool tensors."""
    return torch.bincount((2 * truth.long() + claimed.long()).flatten(), minlength=4).reshape(2, 2).cpu()


def _check(prediction: Tensor, target: Tensor, most: int) -> None:
    if prediction.shape != target.shape:
        raise ConfigError(
            f"the prediction has shape {tuple(prediction.shape)}, its truth {tuple(target.shape)}; they must be equal. "
            "Compare them on one grid."
        )
    for name, labels in (("prediction", prediction), ("truth", target)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= most:
            raise ConfigError(f"the {name} has labels outside 0..{most}. Map them to the classes of the run first.")


__all__ = ["confusion", "crossed"]
