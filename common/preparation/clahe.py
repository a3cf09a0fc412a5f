"""CLAHE: contrast made equal tile by tile, with a limit on what it may raise (Zuiderveld, Graphics Gems IV, 1994)."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.preparation.regions import by_plane, on_brightness
from common.preparation.step import Expected, Geometry, Place, Step, Voxels

_BINS = 256


class CLAHE(Step):
    """`tiles` along rows and columns of each slice; `clip-limit` is the share of a tile's voxels that one of 256 grey
    values may have at most. Of a colour picture the brightness changes and the colours stay.
    """

    kind: Literal["clahe"] = "clahe"
    clip_limit: Annotated[float, Field(gt=0, le=1)] = 0.01
    tiles: Annotated[int, Field(ge=1, le=64)] = 8
    PLACE: ClassVar[Place] = "scaled"

    def misfit(self, expected: Expected) -> str | None:
        """Intensities that are not on [0, 1]."""
        return None if expected.scaled else "needs intensities on [0, 1]: take another intensity than a zscore"

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Slice by slice; each keeps its darkest and its brightest value, so that a dark slice stays a dark one."""
        return replace(voxels, image=on_brightness(voxels.image, lambda value: by_plane(value, self._equalised)))

    def _equalised(self, plane: NDArray[np.float32]) -> NDArray[np.floating]:
        from skimage.exposure import equalize_adapthist  # noqa: PLC0415 - heavy

        low, high = float(plane.min()), float(plane.max())
        if not low < high:
            return plane
        tile = tuple(max(1, edge // self.tiles) for edge in plane.shape)
        found = equalize_adapthist(plane, kernel_size=tile, clip_limit=self.clip_limit, nbins=_BINS)
        return low + (high - low) * np.clip(np.asarray(found, np.float32), 0, 1)


__all__ = ["CLAHE"]
