"""Uneven illumination, or an uneven coil of MR: a smooth field over each image, drawn for each (MONAI)."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulations.shifts.shift import ImageShift


class BiasField(ImageShift):
    """The image times exp of a polynomial of third degree with coefficients up to `strength`, of either sign."""

    kind: Literal["bias-field"] = "bias-field"
    strength: Annotated[float, Field(gt=0, le=2)] = 0.3

    def on(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """All channels have one field. A single slice has one of two axes."""
        from monai.transforms.intensity.array import RandBiasField  # noqa: PLC0415 - torch

        field = RandBiasField(coeff_range=(-self.strength, self.strength), prob=1.0)
        field.set_random_state(seed=int(rng.integers(2**32)))
        single = image.ndim == 4 and image.shape[1] == 1
        made = np.asarray(field(image[:, 0] if single else image))
        return made[:, None] if single else made


__all__ = ["BiasField"]
