"""Pectoral muscle of a mediolateral-oblique mammogram: the bright corner between the upper edge and the chest wall.

It is as bright as a mass and no breast tissue. Its edge is taken for a straight line (Karssemeijer, Phys. Med. Biol.
1998), from the upper edge of the breast to the chest wall, the one across which brightness falls most, over all of its
length. Where no line is clear, as in a craniocaudal view, nothing is taken off. What is becomes the darkest value, and
counts in no statistic of what comes after.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.preparation.breast_region import breast, no_mammogram
from common.preparation.step import Expected, Geometry, Mask, Place, Step, Voxels, check_kept

# Rows that the breast is looked at with.
_ROWS = 256
# Where the line may meet the upper edge and the chest wall, as shares of the breast's width and height.
_ACROSS, _DOWN = (0.12, 1.0), (0.15, 1.0)
_LINES = 56
_POINTS = 96
# Points at each side of the line that are compared, in rows of _ROWS.
_APART = (2.0, 4.0, 6.0, 8.0)


class PectoralMuscle(Step):
    """`contrast` is the least fall of brightness across the line, as a share of the breast's range of brightness."""

    kind: Literal["pectoral-muscle"] = "pectoral-muscle"
    contrast: Annotated[float, Field(gt=0, lt=1)] = 0.05
    PLACE: ClassVar[Place] = "acquired"

    def misfit(self, expected: Expected) -> str | None:
        """What is no mammogram."""
        return no_mammogram(expected)

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Plane by plane. The label stays.

        Raises:
            DataError: LABEL_DOUBTFUL, what is labelled lies on the muscle.
        """
        grey = voxels.image[0]
        inside = np.ones(grey.shape, np.bool_) if voxels.inside is None else voxels.inside.copy()
        muscle = np.zeros(grey.shape, np.bool_)
        for place in np.ndindex(grey.shape[:-2]):
            seen = breast(grey[place]) if voxels.inside is None else inside[place]
            edge = muscle_edge(grey[place], seen)
            if edge is not None and edge.contrast >= self.contrast:
                muscle[place] = edge.corner(grey.shape[-2:])
        if voxels.label is not None:
            kept = voxels.label * ~muscle
            check_kept(voxels.label, kept, "pectoral-muscle", "take the step out", overlap=voxels.overlap)
        image = np.where(muscle, voxels.image.min(), voxels.image)
        return replace(voxels, image=image, inside=inside & ~muscle)


@dataclass(frozen=True)
class Edge:
    """A line from the upper edge of the breast to its chest wall, in voxels.

    top: row of the upper edge. wall: column of the chest wall. across, down: how far along each the line meets them.
    right: whether the wall is on the right. contrast: mean fall of brightness across it, as a share of the breast's.
    """

    top: int
    wall: int
    across: float
    down: float
    right: bool
    contrast: float

    def corner(self, shape: tuple[int, ...]) -> Mask:
        """(Y, X) between the line, the chest wall and the upper edge, and beyond those two."""
        rows, columns = np.mgrid[: shape[0], : shape[1]]
        inward = (self.wall - columns) if self.right else (columns - self.wall)
        corner: Mask = inward / self.across + (rows - self.top) / self.down < 1
        return corner


def muscle_edge(plane: NDArray[np.float32], seen: Mask) -> Edge | None:
    """The clearest edge of a muscle in (Y, X), of which `seen` is breast; None where that is too small for one."""
    from scipy import ndimage  # noqa: PLC0415 - heavy

    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if rows.size < 16 or columns.size < 16:
        return None
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    held = seen[part]
    strip = max(1, held.shape[1] // 20)
    right = bool(held[:, -strip:].sum() > held[:, :strip].sum())  # the chest wall is the longer side
    grey = plane[part][:, ::-1] if right else plane[part]
    held = held[:, ::-1] if right else held
    scale = _ROWS / grey.shape[0]
    small = ndimage.zoom(ndimage.gaussian_filter(grey, 0.5 / scale, mode="nearest"), scale, order=1, mode="nearest")
    there = ndimage.zoom(held.astype(np.uint8), scale, order=0, mode="nearest") > 0
    if min(small.shape) < 16 or not there.any():
        return None
    low, high = np.percentile(small[there], (5, 95))
    height, width = small.shape
    across, down = (edge * np.linspace(*ends, _LINES) for edge, ends in ((width, _ACROSS), (height, _DOWN)))
    fall = _falls((small - low) / max(float(high - low), 1e-6), there, across, down)
    best = np.unravel_index(int(fall.argmax()), fall.shape)
    wall = int(columns[-1] if right else columns[0])
    return Edge(
        int(rows[0]), wall, float(across[best[0]] / scale), float(down[best[1]] / scale), right, float(fall[best])
    )


def _falls(
    grey: NDArray[np.float64], there: Mask, across: NDArray[np.float64], down: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(A, D), how much darker it is behind the line from (0, across) to (down, 0) than before it; chest wall left."""
    from scipy import ndimage  # noqa: PLC0415 - heavy

    share = (np.arange(_POINTS) + 0.5) / _POINTS
    a, d = across[:, None, None], down[None, :, None]
    column, row = a * (1 - share), d * share
    length = np.hypot(a, d)
    outward = (a * d / length / d, a * d / length / a)  # unit normal (row, column), away from the corner
    drop, counted = np.zeros((_LINES, _LINES, _POINTS)), np.ones((_LINES, _LINES, _POINTS))
    for apart in _APART:
        places = [
            np.stack(np.broadcast_arrays(row + side * apart * outward[0], column + side * apart * outward[1]))
            for side in (-1, 1)
        ]
        inner, outer = (ndimage.map_coordinates(grey, of, order=1, mode="nearest") for of in places)
        drop += (inner - outer) / len(_APART)
        counted *= ndimage.map_coordinates(there.astype(np.float32), places[1], order=0, mode="constant")
    drop = np.where(counted > 0, drop, 0.0)
    seen = counted.mean(axis=-1)
    # A strong piece, such as the edge of dense tissue, may not stand for a line; most of it must fall.
    mean = np.clip(drop, -0.2, 0.2).mean(axis=-1)
    falling = ((drop > 0.005) & (counted > 0)).mean(axis=-1)
    steep = np.arctan2(across[:, None], down[None, :])  # from the vertical
    found: NDArray[np.float64] = np.where((seen > 0.7) & (np.abs(steep - 0.6) < 0.5), mean * falling, 0.0)
    return found


__all__ = ["Edge", "PectoralMuscle", "muscle_edge"]
