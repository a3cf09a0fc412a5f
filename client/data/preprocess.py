"""Study to network input, and the network's answer back to the study's own grid.

Order: body orientation, channels, spacing or rows, intensity. Grids are aligned at their outer edges, so that resized
image and label cover the same tissue. Images are resampled linearly with anti-aliasing, labels by nearest neighbour,
which invents no value and keeps thin structures as often as they occur.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from client.data.geometry import body_axes
from client.data.study import Study
from common.config import RunConfig
from common.errors import DataError, ErrorCode

_PERCENTILES = (0.5, 99.5)
# Voxels a percentile is taken from; its sampling error is far below the noise of any image.
_SAMPLE = 2**20
# ITU-R BT.601: brightness of red, green, blue.
_LUMINANCE = (0.299, 0.587, 0.114)


def preprocess(study: Study, run: RunConfig) -> tuple[Tensor, Tensor | None]:
    """Resample and normalise a study.

    Returns:
        Image (C, *sp) float32 and label (*sp) uint8 (None when the study has none). *sp are the axes of the
        STUDY, (z, y, x) or (y, x), whatever the model; `as_samples` turns them into what the network takes.
        With a 2D model a series is resampled within its slices only.

    Raises:
        DataError: UNSUPPORTED, the study does not fit the run; NOT_FINITE, it holds NaN or infinity.
    """
    axes, flips = _orientation(study, run)
    size = _size(study, run, axes)
    image = torch.from_numpy(_turn(study.image, axes, flips))
    image = _resize(_channels(image, run.data.channels), size)
    _normalise(image, run)
    if study.label is None:
        return image, None
    return image, torch.from_numpy(_nearest(_turn(study.label, axes, flips), size))


def as_samples(volume: Tensor, dims: int) -> Tensor:
    """Stack what the network takes, one sample per slice in 2D and one per study in 3D.

    Args:
        volume: image (C, *sp), as `preprocess` gives it.
        dims: axes of the model, 2 or 3.

    Returns:
        (S, C, *sp): with a 2D model S is the number of slices (1 for a photograph), with a 3D model 1.
    """
    if volume.ndim - 1 > dims:
        return volume.movedim(1, 0).contiguous()
    return volume[None]


def restore(labels: Tensor | NDArray[np.uint8], study: Study, run: RunConfig) -> NDArray[np.uint8]:
    """Bring labels from the preprocessed grid back to exactly the study's own grid, by nearest neighbour.

    Args:
        labels: (*sp) of the preprocessed image; the samples of a 2D model on a series stacked along z.
        study: the study that was preprocessed.
        run: the run it was preprocessed for.

    Returns:
        (*sp) uint8 of `study.image`.

    Raises:
        ValueError: the labels do not have the shape that `preprocess` gave.
    """
    found = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).astype(np.uint8)
    axes, flips = _orientation(study, run)
    expected = _size(study, run, axes)
    if found.shape != expected:
        raise ValueError(f"labels have shape {found.shape}; preprocess gave {expected}. Stack the samples along z.")
    own = study.image.shape[1:]
    turned = _nearest(found, tuple(own[axis] for axis in axes))
    return np.ascontiguousarray(_reverse(turned, flips).transpose(np.argsort(axes)))


def _orientation(study: Study, run: RunConfig) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For each axis of the network input, the axis of the study it comes from, and whether it is reversed."""
    count = study.image.ndim - 1
    if run.model.dims > count:
        raise DataError(
            f"the run trains on volumes, and this is a picture with {count} axes. Use a run with dims = 2.",
            ErrorCode.UNSUPPORTED,
        )
    if study.affine is None:
        return tuple(range(count)), (False,) * count
    return body_axes(study.affine, keep_slices=run.model.dims == 2)


