"""A sample as its network sees it: at once or in overlapping windows, as in prediction, but with derivatives.

The answer for an image that is larger than `common.learning.inference.WHOLE` patches is a weighted mean of the answers
for its windows. So the number that is explained is a sum over the windows, each of which is looked at by itself: memory
holds one, and what the windows say of a voxel is added, or averaged with the same weights.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor, nn
from torch.nn import functional

from client.explain.method import Subject
from common.config import RunConfig
from common.learning.inference import OVERLAP, WHOLE, margins

_SIGMA = 0.125  # of a window's edge, as in MONAI's sliding window


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a padded sample. place: where. share: (*window) of each voxel's answer that comes from this window."""

    place: tuple[slice, ...]
    share: Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample, padded as the network takes it.

    image: (C, *padded) on the device. weights: (K, *padded), of the log-odds of the classes asked for in the number
    that is explained: 1 over the voxels of its region, elsewhere 0.
    """

    image: Tensor
    weights: Tensor
    windows: tuple[Window, ...]
    size: tuple[int, ...]
    lows: tuple[int, ...]

    def cropped(self, values: Tensor) -> Tensor:
        """(..., *padded) without what was added around the sample."""
        first = values.ndim - len(self.size)
        for axis, (low, size) in enumerate(zip(self.lows, self.size, strict=True), start=first):
            values = values.narrow(axis, low, size)
        return values

    def blended(self, parts: Sequence[Tensor]) -> Tensor:
        """What each window says of its voxels, (M, *window), as one (M, *sp) with the windows' shares."""
        return self.added([part * window.share for part, window in zip(parts, self.windows, strict=True)])

    def added(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum (M, *sp) of what belongs to each window's voxels, (M, *window)."""
        whole = parts[0].new_zeros((len(parts[0]), *self.image.shape[1:]))
        for part, window in zip(parts, self.windows, strict=True):
            whole[(slice(None), *window.place)] += part
        return self.cropped(whole)


def samples(subject: Subject) -> Iterator[Sample]:
    """The samples of a subject, one after the other."""
    for image, regions in zip(subject.samples, subject.regions, strict=True):
        yield _sample(image, regions, subject.run, subject.device)


def scores(network: nn.Module, images: Tensor, weights: Tensor, run: RunConfig, indices: Sequence[int]) -> Tensor:
    """A window's part of the numbers that are explained.

    Args:
        network: of the run.
        images: (N, C, *window).
        weights: (K, *window); see `Sample`. Of an answer for the image as a whole, of no meaning.
        run: the run.
        indices: of the K classes.

    Returns:
        (N, K).
    """
    odds = run.task.log_odds(network(images).float())[:, indices]
    return odds if odds.ndim == 2 else (odds * weights).flatten(2).sum(2)


@torch.no_grad()
def explained_numbers(subject: Subject) -> Tensor:
    """(S, K) what is explained, of the first network."""
    rows = []
    for sample in samples(subject):
        places = [(slice(None), *window.place) for window in sample.windows]
        parts = [
            scores(
                subject.networks[0],
                sample.image[place][None],
                sample.weights[place] * window.share,
                subject.run,
                subject.indices,
            )[0]
            for place, window in zip(places, sample.windows, strict=True)
        ]
        rows.append(torch.stack(parts).sum(0).cpu())
    return torch.stack(rows)


def _sample(image: Tensor, regions: Tensor, run: RunConfig, device: torch.device) -> Sample:
    around = margins(image.shape[1:], run)
    sides = [side for pair in reversed(around) for side in pair]
    padded = functional.pad(image.to(device), sides)
    chosen = regions | ~regions.flatten(1).any(1).view(-1, *[1] * (regions.ndim - 1))
    counts = chosen.flatten(1).sum(1).view(-1, *[1] * (regions.ndim - 1))
    weights = functional.pad((chosen / counts).to(device), sides)
    windows = tuple(_windows(padded.shape[1:], run, device))
    return Sample(padded, weights, windows, tuple(image.shape[1:]), tuple(low for low, _ in around))


def _windows(shape: Sequence[int], run: RunConfig, device: torch.device) -> Iterator[Window]:
    patch = run.training.patch_size
    if not run.task.DRAWS or math.prod(shape) <= WHOLE * math.prod(patch):
        yield Window(tuple(slice(0, edge) for edge in shape), torch.ones(tuple(shape), device=device))
        return
    steps = tuple(
        edge if edge == size else max(1, int(edge * (1 - OVERLAP))) for edge, size in zip(patch, shape, strict=True)
    )
    places = [tuple(place) for place in dense_patch_slices(shape, patch, steps)]
    share = compute_importance_map(tuple(patch), mode="gaussian", sigma_scale=_SIGMA, device=device)
    total = share.new_zeros(tuple(shape))
    for place in places:
        total[place] += share
    for place in places:
        yield Window(place, share / total[place])


__all__ = ["Sample", "Window", "explained_numbers", "samples", "scores"]
