"""Counts of right and wrong answers."""

import torch
from torch import Tensor

from common.errors import ConfigError


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


__all__ = ["confusion"]
