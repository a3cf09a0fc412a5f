"""Gaussian filter: each voxel becomes the weighted mean of its neighbours. Takes noise, and edges with it."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from common.preparation.regions import along_axes
from common.preparation.step import Geometry, Place, Step, Voxels


class Gaussian(Step):
    """`sigma` in voxels of a row, along the other axes as many mm, and at most the image's length; cut off at four
    sigma, edges repeated.
    """

    kind: Literal["gaussian"] = "gaussian"
    sigma: Annotated[float, Field(ge=0.1, le=20)] = 1.0
    # Along z too.
    volume: bool = False
    PLACE: ClassVar[Place] = "acquired"

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Each channel by itself."""
        from scipy import ndimage  # noqa: PLC0415 - heavy

        sigmas = along_axes(self.sigma, before, volume=self.volume)
        filtered = [ndimage.gaussian_filter(channel, sigmas, mode="nearest") for channel in voxels.image]
        return replace(voxels, image=np.stack(filtered))


__all__ = ["Gaussian"]
