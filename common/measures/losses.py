"""Soft Dice plus cross entropy, sample by sample.

Convention: each sample's loss depends on that sample alone and the batch's loss is their mean; a Dice summed over
the batch would couple patients, which voids differential privacy. Dice is taken over the foreground classes
(Milletari et al., 3DV 2016, with plain sums in the denominator), cross entropy over all of them, both with weight 1
(Isensee et al., Nature Methods 2021).
"""

import torch
from torch import Tensor
from torch.nn import functional

# Keeps 0/0 out of a sample without foreground: Dice is then constant or pulls towards "nothing", never NaN.
_SMOOTH = 1e-5


def dice_ce(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the samples of (1 - soft Dice) + cross entropy.

    Args:
        logits: (N, K, *spatial), class 0 the background. Half precision is widened to float32 first.
        target: (N, *spatial) int64, classes 0..K-1.

    Returns:
        Scalar float32.
    """
    log_probabilities = functional.log_softmax(logits.float(), dim=1).flatten(2)
    labels = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1)
    truth = (target.flatten(1).unsqueeze(1) == labels).to(log_probabilities.dtype)
    # A product with the one-hot truth instead of nll_loss: its backward is deterministic on CUDA too.
    cross_entropy = -(log_probabilities * truth).sum(1).mean(1)
    probabilities, foreground = log_probabilities[:, 1:].exp(), truth[:, 1:]
    overlap = (probabilities * foreground).sum(2)
    dice = (2 * overlap + _SMOOTH) / (probabilities.sum(2) + foreground.sum(2) + _SMOOTH)
    return torch.mean(1 - dice.mean(1) + cross_entropy)


__all__ = ["dice_ce"]
