"""Median filter: each voxel becomes the median of its neighbours. Takes single wrong voxels, and keeps edges."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from common.preparation.regions import along_axes
from common.preparation.step import Geometry, Place, Step, Voxels


class Median(Step):
    """Of a window of `radius` voxels to each side of a row, along the other axes as many mm; edges are repeated."""

    kind: Literal["median"] = "median"
    radius: Annotated[int, Field(ge=1, le=10)] = 1
    # Along z too.
    volume: bool = False
    PLACE: ClassVar[Place] = "acquired"

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Each channel by itself."""
        from scipy import ndimage  # noqa: PLC0415 - heavy

        reach = along_axes(self.radius, before, volume=self.volume)
        window = tuple(2 * min(round(far), edge) + 1 for far, edge in zip(reach, before.shape, strict=True))
        filtered = [ndimage.median_filter(channel, window, mode="nearest") for channel in voxels.image]
        return replace(voxels, image=np.stack(filtered))


__all__ = ["Median"]
