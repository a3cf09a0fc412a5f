"""Axes in the order of the body, to the head, to the back and to the left: sites store the same anatomy in any order.

With a 2D model the acquired slices stay slices. A picture has no body axes and stays as it is.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.study.geometry import body_axes
from common.config import RunConfig
from common.errors import DataError, ErrorCode
from common.preparation import Change, Geometry, Voxels
from common.preparation.step import Label


@dataclass(frozen=True)
class Orientation(Change):
    """The first change: those after it see one order of axes."""

    run: RunConfig

    def refuse(self, before: Geometry) -> DataError | None:
        """A picture in a run that trains on volumes, and axes that span no volume."""
        if self.run.model.dims <= len(before.shape):
            try:
                self._turns(before)
            except DataError as error:
                return error
            return None
        return DataError(
            f"the model takes volumes, and this is a picture with {len(before.shape)} axes. Give a volume, or use a "
            "model with dims = 2.",
            ErrorCode.UNSUPPORTED,
        )

    def after(self, before: Geometry) -> Geometry:
        """The axes in their new order."""
        axes, _ = self._turns(before)
        spacing = None if before.spacing_mm is None else tuple(before.spacing_mm[axis] for axis in axes)
        return replace(before, shape=tuple(before.shape[axis] for axis in axes), spacing_mm=spacing, affine=None)

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Reorder and reverse axes."""
        turns = self._turns(before)
        label, inside = voxels.label, voxels.inside
        return Voxels(
            _turn(voxels.image, *turns),
            None if label is None else _turn(label, *turns),
            None if inside is None else _turn(inside, *turns),
        )

    def invert(self, labels: Label, before: Geometry) -> Label:
        """The study's own order."""
        axes, flips = self._turns(before)
        return np.ascontiguousarray(_reverse(labels, flips).transpose(np.argsort(axes)))

    def _turns(self, before: Geometry) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """For each new axis, the old axis it comes from, and whether it is reversed."""
        count = len(before.shape)
        if before.affine is None:
            return tuple(range(count)), (False,) * count
        return body_axes(before.affine, keep_slices=self.run.model.dims == 2)


def _turn(voxels: NDArray[Any], axes: tuple[int, ...], flips: tuple[bool, ...]) -> NDArray[Any]:
    """Reorder and reverse the last axes."""
    leading = voxels.ndim - len(axes)
    turned = voxels.transpose(*range(leading), *(leading + axis for axis in axes))
    return np.ascontiguousarray(_reverse(turned, flips))


def _reverse(voxels: NDArray[Any], flips: tuple[bool, ...]) -> NDArray[Any]:
    """Reverse some of the last axes; not those of length 1, whose negative stride would survive ascontiguousarray."""
    first = voxels.ndim - len(flips)
    return np.flip(voxels, tuple(a for a, flip in enumerate(flips, start=first) if flip and voxels.shape[a] > 1))


__all__ = ["Orientation"]
