"""Histogram equalisation: each grey becomes the share of voxels as dark or darker, so that all are used alike."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.preparation.regions import on_brightness
from common.preparation.step import Expected, Geometry, Place, Step, Voxels


class Equalisation(Step):
    """Over the whole study, in `bins` greys; of what a step before has found to be inside, where one has. Of a colour
    picture the brightness changes and the colours stay.
    """

    kind: Literal["equalisation"] = "equalisation"
    bins: Annotated[int, Field(ge=2, le=65536)] = 256
    PLACE: ClassVar[Place] = "scaled"

    def misfit(self, expected: Expected) -> str | None:
        """Intensities that are not on [0, 1]."""
        return None if expected.scaled else "needs intensities on [0, 1]: take another intensity than a zscore"

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """A study of one value stays as it is; what is outside becomes 0."""
        from skimage.exposure import equalize_hist  # noqa: PLC0415 - heavy

        inside = voxels.inside if voxels.inside is not None and voxels.inside.any() else None

        def of(value: NDArray[np.float32]) -> NDArray[np.floating]:
            counted = value if inside is None else value[inside]
            if counted.min() == counted.max():
                return value
            mask = None if inside is None else inside.ravel()
            found = np.asarray(equalize_hist(value.ravel(), nbins=self.bins, mask=mask)).reshape(value.shape)
            return found if inside is None else np.where(inside, found, 0)

        return replace(voxels, image=on_brightness(voxels.image, of))


__all__ = ["Equalisation"]
