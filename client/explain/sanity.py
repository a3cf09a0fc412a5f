"""Whether a map depends on the model: the same is asked of a network with random weights (Adebayo et al., NeurIPS
2018).

The weights are the network's initial ones of another seed than the run's, which training never saw; image, class and
region stay. Two maps are compared by Spearman's rank correlation and by structural similarity (SSIM, Wang et al., IEEE
TIP 2004) of the maps scaled to their own range, sample by sample; both are means over the samples. A method that draws
edges whatever the model says has 1 in both. From `ALIKE` on, where the ranks share half of their variance, a person is
warned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import RunConfig
from common.learning.network import build_model

ALIKE = math.sqrt(0.5)

# So far from the run's seed that no sum of a run's seed and a site's or round's number comes there.
_APART = 2**31


@dataclass(frozen=True)
class Sanity:
    """How like the map of a random network is. None: one of the maps is flat, and nothing can be said."""

    spearman: float | None
    ssim: float | None

    @property
    def passed(self) -> bool:
        """Whether the map depends on the model."""
        return self.spearman is not None and abs(self.spearman) < ALIKE


def randomised(networks: Sequence[nn.Module], run: RunConfig, seed: int) -> list[nn.Module]:
    """As many networks of the run with fresh weights, in evaluation mode where the first one is."""
    device = next(networks[0].parameters()).device
    return [
        build_model(run.model_copy(update={"seed": _APART + seed + number})).to(device).eval()
        for number in range(len(networks))
    ]


def compared(trained: Tensor, random: Tensor) -> Sanity:
    """Compare maps of the same samples, (S, *sp) each."""
    ranks, likeness = [], []
    for one, other in zip(trained.numpy(), random.numpy(), strict=True):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            ranks.append(_spearman(one, other))
            likeness.append(_ssim(one, other))
    if not ranks:
        return Sanity(None, None)
    return Sanity(float(np.mean(ranks)), float(np.mean(likeness)))


def _spearman(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    from scipy.stats import spearmanr  # noqa: PLC0415 - heavy

    return float(spearmanr(one.ravel(), other.ravel()).statistic)


def _ssim(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    from skimage.metrics import structural_similarity  # noqa: PLC0415 - heavy

    edge = min(7, *one.shape)
    window = edge if edge % 2 else edge - 1
    if window < 3:  # an image too thin for windows is one window
        return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    scaled = _scaled(one), _scaled(other)
    return float(structural_similarity(*scaled, win_size=window, data_range=1.0))


def _scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = values.min(), values.max()
    return np.asarray((values - low) / (high - low))


__all__ = ["ALIKE", "Sanity", "compared", "randomised"]
