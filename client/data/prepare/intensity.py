"""Intensities on one scale; each channel on its own, because cameras differ in colour.

window: linear from [low, high] to [0, 1], clipped. percentile: from the 0.5th and 99.5th percentile of the study.
min-max: from its lowest and highest value. zscore: mean 0, variance 1. zscore-foreground: the same, of the voxels that
are brighter than Otsu's threshold; the others are moved along. What lies outside of a region that a step before has
found, such as the padding around an image, counts in none of them. Where all that counts for a mean has one value, all
counts.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from client.data.study.study import no_numbers
from common.config import RunConfig
from common.preparation import Change, Geometry, Voxels
from common.preparation.regions import brightness, otsu
from common.preparation.step import Mask

if TYPE_CHECKING:
    from torch import Tensor

_PERCENTILES = (0.5, 99.5)
# Voxels a percentile is taken from; its sampling error is far below the noise of any image.
_SAMPLE = 2**20
# A smaller standard deviation says nothing.
_FLAT = 1e-6
# Beyond this, differences and squares of float32 may have no value.
_LARGE = 1e18


@dataclass(frozen=True)
class Intensity(Change):
    """[preprocessing] intensity and window."""

    run: RunConfig

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Scaled in a copy; the label stays.

        Raises:
            DataError: IMPLAUSIBLE, the image holds NaN or infinity; none that the quality gate let through does.
        """
        import torch  # noqa: PLC0415 - heavy

        if not bool(
            torch.isfinite(torch.from_numpy(np.require(voxels.image, requirements="W")).sum(dtype=torch.float64))
        ):
            raise no_numbers()
        counted = self._counted(voxels)
        scaled = torch.from_numpy(voxels.image.copy())
        for channel in scaled:
            values = channel if counted is None else channel[torch.from_numpy(counted)]
            if float(channel.abs().max()) > _LARGE:
                wide = channel.double()
                self._scale(wide, values.double())
                channel.copy_(wide)
            else:
                self._scale(channel, values)
        return replace(voxels, image=scaled.numpy())

    def _counted(self, voxels: Voxels) -> Mask | None:
        """(*sp), the voxels that statistics are taken of; None: all."""
        inside = voxels.inside if voxels.inside is not None and voxels.inside.any() else None
        if self.run.preprocessing.intensity != "zscore-foreground":
            return inside
        grey = brightness(voxels.image)
        bright: Mask = grey > otsu(grey if inside is None else grey[inside])
        bright = bright if inside is None else bright & inside
        return bright if bright.any() else inside

    def _scale(self, channel: "Tensor", values: "Tensor") -> None:
        """Scale a channel in place, by the statistics of some of its values."""
        how = self.run.preprocessing
        if how.window is not None:
            low, high = how.window
            if max(abs(low), abs(high)) > _LARGE:
                channel.copy_(channel.double().sub_(low).div_(max(high - low, 1e-6)).clamp_(0, 1))
            else:
                _to_unit(channel, low, high)
        elif how.intensity == "percentile":
            _to_unit(channel, *_percentiles(values))
        elif how.intensity == "min-max":
            _to_unit(channel, float(values.min()), float(values.max()))
        else:
            import torch  # noqa: PLC0415 - heavy

            deviation, mean = torch.std_mean(values, correction=0)
            if float(deviation) < _FLAT:  # such as a foreground of one value: the rest would be far from all others'
                deviation, mean = torch.std_mean(channel, correction=0)
            channel.sub_(mean).div_(deviation.clamp_min(_FLAT))


def _to_unit(values: "Tensor", low: float, high: float) -> None:
    values.sub_(low).div_(max(high - low, 1e-6)).clamp_(0, 1)


def _percentiles(channel: "Tensor") -> tuple[float, float]:
    values = channel.flatten()
    step = max(1, len(values) // _SAMPLE)
    while math.gcd(step, len(values)) > 1:  # else a step could stay in one column of the image
        step += 1
    low, high = np.percentile(values[::step].numpy(), _PERCENTILES)
    return float(low), float(high)


__all__ = ["Intensity"]