def _size(study: Study, run: RunConfig, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the network input, in its own axes."""
    size = [study.image.shape[1 + axis] for axis in axes]
    target = run.preprocessing
    if target.rows is not None:
        size[-2:] = target.rows, max(1, round(size[-1] * target.rows / size[-2]))
    elif target.spacing_mm is not None:
        if study.spacing_mm is None:
            raise DataError(
                "the run sets spacing-mm, and this image does not know its spacing. Use rows in run.toml instead.",
                ErrorCode.UNSUPPORTED,
            )
        own = [study.spacing_mm[axis] for axis in axes]
        for axis, wanted in zip(range(-len(target.spacing_mm), 0), target.spacing_mm, strict=True):
            size[axis] = max(1, round(size[axis] * own[axis] / wanted))
    return tuple(size)


def _turn(voxels: NDArray[Any], axes: tuple[int, ...], flips: tuple[bool, ...]) -> NDArray[Any]:
    """Reorder and reverse the last axes."""
    leading = voxels.ndim - len(axes)
    turned = voxels.transpose(*range(leading), *(leading + axis for axis in axes))
    return np.ascontiguousarray(_reverse(turned, flips))


def _reverse(voxels: NDArray[Any], flips: tuple[bool, ...]) -> NDArray[Any]:
    """Reverse some of the last axes; not those of length 1, whose negative stride would survive ascontiguousarray."""
    first = voxels.ndim - len(flips)
    return np.flip(voxels, tuple(a for a, flip in enumerate(flips, start=first) if flip and voxels.shape[a] > 1))


def _channels(image: Tensor, wanted: int) -> Tensor:
    """Colour to grey by brightness, grey to three equal channels."""
    given = image.shape[0]
    if given == wanted:
        return image
    if (given, wanted) == (3, 1):
        weights = torch.tensor(_LUMINANCE).view(3, *[1] * (image.ndim - 1))
        return (weights * image).sum(dim=0, keepdim=True)
    if given == 1:
        return image.expand(wanted, *image.shape[1:])
    raise DataError(f"the image has {given} channels; expected {wanted}. Convert it.", ErrorCode.UNSUPPORTED)


def _resize(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Linear with anti-aliasing: in the plane, then along z. A new tensor."""
    shape = image.shape
    if shape[1:] == size:
        return image.clone()
    if shape[-2:] != size[-2:]:
        planes = image.reshape(1, -1, *shape[-2:])
        image = _linear(planes, size[-2:]).reshape(*shape[:-2], *size[-2:])
    if image.shape[1:] != size:
        # Torch has no anti-aliasing in 3D; seen as (z, everything else) it is a picture.
        columns = image.reshape(1, shape[0], shape[1], -1)
        image = _linear(columns, (size[0], columns.shape[-1])).reshape(shape[0], *size)
    return image


def _linear(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    resized: Tensor = functional.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized


def _nearest(labels: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Nearest neighbour, in whole numbers: voxel i of n takes the voxel that holds the centre (i + 1/2) / n."""
    for axis, (old, new) in enumerate(zip(labels.shape, size, strict=True)):
        if old != new:
            labels = labels.take((2 * np.arange(new) + 1) * old // (2 * new), axis=axis)
    return labels


def _normalise(image: Tensor, run: RunConfig) -> None:
    """Scale intensities in place; each channel on its own, because cameras differ in colour."""
    if not bool(torch.isfinite(image.sum(dtype=torch.float64))):
        raise DataError(
            "the image holds values that are not finite (NaN or infinity). Replace them.", ErrorCode.NOT_FINITE
        )
    for channel in image:
        if run.preprocessing.window is not None:
            _scale(channel, *run.preprocessing.window)
        elif run.preprocessing.intensity == "percentile":
            _scale(channel, *_percentiles(channel))
        else:
            deviation, mean = torch.std_mean(channel, correction=0)
            channel.sub_(mean).div_(deviation.clamp_min(1e-6))


def _scale(values: Tensor, low: float, high: float) -> None:
    values.sub_(low).div_(max(high - low, 1e-6)).clamp_(0, 1)


def _percentiles(channel: Tensor) -> tuple[float, float]:
    values = channel.flatten()
    step = max(1, len(values) // _SAMPLE)
    while math.gcd(step, len(values)) > 1:  # else a step could stay in one column of the image
        step += 1
    low, high = np.percentile(values[::step].numpy(), _PERCENTILES)
    return float(low), float(high)
