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
from common.learning.inference import OVERLAP, WHOLE, even_places, margins

_SIGMA = 0.125  # of a window's edge, as in MONAI's sliding window


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a padded sample.

    place: where. share: (*window) of each voxel's answer that comes from this window. weights: (K, *window) of the
    log-odds of the classes asked for in the number that is explained: they add up to 1 over all windows.
    """

    place: tuple[slice, ...]
    share: Tensor
    weights: Tensor

    def of(self, values: Tensor) -> Tensor:
        """(C, *padded) to (C, *window)."""
        return values[(slice(None), *self.place)]


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample, padded as the network takes it. image: (C, *padded) on the device."""

    image: Tensor
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


def scores(subject: Subject, network: nn.Module, window: Window, images: Tensor) -> Tensor:
    """A window's part of the numbers that are explained.

    Args:
        subject: whose classes are asked for.
        network: of the run.
        window: where.
        images: (N, C, *window), what the network shall see there.

    Returns:
        (N, K).
    """
    answered = network(images).float()
    if subject.run.task.DRAWS:
        odds = subject.run.task.log_odds(answered)[:, subject.indices]
        return (odds * window.weights).flatten(2).sum(2)
    return subject.run.task.log_odds(_whole(answered, window))[:, subject.indices] * window.weights[0].sum()


def answer(network: nn.Module, sample: Sample, run: RunConfig) -> Tensor:
    """What the network puts out for a sample, as prediction has it: (outputs, *sp), or (outputs) for the whole."""
    parts = [network(window.of(sample.image)[None]).float() for window in sample.windows]
    if run.task.DRAWS:
        return sample.blended([part[0] for part in parts])
    windows = zip(parts, sample.windows, strict=True)
    return torch.stack([_whole(part, window)[0] * window.weights[0].sum() for part, window in windows]).sum(0)


@torch.no_grad()
def explained_numbers(subject: Subject) -> Tensor:
    """(S, K) what is explained, of the first network."""
    network = subject.networks[0]
    rows = []
    for sample in samples(subject):
        parts = [scores(subject, network, window, window.of(sample.image)[None])[0] for window in sample.windows]
        rows.append(torch.stack(parts).sum(0).cpu())
    return torch.stack(rows)


def _whole(answered: Tensor, window: Window) -> Tensor:
    """(N, outputs, ...) to (N, outputs): of a network that answers each voxel the mean over those of the image."""
    if answered.ndim == 2:
        return answered
    share = window.weights[0] / window.weights[0].sum()
    return (answered * share).flatten(2).sum(2)


def _sample(image: Tensor, regions: Tensor, run: RunConfig, device: torch.device) -> Sample:
    around = margins(image.shape[1:], run)
    sides = [side for pair in reversed(around) for side in pair]
    padded = functional.pad(image.to(device), sides)
    chosen = regions | ~regions.flatten(1).any(1).view(-1, *[1] * (regions.ndim - 1))
    counts = chosen.flatten(1).sum(1).view(-1, *[1] * (regions.ndim - 1))
    weights = functional.pad((chosen / counts).to(device), sides)
    windows = tuple(_windows(padded.shape[1:], weights, run))
    return Sample(padded, windows, tuple(image.shape[1:]), tuple(low for low, _ in around))


def _windows(shape: Sequence[int], weights: Tensor, run: RunConfig) -> Iterator[Window]:
    """One as large as the image, or those that prediction has."""
    patch = run.training.patch_size
    if math.prod(shape) <= WHOLE * math.prod(patch):
        yield Window(tuple(slice(0, edge) for edge in shape), weights.new_ones(tuple(shape)), weights)
        return
    if run.model.DENSE:
        steps = tuple(
            edge if edge == size else max(1, int(edge * (1 - OVERLAP))) for edge, size in zip(patch, shape, strict=True)
        )
        places = [tuple(place) for place in dense_patch_slices(shape, patch, steps)]
        share = compute_importance_map(tuple(patch), mode="gaussian", sigma_scale=_SIGMA, device=weights.device)
    else:
        corners = even_places(shape, patch)
        places = [tuple(slice(start, start + edge) for start, edge in zip(one, patch, strict=True)) for one in corners]
        share = weights.new_ones(tuple(patch))
    total = share.new_zeros(tuple(shape))
    for place in places:
        total[place] += share
    for place in places:
        mine = share / total[place]
        alike = weights.new_full((len(weights), *patch), 1 / math.prod(patch) / len(places))
        yield Window(place, mine, weights[(slice(None), *place)] * mine if run.model.DENSE else alike)


__all__ = ["Sample", "Window", "answer", "explained_numbers", "samples", "scores"]
