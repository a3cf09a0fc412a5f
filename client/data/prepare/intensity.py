"""Intensities on one scale; each channel on its own, because cameras differ in colour.

window: linear from [low, high] to [0, 1], clipped. percentile: from the 0.5th and 99.5th percentile of the study.
zscore: mean 0, variance 1.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from client.data.prepare.step import Geometry, Image, Label, Step
from client.data.study.study import no_numbers
from common.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

_PERCENTILES = (0.5, 99.5)
# Voxels a percentile is taken from; its sampling error is far below the noise of any image.
_SAMPLE = 2**20


class Intensity(Step):
    """[preprocessing] intensity and window."""

    name = "intensity"
    always = True

    def apply(self, image: Image, label: Label | None, before: Geometry, run: RunConfig) -> tuple[Image, Label | None]:
        """Scaled in a copy; the label stays.

        Raises:
            DataError: IMPLAUSIBLE, the image holds NaN or infinity; none that the quality gate let through does.
        """
        import torch  # noqa: PLC0415 - heavy

        voxels = torch.from_numpy(image.copy())
        if not bool(torch.isfinite(voxels.sum(dtype=torch.float64))):
            raise no_numbers()
        for channel in voxels:
            if run.preprocessing.window is not None:
                _scale(channel, *run.preprocessing.window)
            elif run.preprocessing.intensity == "percentile":
                _scale(channel, *_percentiles(channel))
            else:
                deviation, mean = torch.std_mean(channel, correction=0)
                channel.sub_(mean).div_(deviation.clamp_min(1e-6))
        scaled: Image = voxels.numpy()
        return scaled, label


def _scale(values: "Tensor", low: float, high: float) -> None:
    values.sub_(low).div_(max(high - low, 1e-6)).clamp_(0, 1)


def _percentiles(channel: "Tensor") -> tuple[float, float]:
    values = channel.flatten()
    step = max(1, len(values) // _SAMPLE)
    while math.gcd(step, len(values)) > 1:  # else a step could stay in one column of the image
        step += 1
    low, high = np.percentile(values[::step].numpy(), _PERCENTILES)
    return float(low), float(high)


__all__ = ["Intensity"]
