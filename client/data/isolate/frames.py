"""What crosses the pipe between a process and its readers: JSON and raw arrays, never pickle.

The frames are those of common/wire/frames.py, with arrays in C order for payloads:

    header = {"kind": ..., "arrays": [[dtype, shape], ...], ...}

Types and sizes are checked before anything is allocated. An array is written from its own memory and read into its
own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.wire import frames

HEADER_LIMIT = 64 << 20  # bytes: the rows of a large CSV

_TYPES: dict[str, np.dtype[Any]] = {"f4": np.dtype(np.float32), "u1": np.dtype(np.uint8)}
_MOST_AXES = 4
_MOST_ARRAYS = 4  # image, label, padding, field of view


def send(
    fd: int, header: Mapping[str, Any], arrays: Sequence[NDArray[Any]] = (), deadline: float | None = None
) -> None:
    """Write one frame.

    Args:
        fd: of the pipe.
        header: plain values.
        arrays: float32 or uint8.
        deadline: `time.monotonic` seconds; None: wait as long as it takes.

    Raises:
        FrameError: the other end is gone or does not read.
    """
    described = [[array.dtype.str[1:], array.shape] for array in arrays]
    flat = [_flat(np.ascontiguousarray(array)) for array in arrays]
    frames.send(fd, {**header, "arrays": described}, flat, deadline, header_limit=HEADER_LIMIT)


def receive(
    fd: int, *, arrays_limit: int = 0, deadline: float | None = None
) -> tuple[dict[str, Any], list[NDArray[Any]]] | None:
    """Read one frame; None when the other end has closed the pipe between frames.

    Args:
        fd: of the pipe.
        arrays_limit: most bytes of arrays.
        deadline: for the header; the arrays have time by their size.

    Raises:
        FrameError: not a frame, too large, cut short or late.
    """
    arrays: list[NDArray[Any]] = []

    def announced(header: dict[str, Any]) -> list[memoryview]:
        arrays.extend(_announced(header.pop("arrays"), arrays_limit))
        return [_flat(array) for array in arrays]

    header = frames.receive(fd, announced, deadline=deadline, header_limit=HEADER_LIMIT)
    return None if header is None else (header, arrays)


def _announced(described: Any, limit: int) -> list[NDArray[Any]]:
    """Arrays as a header announces them, not yet filled. Memory that is never filled is never taken."""
    if len(described) > _MOST_ARRAYS:
        raise ValueError("too many arrays")
    shapes = []
    for name, shape in described:
        if len(shape) > _MOST_AXES or not all(type(edge) is int and edge >= 0 for edge in shape):
            raise ValueError("not a shape")
        shapes.append((_TYPES[name], tuple(shape)))
    if sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes) > limit:
        raise ValueError("larger than the limit")
    return [np.empty(shape, dtype) for dtype, shape in shapes]


def _flat(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
