"""What a preparation step is: it changes a study on its way to the network, and takes labels back over the same way.

A step sees the voxels of one study and never those of another, so none of the table can couple patients, and each may
stand beside [privacy]. It draws nothing at random. Voxels are numpy arrays with the axes of the body, (z, y, x), or
(y, x) for a picture; what a step needs besides numpy it imports where it computes, because its settings are read by
processes that never do. A step may return what it was given, and never writes to it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common import labelmap
from common.document.table import Table
from common.errors import DataError, ErrorCode

Image = NDArray[np.float32]
Label = NDArray[np.uint8]
Mask = NDArray[np.bool_]
# Where a kind stands in the order of all that is done: on the voxels as they were acquired, in the image's own units
# and before any resampling; or after intensities were scaled to [0, 1].
Place = Literal["acquired", "scaled"]

# Of a class's voxels, that a step may cut off or black out: as much as a label may lose on its way from its files.
MOST_CUT = 0.05


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where voxels lie, before a step.

    shape: (*sp). channels: of the image. spacing_mm: one per axis of *sp; None where the source has none. affine:
    (4, 4), index (z, y, x, 1) to LPS mm; None where the source has none, and once the axes are those of the body.
    """

    shape: tuple[int, ...]
    channels: int
    spacing_mm: tuple[float, ...] | None
    affine: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Voxels:
    """A study on its way.

    image: (C, *sp) float32. label: (*sp) uint8, see `common.labelmap`; None when there is none. inside: (*sp), the
    voxels that statistics are taken of, such as the breast of a mammogram; None: all. overlap: whether the label's
    classes may overlap; it stays, whatever a step returns.
    """

    image: Image
    label: Label | None = None
    inside: Mask | None = None
    overlap: bool = False


class Expected(NamedTuple):
    """What a run says of the images that a step will see. scaled: whether intensities are brought to [0, 1]."""

    dims: int
    channels: int
    modality: str
    scaled: bool


class Change(ABC):
    """One change of a study's voxels, and for labels the way back."""

    def refuse(self, before: Geometry) -> DataError | None:
        """Why a study of this geometry cannot be prepared; None: it can. What the geometry alone tells is refused here,
        so that a look at the data says it without a voxel.
        """
        return None

    def on(self, voxels: Voxels, before: Geometry) -> "Change":
        """The change as it is on these voxels. Itself, unless where the voxels lie afterwards follows from what they
        show, as with a crop: then one whose `after` and `invert` are exact.
        """
        return self

    def after(self, before: Geometry) -> Geometry:
        """Where the voxels lie afterwards; of one that `on` would make exact, the largest that it can be."""
        return before

    @abstractmethod
    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """The voxels afterwards, all where `after` says."""

    def invert(self, labels: Label, before: Geometry) -> Label:
        """Labels (*sp) of `after` back to those of `before`."""
        return labels


class Step(Table, Change):
    """A change that a run asks for: one of [[preprocessing.steps]], with its own keys."""

    kind: str
    PLACE: ClassVar[Place]

    @property
    def moves(self) -> bool:
        """Whether voxels may lie elsewhere afterwards, as with a crop."""
        changed = type(self)
        return changed.on is not Change.on or changed.after is not Change.after

    def misfit(self, expected: Expected) -> str | None:
        """Why a run of such images cannot have it, without a full stop; None: it can."""
        return None


def too_small(before: Geometry, fewest: int, what: str) -> DataError | None:
    """The refusal of a study with fewer rows or columns than a step can work on."""
    if min(before.shape[-2:]) >= fewest:
        return None
    rows, columns = before.shape[-2:]
    return DataError(
        f"the image has {rows} x {columns} voxels in its plane, and {what} needs {fewest} along each axis. Take the "
        "study out, or train without the step.",
        ErrorCode.UNSUPPORTED,
    )


def check_kept(label: Label, kept: Label, step: str, remedy: str, *, overlap: bool = False) -> None:
    """Refuse a study of which a step would hide what is labelled: a network would learn to find it in the dark.

    Args:
        label: before the step.
        kept: the part of it that can still be seen, of any shape.
        step: which one.
        remedy: what to do about the step, without a capital and a full stop.
        overlap: whether classes may overlap.

    Raises:
        DataError: LABEL_DOUBTFUL, of one class more is hidden than `MOST_CUT`.
    """
    had, has = (labelmap.counts(one, overlap=overlap)[1:] for one in (label, kept))
    cut = 1 - has / np.maximum(had, 1)
    worst = float(np.where(had > 0, cut, 0).max())
    if worst > MOST_CUT:
        raise DataError(
            f"{step} would cut off {worst:.0%} of a class of the label; expected at most {MOST_CUT:.0%}. Take the "
            f"study out; in a run that is still to be trained: {remedy}.",
            ErrorCode.LABEL_DOUBTFUL,
        )


__all__ = [
    "MOST_CUT",
    "Change",
    "Expected",
    "Geometry",
    "Image",
    "Label",
    "Mask",
    "Place",
    "Step",
    "Voxels",
    "check_kept",
    "too_small",
]
