"""A noisier scanner: Gaussian noise, drawn for each voxel."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulations.shifts.shift import ImageShift

_LOW, _HIGH = 1, 99  # percentiles that stand for the range of an image


class Noise(ImageShift):
    """Its standard deviation is `deviation` times the image's range, from its 1st to its 99th percentile."""

    kind: Literal["noise"] = "noise"
    deviation: Annotated[float, Field(gt=0, le=10)] = 0.05

    def on(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Each channel by its own range."""
        drawn = rng.standard_normal(image.shape, np.float32)
        low, high = np.percentile(image.reshape(len(image), -1), (_LOW, _HIGH), axis=1)
        scale = (self.deviation * (high - low)).astype(np.float32)
        return np.asarray(image + scale.reshape(-1, *(1,) * (image.ndim - 1)) * drawn, np.float32)


__all__ = ["Noise"]
