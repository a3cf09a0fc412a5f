"""Bilateral filter: the mean of neighbours that are both near and alike, so that noise goes and edges stay.

Source: Tomasi and Manduchi, Bilateral filtering for gray and color images, ICCV 1998.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.preparation.regions import by_plane, noise
from common.preparation.step import Geometry, Place, Step, Voxels

# Entries of the table that likeness is looked up in.
_STEPS = 1000


class Bilateral(Step):
    """`sigma` is how near, in voxels; `strength` how alike, in standard deviations of the noise that the study is found
    to have: sites whose images have other units need no other settings. Slice by slice, each channel by itself.
    """

    kind: Literal["bilateral"] = "bilateral"
    sigma: Annotated[float, Field(ge=0.3, le=5)] = 1.5
    strength: Annotated[float, Field(gt=0, le=20)] = 2.0
    PLACE: ClassVar[Place] = "acquired"

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """A channel without noise stays as it is."""
        channels = []
        for channel in voxels.image:
            alike = self.strength * noise(channel, voxels.inside)
            channels.append(channel if alike == 0 else self._filtered(channel, alike))
        return replace(voxels, image=np.stack(channels))

    def _filtered(self, channel: NDArray[np.float32], alike: float) -> NDArray[np.float32]:
        import SimpleITK  # noqa: PLC0415 - heavy

        def of(plane: NDArray[np.float32]) -> NDArray[np.floating]:
            found = SimpleITK.Bilateral(SimpleITK.GetImageFromArray(plane), self.sigma, alike, _STEPS)
            return np.asarray(SimpleITK.GetArrayFromImage(found))

        return by_plane(channel, of)


__all__ = ["Bilateral"]
