"""What crosses the pipe between a process and its readers: JSON and raw arrays, never pickle.

    frame = length of the header (4 bytes, big-endian) | header, JSON | arrays, one after another, C order
    header = {"kind": ..., "arrays": [[dtype, shape], ...], ...}

Types and sizes are checked before anything is allocated. An array is written from its own memory and read into its
own, so that the only copies are the kernel's.
"""

import contextlib
import fcntl
import json
import math
import os
import select
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_LIMIT = 64 << 20  # bytes: the rows of a large CSV

_PREFIX = struct.Struct(">I")
_TYPES: dict[str, np.dtype[Any]] = {"f4": np.dtype(np.float32), "u1": np.dtype(np.uint8)}
_MOST_AXES = 4
_MOST_ARRAYS = 2
_PIPE_BYTES = 1 << 20
# Slower than any pipe, so that a frame that dribbles ends some time.
_SLOWEST = 16 << 20  # bytes per second


class FrameError(Exception):
    """The other end is gone, late, or does not speak our frames."""


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
    text = json.dumps({**header, "arrays": described}, separators=(",", ":")).encode()
    raw = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays]
    for rest in (memoryview(_PREFIX.pack(len(text)) + text), *raw):
        _drain(fd, rest, deadline)


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
    prefix = bytearray(_PREFIX.size)
    if not _fill(fd, memoryview(prefix), deadline):
        return None
    (length,) = _PREFIX.unpack(prefix)
    if length > HEADER_LIMIT:
        raise FrameError(f"a header of {length} bytes; expected at most {HEADER_LIMIT}")
    text = bytearray(length)
    _fill_all(fd, memoryview(text), deadline)
    try:
        header = json.loads(text)
        arrays = _announced(header.pop("arrays"), arrays_limit)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameError("a header that is not as expected") from error
    for array in arrays:
        slow = None if deadline is None else deadline + array.nbytes / _SLOWEST
        _fill_all(fd, array.reshape(-1).view(np.uint8).data, slow)
    return header, arrays


def widen(fd: int) -> None:
    """A larger kernel buffer means fewer switches between the processes; without it the pipe still works."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


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


def _drain(fd: int, rest: memoryview, deadline: float | None) -> None:
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT, deadline)
        except OSError as error:
            raise FrameError("the other end of the pipe is gone") from error


def _fill_all(fd: int, rest: memoryview, deadline: float | None) -> None:
    if not _fill(fd, rest, deadline):
        raise FrameError("the other end of the pipe went away within a frame")


def _fill(fd: int, rest: memoryview, deadline: float | None) -> bool:
    """Fill a buffer from the pipe; False when the pipe ended before its first byte."""
    begun = False
    while rest:
        try:
            count = os.readv(fd, [rest])
        except BlockingIOError:
            _wait(fd, select.POLLIN, deadline)
            continue
        except OSError as error:
            raise FrameError("the pipe cannot be read") from error
        if not count and not begun:
            return False
        if not count:
            raise FrameError("the other end of the pipe went away within a frame")
        begun, rest = True, rest[count:]
        if rest and deadline is not None and time.monotonic() > deadline:
            raise FrameError("the other end of the pipe is too slow")
    return True


def _wait(fd: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
        raise FrameError("the other end of the pipe did not go on in time")
