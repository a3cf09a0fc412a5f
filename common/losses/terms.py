"""What losses are made of: arithmetic on tensors, each sample by itself. Imports torch: only where a loss is taken."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

# Keeps 0/0 out of a sample without foreground: a ratio is then constant or pulls towards "nothing", never NaN.
_SMOOTH = 1e-5
# A base of a power, whose slope at 0 is infinite for exponents below 1.
_SMALLEST = 1e-7


class Voxels:
    """Logits and labels of a batch, as each term of a loss wants them; V voxels a sample."""

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self.spatial = logits.shape[2:]
        # (N, 1 + K, V) float32, and 1 where the label is that class.
        self.log_probabilities = functional.log_softmax(logits.float(), dim=1).flatten(2)
        numbers = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1)
        self.truth = (labels.flatten(1).unsqueeze(1) == numbers).to(self.log_probabilities.dtype)

    @cached_property
    def claimed(self) -> Tensor:
        """(N, K, V) probabilities of the classes."""
        return self.log_probabilities[:, 1:].exp()

    @property
    def present(self) -> Tensor:
        """(N, K, V) the classes' truth."""
        return self.truth[:, 1:]


def dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the samples of soft Dice plus cross entropy: what a run trains with that says nothing else.

    Args:
        logits: (N, 1 + K, *spatial), class 0 the background. Half precision is widened to float32 first.
        labels: (N, *spatial) int64, 0..K.

    Returns:
        Scalar float32.
    """
    voxels = Voxels(logits, labels)
    return torch.mean(dice(voxels) + cross_entropy(voxels))


def cross_entropy(voxels: Voxels, class_weights: Sequence[float] | None = None, *, gamma: float = 0.0) -> Tensor:
    """(N) mean over the voxels of -log p of the true class, times (1 - p)^gamma; with class weights, as torch's.

    A product with the one-hot truth instead of nll_loss: its backward is deterministic on CUDA too.
    """
    logs, truth = voxels.log_probabilities, voxels.truth
    if gamma:
        # Of p = 1 the power has no finite slope where gamma is below 1.
        logs = logs * (-torch.expm1(logs)).clamp(min=_SMALLEST).pow(gamma)
    if class_weights is None:
        return -(logs * truth).sum(1).mean(1)
    weighed = truth * truth.new_tensor(class_weights).view(1, -1, 1)
    return -(logs * weighed).sum((1, 2)) / weighed.sum((1, 2))


def dice(voxels: Voxels) -> Tensor:
    """(N) 1 - soft Dice, mean over the classes, with plain sums in the denominator (Milletari et al., 3DV 2016)."""
    claimed, present = voxels.claimed, voxels.present
    overlap = (claimed * present).sum(2)
    ratio = (2 * overlap + _SMOOTH) / (claimed.sum(2) + present.sum(2) + _SMOOTH)
    return 1 - ratio.mean(1)


def tversky(voxels: Voxels, alpha: float, beta: float, gamma: float = 1.0) -> Tensor:
    """(N) 1 - hits / (hits + alpha false + beta missed), to the power gamma, mean over the classes."""
    claimed, present = voxels.claimed, voxels.present
    hits = (claimed * present).sum(2)
    false, missed = claimed.sum(2) - hits, present.sum(2) - hits
    lacking = 1 - (hits + _SMOOTH) / (hits + alpha * false + beta * missed + _SMOOTH)
    return lacking.mean(1) if gamma == 1 else lacking.clamp(min=_SMALLEST).pow(gamma).mean(1)


def cldice(voxels: Voxels, iterations: int) -> Tensor:
    """(N) 1 - soft clDice, mean over the classes."""
    from monai.losses.cldice import soft_skel  # noqa: PLC0415 - heavy

    shape = (*voxels.claimed.shape[:2], *voxels.spatial)
    claimed, present = voxels.claimed.reshape(shape), voxels.present.reshape(shape)
    drawn, true = (soft_skel(some, iterations).flatten(2) for some in (claimed, present))
    precision = ((drawn * voxels.present).sum(2) + 1) / (drawn.sum(2) + 1)
    sensitivity = ((true * voxels.claimed).sum(2) + 1) / (true.sum(2) + 1)
    return 1 - (2 * precision * sensitivity / (precision + sensitivity)).mean(1)


def skeleton_recall(voxels: Voxels, iterations: int) -> Tensor:
    """(N) part of each class's tube that is not claimed, mean over the classes."""
    from monai.losses.cldice import soft_skel  # noqa: PLC0415 - heavy

    shape = (*voxels.present.shape[:2], *voxels.spatial)
    truth = voxels.present.reshape(shape)
    widened = functional.max_pool2d if len(voxels.spatial) == 2 else functional.max_pool3d
    tube = (widened(soft_skel(truth, iterations), 5, stride=1, padding=2) * truth).flatten(2)
    claimed = (tube * voxels.claimed).sum(2)
    return 1 - ((claimed + _SMOOTH) / (tube.sum(2) + _SMOOTH)).mean(1)


__all__ = ["Voxels", "cldice", "cross_entropy", "dice", "dice_ce", "skeleton_recall", "tversky"]
