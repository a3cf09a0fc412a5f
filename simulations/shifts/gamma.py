"""Another contrast: a power of the intensities between the darkest and the brightest voxel of an image."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulations.shifts.shift import ImageShift


class Gamma(ImageShift):
    """Above 1 the middle becomes darker, below 1 brighter; the darkest and the brightest voxel stay (MONAI)."""

    kind: Literal["gamma"] = "gamma"
    gamma: Annotated[float, Field(gt=0, le=10)] = 1.5

    def on(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Each channel by itself; nothing is drawn at random."""
        from monai.transforms.intensity.array import AdjustContrast  # noqa: PLC0415 - torch

        adjust = AdjustContrast(self.gamma)
        return np.stack([np.asarray(adjust(channel[None])[0]) for channel in image])


__all__ = ["Gamma"]
