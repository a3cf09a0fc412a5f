"""How far two surfaces lie apart: Hausdorff distance at the 95th percentile, average distance, surface Dice.

The surface of a mask are its voxels that have a face in common with a voxel outside; beyond the edge of the image is
outside. A distance goes from the centre of a surface voxel to the nearest centre on the other surface, by an exact
Euclidean distance transform with the voxels' own spacing. An axis of length 1 is none: a single slice has contours.

Where both masks are empty nothing lies apart: the distances are 0 and the surface Dice is 1, as 0/0 is of the Dice
(common/tasks/segmentation.py). Where one is empty, the distance is infinite and the surface Dice 0: a mean over
patients is then infinite, too, so that who shows one must say how many were left out of it.

Sources: Taha and Hanbury, BMC Medical Imaging 2015 (distances); Nikolov et al., JMIR 2021 (surface Dice; here each
surface voxel counts the same, as in MONAI); Maier-Hein et al., Nature Methods 2024 (empty masks).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError


@dataclass(frozen=True)
class SurfaceDistances:
    """What two surfaces amount to, in the unit of the spacing.

    hd95: the larger of the two directed 95th percentiles. total: of all distances, both ways. within: surface voxels
    whose distance is at most the tolerance. voxels: of both surfaces.
    """

    hd95: float
    total: float
    within: int
    voxels: int

    @property
    def average(self) -> float:
        """Average symmetric surface distance: over the voxels of both surfaces."""
        return self.total / self.voxels if self.voxels else 0.0

    @property
    def surface_dice(self) -> float:
        """Share of both surfaces that lies within the tolerance of the other."""
        return self.within / self.voxels if self.voxels else 1.0


def surface_distances(
    found: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> SurfaceDistances:
    """Compare the surfaces of two masks.

    Args:
        found: (*sp) of two or three axes.
        truth: the same shape.
        spacing: edge of a voxel along each axis, in mm; all 1 for distances in pixels.
        tolerance: of the surface Dice, in the same unit.

    Raises:
        ConfigError: the shapes differ, or an edge is not above 0.
    """
    if found.shape != truth.shape or len(spacing) != found.ndim:
        raise ConfigError(
            f"masks of shape {found.shape} and {truth.shape} with {len(spacing)} spacings cannot be compared. Give "
            "both on one grid, and a spacing for each axis."
        )
    if not all(math.isfinite(edge) and edge > 0 for edge in spacing):
        raise ConfigError(f"spacing is {list(spacing)}, must be above 0 along each axis. Correct the image's header.")
    wide = tuple(axis for axis, length in enumerate(found.shape) if length > 1) or (0,)
    flat = tuple(axis for axis in range(found.ndim) if axis not in wide)
    found, truth, spacing = found.squeeze(flat), truth.squeeze(flat), [spacing[axis] for axis in wide]
    if not (found.any() and truth.any()):
        voxels = int(_surface(found | truth).sum())
        return SurfaceDistances(math.inf, math.inf, 0, voxels) if voxels else SurfaceDistances(0.0, 0.0, 0, 0)
    box = _box(found | truth)
    one, other = _surface(found[box]), _surface(truth[box])
    ways = _distances(one, other, spacing), _distances(other, one, spacing)
    both = np.concatenate(ways)
    return SurfaceDistances(
        hd95=max(float(np.percentile(way, 95)) for way in ways),
        total=float(both.sum()),
        within=int((both <= tolerance).sum()),
        voxels=both.size,
    )


def of_patient(studies: Sequence[SurfaceDistances]) -> SurfaceDistances:
    """Of several studies of one patient: the largest Hausdorff distance, and all surfaces taken together."""
    return SurfaceDistances(
        max(one.hd95 for one in studies),
        math.fsum(one.total for one in studies),
        sum(one.within for one in studies),
        sum(one.voxels for one in studies),
    )


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_erosion  # noqa: PLC0415 - heavy

    surface: NDArray[np.bool_] = mask & ~binary_erosion(mask)
    return surface


def _distances(of: NDArray[np.bool_], to: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415 - heavy

    away: NDArray[np.float64] = distance_transform_edt(~to, sampling=spacing)
    return away[of]


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Of all that is set: both surfaces lie in it, so nothing beyond it changes a distance."""
    box = []
    for axis in range(mask.ndim):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(box)


__all__ = ["SurfaceDistances", "of_patient", "surface_distances"]
