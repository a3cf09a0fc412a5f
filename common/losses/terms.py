"""What losses are made of: arithmetic on tensors, each sample by itself. Imports torch: only where a loss is taken."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from common.labelmap import value_of

# Keeps 0/0 out of a sample without foreground: a ratio is then constant or pulls towards "nothing", never NaN.
_SMOOTH = 1e-5
# A base of a power, whose slope at 0 is infinite for exponents below 1.
_SMALLEST = 1e-7


class Voxels:
    """Logits and labels of a batch, as each term of a loss wants them; V voxels a sample, each of one class."""

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


class Overlapping:
    """The same where each of K classes is there or not, whatever the others are."""

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self.spatial = logits.shape[2:]
        self.logits = logits.flatten(2).float()  # (N, K, V)
        bits = torch.tensor([value_of(k, overlap=True) for k in range(1, 1 + logits.shape[1])], device=logits.device)
        self.present = ((labels.flatten(1).unsqueeze(1) & bits.view(1, -1, 1)) != 0).to(self.logits.dtype)

    @cached_property
    def claimed(self) -> Tensor:
        """(N, K, V) probabilities of the classes."""
        return self.logits.sigmoid()


def voxels_of(logits: Tensor, labels: Tensor, *, overlap: bool) -> Voxels | Overlapping:
    """A batch, whose classes may overlap or not; see `Loss.of_each`."""
    return Overlapping(logits, labels) if overlap else Voxels(logits, labels)


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


def cross_entropy(
    voxels: Voxels | Overlapping, class_weights: Sequence[float] | None = None, *, gamma: float = 0.0
) -> Tensor:
    """(N) mean over the voxels of -log p of the true class, times (1 - p)^gamma; with class weights, as torch's.

    A product with the one-hot truth instead of nll_loss: its backward is deterministic on CUDA too. Of classes that
    overlap the mean is over them too, p is the probability of "there" or "not there", and a weight counts "there".
    """
    if isinstance(voxels, Overlapping):
        return _binary_cross_entropy(voxels, class_weights, gamma)
    logs, truth = voxels.log_probabilities, voxels.truth
    if gamma:
        # Of p = 1 the power has no finite slope where gamma is below 1.
        logs = logs * (-torch.expm1(logs)).clamp(min=_SMALLEST).pow(gamma)
    if class_weights is None:
        return -(logs * truth).sum(1).mean(1)
    weighed = truth * truth.new_tensor(class_weights).view(1, -1, 1)
    return -(logs * weighed).sum((1, 2)) / weighed.sum((1, 2))


def _binary_cross_entropy(voxels: Overlapping, class_weights: Sequence[float] | None, gamma: float) -> Tensor:
    """(N) as torch's, whose pos_weight the class weights are."""
    there, away = (functional.logsigmoid(sign * voxels.logits) for sign in (1, -1))
    if gamma:
        there, away = (logs * (-torch.expm1(logs)).clamp(min=_SMALLEST).pow(gamma) for logs in (there, away))
    if class_weights is not None:
        there = there * there.new_tensor(class_weights).view(1, -1, 1)
    return -(voxels.present * there + (1 - voxels.present) * away).mean((1, 2))


def dice(voxels: Voxels | Overlapping) -> Tensor:
    """(N) 1 - soft Dice, mean over the classes, with plain sums in the denominator (Milletari et al., 3DV 2016)."""
    claimed, present = voxels.claimed, voxels.present
    overlap = (claimed * present).sum(2)
    ratio = (2 * overlap + _SMOOTH) / (claimed.sum(2) + present.sum(2) + _SMOOTH)
    return 1 - ratio.mean(1)


def tversky(voxels: Voxels | Overlapping, alpha: float, beta: float, gamma: float = 1.0) -> Tensor:
    """(N) 1 - hits / (hits + alpha false + beta missed), to the power gamma, mean over the classes."""
    claimed, present = voxels.claimed, voxels.present
    hits = (claimed * present).sum(2)
    false, missed = claimed.sum(2) - hits, present.sum(2) - hits
    lacking = 1 - (hits + _SMOOTH) / (hits + alpha * false + beta * missed + _SMOOTH)
    return lacking.mean(1) if gamma == 1 else lacking.clamp(min=_SMALLEST).pow(gamma).mean(1)


def cldice(voxels: Voxels | Overlapping, iterations: int) -> Tensor:
    """(N) 1 - soft clDice, mean over the classes."""
    from monai.losses.cldice import soft_skel  # noqa: PLC0415 - heavy

    shape = (*voxels.claimed.shape[:2], *voxels.spatial)
    claimed, present = voxels.claimed.reshape(shape), voxels.present.reshape(shape)
    drawn, true = (soft_skel(some, iterations).flatten(2) for some in (claimed, present))
    precision = ((drawn * voxels.present).sum(2) + 1) / (drawn.sum(2) + 1)
    sensitivity = ((true * voxels.claimed).sum(2) + 1) / (true.sum(2) + 1)
    return 1 - (2 * precision * sensitivity / (precision + sensitivity)).mean(1)


def skeleton_recall(voxels: Voxels | Overlapping, iterations: int) -> Tensor:
    """(N) part of each class's tube that is not claimed, mean over the classes."""
    from monai.losses.cldice import soft_skel  # noqa: PLC0415 - heavy

    shape = (*voxels.present.shape[:2], *voxels.spatial)
    truth = voxels.present.reshape(shape)
    widened = functional.max_pool2d if len(voxels.spatial) == 2 else functional.max_pool3d
    tube = (widened(soft_skel(truth, iterations), 5, stride=1, padding=2) * truth).flatten(2)
    claimed = (tube * voxels.claimed).sum(2)
    return 1 - ((claimed + _SMOOTH) / (tube.sum(2) + _SMOOTH)).mean(1)


__all__ = [
    "Overlapping",
    "Voxels",
    "cldice",
    "cross_entropy",
    "dice",
    "dice_ce",
    "skeleton_recall",
    "tversky",
    "voxels_of",
]
