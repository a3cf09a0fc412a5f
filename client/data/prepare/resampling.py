"""One spacing in mm, or one number of rows.

Grids are aligned at their outer edges, so that resized image and label cover the same tissue. Images are resampled
linearly with anti-aliasing, labels by nearest neighbour, which invents no value and keeps thin structures as often as
they occur. With a 2D model a series is resampled within its slices only.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from common.config import RunConfig
from common.errors import DataError, ErrorCode
from common.preparation import Change, Geometry, Voxels
from common.preparation.step import Image, Label

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Resampling(Change):
    """[preprocessing] spacing-mm or rows; a run with neither leaves the voxels where they are."""

    run: RunConfig

    def refuse(self, before: Geometry) -> DataError | None:
        """A picture without spacing in a run that sets one."""
        if self.run.preprocessing.spacing_mm is None or before.spacing_mm is not None:
            return None
        return DataError(
            "the run sets spacing-mm, and this image does not know its spacing. Give images that know it, such as "
            "DICOM or NIfTI, or train with rows instead.",
            ErrorCode.UNSUPPORTED,
        )

    def after(self, before: Geometry) -> Geometry:
        """The new shape, with the spacing that it has exactly."""
        target, size = self.run.preprocessing, list(before.shape)
        if target.rows is not None:
            size[-2:] = target.rows, max(1, round(size[-1] * target.rows / size[-2]))
        elif target.spacing_mm is not None and before.spacing_mm is not None:
            for axis, wanted in zip(range(-len(target.spacing_mm), 0), target.spacing_mm, strict=True):
                size[axis] = max(1, round(size[axis] * before.spacing_mm[axis] / wanted))
        spacing = None
        if before.spacing_mm is not None:
            spacing = tuple(mm * old / new for mm, old, new in zip(before.spacing_mm, before.shape, size, strict=True))
        return replace(before, shape=tuple(size), spacing_mm=spacing)

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """The image linearly, label and region by nearest neighbour."""
        size, label, inside = self.after(before).shape, voxels.label, voxels.inside
        return Voxels(
            _resize(voxels.image, size),
            None if label is None else _nearest(label, size),
            None if inside is None else _nearest(inside.astype(np.uint8), size).astype(np.bool_),
        )

    def invert(self, labels: Label, before: Geometry) -> Label:
        """By nearest neighbour."""
        return _nearest(labels, before.shape)


def _resize(image: Image, size: tuple[int, ...]) -> Image:
    """Linear with anti-aliasing: in the plane, then along z."""
    if image.shape[1:] == size:
        return image
    import torch  # noqa: PLC0415 - heavy

    voxels = torch.from_numpy(np.require(image, requirements=("C", "W")))
    shape = voxels.shape
    if shape[-2:] != size[-2:]:
        planes = voxels.reshape(1, -1, *shape[-2:])
        voxels = _linear(planes, size[-2:]).reshape(*shape[:-2], *size[-2:])
    if voxels.shape[1:] != size:
        # Torch has no anti-aliasing in 3D; seen as (z, everything else) it is a picture.
        columns = voxels.reshape(1, shape[0], shape[1], -1)
        voxels = _linear(columns, (size[0], columns.shape[-1])).reshape(shape[0], *size)
    resized: Image = voxels.numpy()
    return resized


def _linear(planes: "Tensor", size: tuple[int, ...]) -> "Tensor":
    from torch.nn import functional  # noqa: PLC0415 - heavy

    resized: Tensor = functional.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized


def _nearest(labels: Label, size: tuple[int, ...]) -> Label:
    """Nearest neighbour, in whole numbers: voxel i of n takes the voxel that holds the centre (i + 1/2) / n."""
    for axis, (old, new) in enumerate(zip(labels.shape, size, strict=True)):
        if old != new:
            labels = labels.take((2 * np.arange(new) + 1) * old // (2 * new), axis=axis)
    return labels


__all__ = ["Resampling"]
