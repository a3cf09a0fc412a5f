"""Where the voxels of a crop come from: rotation, tilt, zoom, shear, shift and elastic deformation, in one resampling.

Convention: axes are (y, x) or (z, y, x), the last two the image plane; lengths are voxels. A crop's voxel at offset o
from its middle shows what lies at middle + M o + shift + u(o) in the study, M being the inverse of a zoom, a shear in
the image plane and the rotations. Images are interpolated linearly, labels take what is nearest. Only the part of the
study that is asked for is looked at, so a crop costs its own voxels and not the study's.

u is a uniform cubic B-spline whose control points lie a quarter of an edge apart. It folds nothing as long as no point
moves by more than 0.48 (2D) or 0.40 (3D) of that distance (Choi and Lee, Graphical Models 62, 2000).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.config import AugmentationConfig
from common.learning.augment.draws import chosen, factor, spread

# nnU-Net's rule: crops that are longer than this by their shortest edge come from slices that lie far apart.
_FLAT = 3
_INTERVALS = 4  # of an edge, between control points
_POINTS = _INTERVALS + 3


@dataclass(frozen=True, eq=False)
class Warp:
    """Of one crop."""

    matrix: Tensor  # (dims, dims)
    shift: Tensor  # (dims)
    points: Tensor | None  # (dims, _POINTS, ...) moves of the control points

    @property
    def moves(self) -> bool:
        """Whether it is more than a piece of the study as it is."""
        identity = torch.eye(len(self.shift))
        return self.points is not None or bool(self.shift.any()) or not torch.equal(self.matrix, identity)


def is_asked(config: AugmentationConfig) -> bool:
    """Whether there is anything that the one resampling of a batch, by rotation and scaling, does not do."""
    odds = config.probability
    some = config.tilt_degrees or config.shift or config.shear or config.elastic
    return bool(some) or config.zoom is not None or config.fill != "zero" or odds.rotation < 1 or odds.scaling < 1


def draw(count: int, patch: Sequence[int], config: AugmentationConfig, generator: torch.Generator) -> list[Warp]:
    """What becomes of each of so many crops; what is not asked for draws nothing."""
    dims, odds = len(patch), config.probability
    matrices = _rotations(count, patch, config, generator)
    if config.shear:
        slant = spread(count, config.shear, generator) * chosen(count, odds.shear, generator)
        shears = torch.eye(dims).repeat(count, 1, 1)
        shears[:, -1, -2] = slant
        matrices = matrices @ shears
    if config.zoom is not None or config.scaling:
        zoom = (
            1 + spread(count, config.scaling, generator)
            if config.zoom is None
            else factor(count, config.zoom, generator)
        )
        is_zoomed = chosen(count, odds.scaling, generator)
        matrices = matrices / torch.where(is_zoomed, zoom, 1.0).view(-1, 1, 1)
    shifts = torch.zeros(count, dims)
    if config.shift:
        drawn = spread(count * dims, config.shift, generator).view(count, dims) * torch.tensor(
            [float(edge) for edge in patch]
        )
        shifts = drawn * chosen(count, odds.shift, generator).unsqueeze(1)
    points: list[Tensor | None] = [None] * count
    if config.elastic:
        is_bent = chosen(count, odds.elastic, generator).tolist()
        points = [_points(patch, config.elastic, generator) if bent else None for bent in is_bent]
    return [Warp(*parts) for parts in zip(matrices, shifts, points, strict=True)]


def resampled(
    image: Tensor,
    label: Tensor,
    middle: Sequence[float],
    warp: Warp,
    patch: Sequence[int],
    *,
    fill: str,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """One crop.

    Args:
        image: (C, *spatial) of a study.
        label: (*spatial) integer.
        middle: of the crop in the study, in voxels from the middle of the first one.
        warp: of the crop.
        patch: its size.
        fill: what lies outside the study: "zero", or what is "nearest".
        device: where to compute.

    Returns:
        (C, *patch) float32 and (*patch) of the label's type.
    """
    places = _places(middle, warp, patch, device)
    lows, sizes = [], []
    for low, high, size in zip(
        places.flatten(1).amin(1).tolist(), places.flatten(1).amax(1).tolist(), label.shape, strict=True
    ):
        # One voxel more than is asked for, since coordinates are rounded; at least one where all lies outside.
        first = min(max(math.floor(low) - 1, 0), size - 1)
        lows.append(first)
        sizes.append(max(min(math.ceil(high) + 2, size), first + 1) - first)
    for axis, (low, size) in enumerate(zip(lows, sizes, strict=True)):
        image, label = image.narrow(axis + 1, low, size), label.narrow(axis, low, size)
    image, label = image.to(device), label.to(device)
    # grid_sample's coordinates run over [-1, 1] between the outer voxel edges and are ordered (x, y, z).
    grid = torch.stack(
        [(2 * (at - low) + 1) / size - 1 for at, low, size in zip(places, lows, sizes, strict=True)][::-1], -1
    )
    outside = "border" if fill == "nearest" else "zeros"
    moved = functional.grid_sample(image[None], grid[None], "bilinear", outside, align_corners=False)
    mask = label[None, None].to(image.dtype)
    moved_mask = functional.grid_sample(mask, grid[None], "nearest", outside, align_corners=False)
    return moved[0], moved_mask[0, 0].to(label.dtype)


def nearest(array: Tensor, starts: Sequence[int], patch: Sequence[int]) -> Tensor:
    """A piece of the last axes of an array as it is; beyond its edge lies what is nearest."""
    lead = array.ndim - len(patch)
    for axis, (start, edge) in enumerate(zip(starts, patch, strict=True), start=lead):
        places = torch.arange(start, start + edge, device=array.device).clamp(0, array.shape[axis] - 1)
        array = array.index_select(axis, places)
    return array


def _places(middle: Sequence[float], warp: Warp, patch: Sequence[int], device: torch.device | str) -> Tensor:
    """(dims, *patch) where each voxel of a crop lies in the study."""
    dims = len(patch)
    offsets = [
        (torch.arange(edge, dtype=torch.float32, device=device) - (edge - 1) / 2).view(
            [-1 if axis == other else 1 for other in range(dims)]
        )
        for axis, edge in enumerate(patch)
    ]
    rows = []
    for start, row, shift in zip(middle, warp.matrix.tolist(), warp.shift.tolist(), strict=True):
        first, *rest = (offset * weight for offset, weight in zip(offsets, row, strict=True))
        rows.append(sum(rest, first + (start + shift)).expand(*patch))
    places = torch.stack(rows)
    return places if warp.points is None else places + _bent(warp.points.to(device), patch)


def _rotations(count: int, patch: Sequence[int], config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """(N, dims, dims)."""
    dims = len(patch)
    matrices = torch.eye(dims).repeat(count, 1, 1)
    planes = []
    if config.rotation_degrees:
        planes.append(((-2, -1), config.rotation_degrees))
    if dims == 3 and config.tilt_degrees and max(patch) <= _FLAT * min(patch):
        planes += [((-3, -1), config.tilt_degrees), ((-3, -2), config.tilt_degrees)]
    if not planes:
        return matrices
    is_turned = chosen(count, config.probability.rotation, generator)
    for (one, other), limit in planes:
        angle = torch.deg2rad(spread(count, limit, generator)) * is_turned
        turn = torch.eye(dims).repeat(count, 1, 1)
        turn[:, one, one] = turn[:, other, other] = angle.cos()
        turn[:, other, one] = angle.sin()
        turn[:, one, other] = -angle.sin()
        matrices = matrices @ turn
    return matrices


def _points(patch: Sequence[int], limit: float, generator: torch.Generator) -> Tensor:
    """(dims, _POINTS, ...) moves in voxels."""
    dims = len(patch)
    unit = 2 * torch.rand(dims, *(_POINTS,) * dims, generator=generator) - 1
    distances = torch.tensor([edge / _INTERVALS for edge in patch])
    return unit * limit * distances.view(-1, *[1] * dims)


def _bent(points: Tensor, patch: Sequence[int]) -> Tensor:
    """(dims, *patch) the spline at each voxel, axis by axis."""
    values = points
    for axis, edge in enumerate(patch, start=1):
        values = torch.tensordot(values, _basis(edge, points.device), dims=([axis], [1])).movedim(-1, axis)
    return values


def _basis(edge: int, device: torch.device) -> Tensor:
    """(edge, _POINTS) weights of the control points at the middle of each voxel; each row adds up to 1."""
    at = (torch.arange(edge, dtype=torch.float32, device=device) + 0.5) * (_INTERVALS / edge) + 1
    distance = (at.unsqueeze(1) - torch.arange(_POINTS, device=device)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


__all__ = ["Warp", "draw", "is_asked", "nearest", "resampled"]
