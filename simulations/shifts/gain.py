"""A scanner that is calibrated otherwise: every intensity times a factor, plus an offset."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulations.shifts.shift import ImageShift


class Gain(ImageShift):
    """In the units of the source: HU for CT, 0 to 255 for pictures of 8 bits, which are cut off there."""

    kind: Literal["gain"] = "gain"
    gain: Annotated[float, Field(gt=0, le=1e3)] = 1.2
    offset: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0

    def on(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Nothing is drawn at random."""
        return image * np.float32(self.gain) + np.float32(self.offset)


__all__ = ["Gain"]
