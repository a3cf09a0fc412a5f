"""Axes in the order of the body, to the head, to the back and to the left: sites store the same anatomy in any order.

With a 2D model the acquired slices stay slices. A picture has no body axes and stays as it is.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.prepare.step import Geometry, Image, Label, Step, reverse
from client.data.study.geometry import body_axes
from common.config import RunConfig
from common.errors import DataError, ErrorCode


class Orientation(Step):
    """The first step: those after it see one order of axes."""

    name = "orientation"
    always = True

    def refuse(self, before: Geometry, run: RunConfig) -> DataError | None:
        """A picture in a run that trains on volumes, and axes that span no volume."""
        if run.model.dims <= len(before.shape):
            try:
                _turns(before, run)
            except DataError as error:
                return error
            return None
        return DataError(
            f"the model takes volumes, and this is a picture with {len(before.shape)} axes. Give a volume, or use a "
            "model with dims = 2.",
            ErrorCode.UNSUPPORTED,
        )

    def after(self, before: Geometry, run: RunConfig) -> Geometry:
        """The axes in their new order."""
        axes, _ = _turns(before, run)
        spacing = None if before.spacing_mm is None else tuple(before.spacing_mm[axis] for axis in axes)
        return replace(before, shape=tuple(before.shape[axis] for axis in axes), spacing_mm=spacing, affine=None)

    def apply(self, image: Image, label: Label | None, before: Geometry, run: RunConfig) -> tuple[Image, Label | None]:
        """Reorder and reverse axes."""
        turns = _turns(before, run)
        return _turn(image, *turns), None if label is None else _turn(label, *turns)

    def invert(self, labels: Label, before: Geometry, run: RunConfig) -> Label:
        """The study's own order."""
        axes, flips = _turns(before, run)
        return np.ascontiguousarray(reverse(labels, flips).transpose(np.argsort(axes)))


def _turns(before: Geometry, run: RunConfig) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For each new axis, the old axis it comes from, and whether it is reversed."""
    count = len(before.shape)
    if before.affine is None:
        return tuple(range(count)), (False,) * count
    return body_axes(before.affine, keep_slices=run.model.dims == 2)


def _turn(voxels: NDArray[Any], axes: tuple[int, ...], flips: tuple[bool, ...]) -> NDArray[Any]:
    """Reorder and reverse the last axes."""
    leading = voxels.ndim - len(axes)
    turned = voxels.transpose(*range(leading), *(leading + axis for axis in axes))
    return np.ascontiguousarray(reverse(turned, flips))


__all__ = ["Orientation"]
