"""Non-local means: the mean of voxels whose surroundings look alike, wherever near they lie. Keeps texture and edges.

Source: Buades, Coll and Morel, A non-local algorithm for image denoising, CVPR 2005.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.preparation.regions import by_plane, noise
from common.preparation.step import Geometry, Place, Step, Voxels


class NonLocalMeans(Step):
    """`patch` is the edge of a surrounding, `search` how far another is looked for, in voxels; `strength` how alike two
    must be, in standard deviations of the noise that the study is found to have. Slice by slice, each channel by
    itself.
    """

    kind: Literal["non-local-means"] = "non-local-means"
    patch: Annotated[int, Field(ge=3, le=11)] = 5
    search: Annotated[int, Field(ge=1, le=15)] = 6
    strength: Annotated[float, Field(gt=0, le=10)] = 0.8
    PLACE: ClassVar[Place] = "acquired"

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """A channel without noise stays as it is."""
        channels = []
        for channel in voxels.image:
            found = noise(channel, voxels.inside)
            channels.append(channel if found == 0 else self._filtered(channel, found))
        return replace(voxels, image=np.stack(channels))

    def _filtered(self, channel: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
        from skimage.restoration import denoise_nl_means  # noqa: PLC0415 - heavy

        def of(plane: NDArray[np.float32]) -> NDArray[np.floating]:
            # In noise's own units, and in double precision: sums over the whole plane are subtracted from each other.
            middle = float(plane.mean(dtype=np.float64))
            scaled = (plane.astype(np.float64) - middle) / deviation
            found = denoise_nl_means(scaled, self.patch, self.search, h=self.strength, sigma=1.0, fast_mode=True)
            return np.asarray(found.reshape(plane.shape) * deviation + middle)

        return by_plane(channel, of)


__all__ = ["NonLocalMeans"]
