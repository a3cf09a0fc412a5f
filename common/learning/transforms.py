"""Training crops: cut a window, then change it in ways that keep its label true.

Convention: a stack is images (S, C, *spatial) with labels (S, *spatial), S slices in 2D and 1 in 3D; the last two axes
are the image plane (y, x). All randomness comes from the generator passed in, so a round can be repeated. Outside the
image is 0 with label 0, as in the network's own padding, unless the run fills it with what is nearest.

With rotation and scaling alone, as by default, a window is cut wider than the patch by what they need, so that a
rotated crop shows real tissue and not a black corner; then one affine resampling serves the whole batch (bilinear for
images, nearest for labels). Whatever else a run asks for is drawn and resampled crop by crop, straight from the study:
see `common.learning.augment`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from common.config import AugmentationConfig, TrainingConfig
from common.labelmap import MOST_OVERLAPPING, marks
from common.learning.augment import intensity, spatial
from common.learning.augment.draws import chosen, spread

# More candidates per study than this change nothing but memory; an even stride through them keeps the choice uniform.
_MAX_FOREGROUND = 2**16


@dataclass(frozen=True, eq=False)
class Stack:
    """What crops are cut from: one study, and where it has foreground."""

    images: Tensor  # (S, C, *spatial) float32
    labels: Tensor  # (S, *spatial) integer, as `common.labelmap` has it
    # (F) int64 each, flat indices into labels, none empty: of the whole foreground, or of each class that is there.
    foreground: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        images: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        *,
        by_class: bool = False,
        overlap: bool = False,
    ) -> Self:
        """Index the foreground of a study, or each of its classes; index: some of its voxels alone; overlap: whether
        classes may overlap.
        """
        if index is None:
            index = labels.flatten().nonzero().squeeze(1)
        parts = [index]
        if by_class:
            numbers = labels.flatten()[index]
            there = range(1, 1 + MOST_OVERLAPPING) if overlap else torch.unique(numbers).tolist()
            parts = [index[marks(numbers, number, overlap=overlap)] for number in there]
        return cls(images, labels, tuple(map(_thinned, filter(len, parts))))


def sample_crops(
    stacks: Sequence[Stack],
    training: TrainingConfig,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Draw one augmented crop from each stack.

    With probability `foreground-fraction` a crop lies around a foreground voxel drawn uniformly, of a class drawn
    uniformly where a stack is indexed by class; it falls anywhere within the crop's central half. Otherwise, and
    where there is no foreground, a crop lies anywhere in a slice drawn uniformly.

    Args:
        stacks: N stacks, the same one as often as wanted.
        training: Patch size, foreground fraction and augmentation.
        generator: A CPU generator, the only source of randomness.
        device: Where to augment; the crops stay there.

    Returns:
        (N, C, *patch) float32 and (N, *patch) int64.
    """
    config = training.augmentation
    places = [_draw_place(stack, training, generator) for stack in stacks]
    if spatial.is_asked(config):
        images, labels = _warp(stacks, places, training, generator, device)
    else:
        images, labels = _cut_and_turn(stacks, places, training, generator, device)
    if config.flips:
        _flip(images, labels, generator)
    if config.intensity:
        images = _change_intensity(images, config, generator)
    return intensity.change(images, config, generator), labels.long()


