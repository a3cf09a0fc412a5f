"""Which classes a value of a label map names: one, by its number, or several that overlap, by a bit of each.

A label map is uint8, 0 where no class is. Where classes do not overlap the value k is class k. Where they may, as a
lesion lies within its liver, a value is the sum of 2^(k - 1) over the classes k that are there, so a map holds eight.
Either is cut, turned, resampled by nearest neighbour and kept in the same way: only who asks where a class is must know
which it is, and all of them ask here, or their task (`Task.marks`). No torch here, and tensors are taken as arrays are.
"""

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MOST_OVERLAPPING = 8

_VALUES = np.arange(256)


def value_of(number: int, *, overlap: bool) -> int:
    """What a voxel of class `number` alone holds; of 0, no class, 0."""
    return (1 << number) >> 1 if overlap else number


@overload
def marks(labels: NDArray[Any], number: int, *, overlap: bool) -> NDArray[np.bool_]: ...


@overload
def marks(labels: "Tensor", number: int, *, overlap: bool) -> "Tensor": ...


def marks(labels: "NDArray[Any] | Tensor", number: int, *, overlap: bool) -> "NDArray[np.bool_] | Tensor":
    """Where class `number`, from 1, is: bool of the labels' shape."""
    found: NDArray[np.bool_] | Tensor = (labels & value_of(number, overlap=True)) != 0 if overlap else labels == number
    return found


def join(labels: NDArray[np.uint8], more: NDArray[np.uint8], *, overlap: bool) -> None:
    """Draw more labels into a map, in place: beside those that are there, or else the higher number stays."""
    (np.bitwise_or if overlap else np.maximum)(labels, more, out=labels)


def counts(labels: NDArray[np.uint8], *, overlap: bool) -> NDArray[np.int64]:
    """Voxels without any class, and of each class a map can hold: (256,), or (9,) where they overlap."""
    marked = labels[labels > 0]  # counting the few is three times as fast as counting all
    held: NDArray[np.int64] = np.bincount(marked, minlength=len(_VALUES))
    held[0] = labels.size - marked.size
    if not overlap:
        return held
    there = _VALUES & np.array([[value_of(number, overlap=True)] for number in range(1, 1 + MOST_OVERLAPPING)]) != 0
    return np.concatenate([held[:1], there @ held])


__all__ = ["MOST_OVERLAPPING", "counts", "join", "marks", "value_of"]
