"""What a preparation step is: it changes a study on its way to the network, and takes labels back over the same way.

Voxels are numpy arrays, so that a look at the data needs no torch; a step that wants it imports it where it is used.
A step may return what it was given, and never writes to it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from common.config import RunConfig
from common.errors import DataError

Image = NDArray[np.float32]
Label = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where voxels lie, before a step.

    shape: (*sp). channels: of the image. spacing_mm: one per axis of *sp; None where the source has none. affine: see
    `Study`; None where the source has none, and once the axes are those of the body.
    """

    shape: tuple[int, ...]
    channels: int
    spacing_mm: tuple[float, ...] | None
    affine: NDArray[np.float64] | None = None


class Step(ABC):
    """One step. What it does follows from the run and from where the voxels lie."""

    name: ClassVar[str]
    # Of every run, as before a run could name steps; any other is of the runs whose [preprocessing] steps names it.
    always: ClassVar[bool] = False

    def refuse(self, before: Geometry, run: RunConfig) -> DataError | None:
        """Why a study of this geometry cannot be prepared; None: it can. All that a step refuses it refuses here, so
        that a look at the data says it without a voxel.
        """
        return None

    def after(self, before: Geometry, run: RunConfig) -> Geometry:
        """Where the voxels lie after the step."""
        return before

    @abstractmethod
    def apply(self, image: Image, label: Label | None, before: Geometry, run: RunConfig) -> tuple[Image, Label | None]:
        """Image (C, *sp) and label (*sp), both as `after` says."""

    def invert(self, labels: Label, before: Geometry, run: RunConfig) -> Label:
        """Labels (*sp) of `after` back to those of `before`."""
        return labels


def reverse(voxels: NDArray[Any], flips: tuple[bool, ...]) -> NDArray[Any]:
    """Reverse some of the last axes; not those of length 1, whose negative stride would survive ascontiguousarray."""
    first = voxels.ndim - len(flips)
    return np.flip(voxels, tuple(a for a, flip in enumerate(flips, start=first) if flip and voxels.shape[a] > 1))


__all__ = ["Geometry", "Image", "Label", "Step", "reverse"]
