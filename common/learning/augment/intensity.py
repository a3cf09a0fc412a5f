"""How bright the voxels of a crop are: noise, blur, brightness, contrast, low resolution, gamma, colour; labels stay.

Convention: crops are (N, C, *spatial) float32; statistics are of one crop, over its channels together, so that grey
stays grey. Order and amounts are nnU-Net's (Isensee et al., Nature Methods 2021, supplementary note 4), noise measured
in the crop's own deviation, since not every run scales intensities to variance 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from common.config import AugmentationConfig
from common.learning.augment.draws import between, chosen, factor, spread

_SMALLEST = 1e-6  # keeps 0/0 out of a crop that is the same everywhere
_REACH = 3  # deviations of a blur that are added up
# Luma and two axes of colour (YIQ, FCC 1953): what is grey has none of the latter.
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def change(crops: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Change crops by what is asked for, in this order; what is not asked for draws nothing."""
    odds = config.probability

    def some(values: Tensor, probability: float, changed: Callable[[Tensor], Tensor]) -> Tensor:
        """With those crops changed that are chosen."""
        places = chosen(len(values), probability, generator).nonzero().squeeze(1)
        if len(places) == len(values):
            return changed(values)
        if not len(places):
            return values
        places = places.to(values.device)
        return values.index_copy(0, places, changed(values[places]))

    if config.noise:
        crops = some(crops, odds.noise, lambda those: _noisy(those, config.noise, generator))
    if (widths := config.blur) is not None:
        crops = some(crops, odds.blur, lambda those: _blurred(those, between(len(those), widths, generator), widths[1]))
    if config.brightness:
        crops = some(
            crops, odds.brightness, lambda those: those * _each(_about_1(those, config.brightness, generator), those)
        )
    if config.contrast:
        crops = some(
            crops, odds.contrast, lambda those: _contrasted(those, _about_1(those, config.contrast, generator))
        )
    if config.low_resolution < 1:
        limits = (config.low_resolution, 1.0)
        crops = some(crops, odds.low_resolution, lambda those: _coarse(those, between(len(those), limits, generator)))
    if (powers := config.inverted_gamma) is not None:
        crops = some(crops, odds.inverted_gamma, lambda those: -_bent(-those, factor(len(those), powers, generator)))
    if (exponents := config.gamma) is not None:
        crops = some(crops, odds.gamma, lambda those: _bent(those, factor(len(those), exponents, generator)))
    if config.saturation:
        crops = some(
            crops, odds.saturation, lambda those: _coloured(those, _about_1(those, config.saturation, generator), None)
        )
    if config.hue:
        crops = some(
            crops,
            odds.hue,
            lambda those: _coloured(those, None, 2 * math.pi * spread(len(those), config.hue, generator)),
        )
    return crops


def _about_1(crops: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    return 1 + spread(len(crops), limit, generator)


def _each(values: Tensor, crops: Tensor) -> Tensor:
    """(N) as a factor of each crop."""
    return values.to(crops).view(-1, *[1] * (crops.ndim - 1))


def _mean(crops: Tensor) -> Tensor:
    return crops.mean(_axes(crops), keepdim=True)


def _axes(crops: Tensor) -> list[int]:
    return list(range(1, crops.ndim))


def _noisy(crops: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    share = torch.rand(len(crops), generator=generator).sqrt() * limit
    drawn = torch.randn(crops.shape, generator=generator).to(crops.device)
    return crops + drawn * (_each(share, crops) * crops.std(_axes(crops), correction=0, keepdim=True))


def _blurred(crops: Tensor, widths: Tensor, widest: float) -> Tensor:
    """Axis after axis, as sums of the crop moved by whole voxels; beyond the edge lies what is nearest.

    How far they reach follows from the run's widest blur, and not from the other crops.
    """
    reach = math.ceil(_REACH * widest)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-((steps / widths.unsqueeze(1)) ** 2) / 2)
    weights = weights / weights.sum(1, keepdim=True)
    for axis in range(2, crops.ndim):
        size = crops.shape[axis]
        if size == 1:
            continue
        places = torch.arange(-reach, size + reach, device=crops.device).clamp(0, size - 1)
        wide = crops.index_select(axis, places)
        summed = wide.narrow(axis, 0, size) * _each(weights[:, 0], crops)
        for step in range(1, 2 * reach + 1):
            summed.addcmul_(wide.narrow(axis, step, size), _each(weights[:, step], crops))
        crops = summed
    return crops


def _contrasted(crops: Tensor, factors: Tensor) -> Tensor:
    mean, low, high = _mean(crops), crops.amin(_axes(crops), keepdim=True), crops.amax(_axes(crops), keepdim=True)
    return torch.clamp(mean + (crops - mean) * _each(factors, crops), low, high)


def _coarse(crops: Tensor, factors: Tensor) -> Tensor:
    """Every so many voxels, and lines between them."""
    mode = "bilinear" if crops.ndim == 4 else "trilinear"
    coarse = []
    for crop, share in zip(torch.split(crops, 1), factors.tolist(), strict=True):
        size = [max(1, round(edge * share)) for edge in crop.shape[2:]]
        few = functional.interpolate(crop, size, mode="nearest-exact")
        coarse.append(functional.interpolate(few, crop.shape[2:], mode=mode, align_corners=False))
    return torch.cat(coarse)


def _bent(crops: Tensor, exponents: Tensor) -> Tensor:
    axes = _axes(crops)
    low, high = crops.amin(axes, keepdim=True), crops.amax(axes, keepdim=True)
    share = ((crops - low) / (high - low).clamp(min=_SMALLEST)).clamp(0, 1)
    bent = share ** _each(exponents, crops)
    before, after = crops.std(axes, correction=0, keepdim=True), bent.std(axes, correction=0, keepdim=True)
    return (bent - _mean(bent)) * (before / after.clamp(min=_SMALLEST)) + _mean(crops)


def _coloured(crops: Tensor, factors: Tensor | None, angles: Tensor | None) -> Tensor:
    """(N, 3, *spatial) with its colour stronger or weaker, or turned; light stays."""
    there = torch.tensor(_YIQ, dtype=torch.float64)
    count = len(crops)
    inner = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    if factors is not None:
        inner[:, 1, 1] = inner[:, 2, 2] = factors.double()
    if angles is not None:
        inner[:, 1, 1] = inner[:, 2, 2] = angles.double().cos()
        inner[:, 1, 2], inner[:, 2, 1] = -angles.double().sin(), angles.double().sin()
    matrices = (there.inverse() @ inner @ there).to(crops)
    return (matrices @ crops.flatten(2)).view_as(crops)


__all__ = ["change"]