def _draw_place(stack: Stack, training: TrainingConfig, generator: torch.Generator) -> tuple[int, list[int]]:
    """Which item, and where its patch begins."""
    spatial_, patch = stack.labels.shape[1:], training.patch_size
    if float(torch.rand((), generator=generator)) < training.foreground_fraction and len(stack.foreground):
        classes = stack.foreground
        foreground = classes[_integer(len(classes), generator)] if len(classes) > 1 else classes[0]
        voxel = foreground[_integer(len(foreground), generator)]
        item, *centre = (int(part) for part in torch.unravel_index(voxel, stack.labels.shape))
        starts = [at - edge // 4 - _integer(edge // 2 + 1, generator) for at, edge in zip(centre, patch, strict=True)]
    else:
        item = _integer(len(stack.labels), generator)
        starts = [_integer(max(size - edge, 0) + 1, generator) for size, edge in zip(spatial_, patch, strict=True)]
    return item, [_inside(start, size, edge) for start, size, edge in zip(starts, spatial_, patch, strict=True)]


def _cut_and_turn(
    stacks: Sequence[Stack],
    places: Sequence[tuple[int, list[int]]],
    training: TrainingConfig,
    generator: torch.Generator,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Windows, turned and zoomed to patches (N, C, *patch) in one resampling; zoom is the same along all axes."""
    config, patch, window = training.augmentation, training.patch_size, _window_size(training)
    images, labels = [], []
    for stack, (item, starts) in zip(stacks, places, strict=True):
        origin = [start - (wide - edge) // 2 for start, edge, wide in zip(starts, patch, window, strict=True)]
        images.append(_cut(stack.images[item], origin, window))
        labels.append(_cut(stack.labels[item], origin, window))
    crops, masks = torch.stack(images).to(device), torch.stack(labels).to(device)
    if config.rotation_degrees or config.scaling:
        return _resample(crops, masks, _affine(len(crops), len(patch), config, generator), patch)
    return crops, masks


def _warp(
    stacks: Sequence[Stack],
    places: Sequence[tuple[int, list[int]]],
    training: TrainingConfig,
    generator: torch.Generator,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Patches (N, C, *patch), each from its study by a warp of its own; as it is, where nothing moves it."""
    config, patch = training.augmentation, training.patch_size
    warps = spatial.draw(len(stacks), patch, config, generator)
    crops = []
    for stack, (item, starts), warp in zip(stacks, places, warps, strict=True):
        image, label = stack.images[item], stack.labels[item]
        if warp.moves:
            middle = [start + (edge - 1) / 2 for start, edge in zip(starts, patch, strict=True)]
            moved = spatial.resampled(image, label, middle, warp, patch, fill=config.fill, device=device)
        elif config.fill == "nearest":
            moved = spatial.nearest(image, starts, patch), spatial.nearest(label, starts, patch)
        else:
            moved = _cut(image, starts, patch), _cut(label, starts, patch)
        crops.append(moved)
    images, labels = (torch.stack([part.to(device) for part in parts]) for parts in zip(*crops, strict=True))
    return images, labels


def _affine(count: int, dims: int, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """(N, dims, dims): from an offset in the patch to the offset in the window, in voxels from the centres."""
    angle = torch.deg2rad(spread(count, config.rotation_degrees, generator))
    zoom = 1 + spread(count, config.scaling, generator)
    matrices = torch.eye(dims).repeat(count, 1, 1)
    matrices[:, -2, -2] = matrices[:, -1, -1] = angle.cos()
    matrices[:, -1, -2] = angle.sin()
    matrices[:, -2, -1] = -angle.sin()
    return matrices / zoom.view(-1, 1, 1)


def _resample(images: Tensor, labels: Tensor, matrices: Tensor, patch: Sequence[int]) -> tuple[Tensor, Tensor]:
    count, dims = len(images), len(patch)
    window = images.shape[2:]
    # grid_sample's coordinates run over [-1, 1] between the outer voxel edges and are ordered (x, y, z).
    scale = torch.tensor(patch) / torch.tensor(window).unsqueeze(1)
    theta = torch.zeros(count, dims, dims + 1)
    theta[:, :, :dims] = (matrices * scale).flip(1, 2)
    grid = functional.affine_grid(theta.to(images.device), [count, 1, *patch], align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", align_corners=False)
    masks = labels.unsqueeze(1).to(images.dtype)
    return images, functional.grid_sample(masks, grid, mode="nearest", align_corners=False).squeeze(1)


def _flip(images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    """Flip each sample, in place, along a random set of its axes."""
    choices = torch.randint(2, (len(images), labels.ndim - 1), generator=generator).tolist()
    for image, label, flips in zip(images, labels, choices, strict=True):
        # Counted from the end, as an image has a channel axis before them and its label has not.
        axes = [axis - len(flips) for axis, flipped in enumerate(flips) if flipped]
        if axes:
            image.copy_(image.flip(axes))
            label.copy_(label.flip(axes))


def _change_intensity(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    shape = (-1, *[1] * (images.ndim - 1))
    changes = chosen(len(images), config.probability.intensity, generator)
    gain = 1 + spread(len(images), config.intensity, generator) * changes
    offset = spread(len(images), config.intensity, generator) * changes
    return images * gain.to(images.device).view(shape) + offset.to(images.device).view(shape)


def _window_size(training: TrainingConfig) -> list[int]:
    """The patch, widened to what the largest rotation and strongest zoom-out can reach, by an even number of voxels."""
    config = training.augmentation
    *depth, height, width = (float(edge) for edge in training.patch_size)
    reach = [*depth, _turned(height, width, config), _turned(width, height, config)]
    return [
        edge + 2 * math.ceil((need / (1 - config.scaling) - edge) / 2)
        for edge, need in zip(training.patch_size, reach, strict=True)
    ]


def _turned(along: float, across: float, config: AugmentationConfig) -> float:
    angle = min(math.radians(config.rotation_degrees), math.atan2(across, along))
    return along * math.cos(angle) + across * math.sin(angle)


def _thinned(index: Tensor) -> Tensor:
    thinning = max(1, math.ceil(len(index) / _MAX_FOREGROUND))
    return index[::thinning].clone()


def _inside(start: int, size: int, edge: int) -> int:
    """Move a patch into the image, or, where the image is smaller, the image into the patch's middle."""
    return (size - edge) // 2 if size < edge else min(max(start, 0), size - edge)


def _cut(array: Tensor, origin: Sequence[int], window: Sequence[int]) -> Tensor:
    """Cut the last axes of an array at `origin`; 0 where the window leaves it."""
    lead = array.ndim - len(window)
    padding: list[int] = []
    for axis, (start, edge) in enumerate(zip(origin, window, strict=True), start=lead):
        size = array.shape[axis]
        low, high = max(start, 0), min(start + edge, size)
        array = array.narrow(axis, low, high - low)
        padding = [low - start, start + edge - high, *padding]
    return functional.pad(array, padding) if any(padding) else array


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


__all__ = ["Stack", "sample_crops"]
