"""Median filter: each voxel becomes the median of its neighbours. Takes single wrong voxels, and keeps edges."""

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from common.errors import DataError, ErrorCode
from common.preparation.regions import along_axes
from common.preparation.step import Geometry, Place, Step, Voxels

# Voxels of a window; with so many a million voxels take three quarters of a minute.
_MOST = 1000


class Median(Step):
    """Of a window of `radius` voxels to each side of a row, along the other axes as many mm; edges are repeated."""

    kind: Literal["median"] = "median"
    radius: Annotated[int, Field(ge=1, le=10)] = 1
    # Along z too.
    volume: bool = False
    PLACE: ClassVar[Place] = "acquired"

    def refuse(self, before: Geometry) -> DataError | None:
        """A window so large that one study would take hours."""
        window = self._window(before)
        if (count := math.prod(window)) <= _MOST:
            return None
        return DataError(
            f"the median would be of {' x '.join(map(str, window))} = {count} voxels, for each voxel of this study; at "
            f"most {_MOST} are taken. Take the study out, or train with a smaller radius.",
            ErrorCode.UNSUPPORTED,
        )

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Each channel by itself."""
        from scipy import ndimage  # noqa: PLC0415 - heavy

        window = self._window(before)
        filtered = [ndimage.median_filter(channel, window, mode="nearest") for channel in voxels.image]
        return replace(voxels, image=np.stack(filtered))

    def _window(self, before: Geometry) -> tuple[int, ...]:
        return tuple(2 * round(far) + 1 for far in along_axes(self.radius, before, volume=self.volume))


__all__ = ["Median"]
