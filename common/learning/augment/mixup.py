"""Mixup: two images laid over each other, answered for both labels (Zhang et al., ICLR 2018).

A crop becomes share * itself + (1 - share) * another crop of the step; the loss is share times that of its own label
and 1 - share times that of the other's, which for cross entropy is the loss of the mixed label. The share is drawn once
a step from Beta(alpha, alpha). It is for classification: voxels of two anatomies have no label. And it is for runs
without privacy: a mixed crop's gradient has two patients in it, and clipping bounds what one patient adds only where
each gradient is one patient's.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def mixed_loss(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    alpha: float,
    generator: torch.Generator,
) -> Tensor:
    """The loss of a step whose crops are mixed.

    Args:
        network: from crops (N, C, *spatial) to outputs.
        loss: of outputs and labels (N, *spatial), the mean over the crops.
        batch: crops and labels.
        alpha: of the distribution of shares, above 0; 1: all shares are alike, below: mostly near 0 and 1.
        generator: a CPU generator.
    """
    crops, labels = batch
    share = _share(alpha, generator)
    order = torch.randperm(len(crops), generator=generator).to(crops.device)
    outputs = network(torch.lerp(crops[order], crops, share))
    return share * loss(outputs, labels) + (1 - share) * loss(outputs, labels[order])


def _share(alpha: float, generator: torch.Generator) -> float:
    """From Beta(alpha, alpha), which torch draws from no generator of one's own."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


__all__ = ["mixed_loss"]
