"""What crosses a pipe between two of our processes: a header as JSON and raw bytes, never pickle.

    frame = length of the header (4 bytes, big-endian) | header, a JSON object | payloads, one after another

What payloads follow is said in the header; whoever receives says by it where they go, after it has looked at the sizes
and before anything is allocated. A payload is written from its own memory and read into its own, so that the only
copies are the kernel's. A `Frame`, a header with named parts, is {"header": ..., "parts": [[name, size], ...]} there.
Neither end trusts the other: what does not parse is a FrameError. Deadlines are `time.monotonic` seconds.
"""

import contextlib
import fcntl
import json
import os
import select
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from common.errors import ErrorCode, WardroundError

# The bytes of a part: its own, or a read-only view of the message that it came in.
Buffer: TypeAlias = bytes | memoryview

HEADER_LIMIT = 1 << 20  # bytes
PARTS_LIMIT = 1 << 30  # bytes of all parts together: five times the default policy's largest model

_PREFIX = struct.Struct(">I")
_PIPE_BYTES = 1 << 20
# Slower than any pipe, so that a frame that dribbles ends some time.
_SLOWEST = 16 << 20  # bytes per second
_HEADER, _PARTS = "header", "parts"


class FrameError(WardroundError):
    """The other end is gone, late (DEADLINE), or does not speak our frames."""

    code = ErrorCode.WORKER_FAILED


@dataclass(frozen=True)
class Frame:
    """A JSON object, and bytes by name."""

    header: Mapping[str, Any]
    parts: Mapping[str, Buffer] = field(default_factory=dict, repr=False)


def send_frame(fd: int, frame: Frame, deadline: float | None = None) -> None:
    """Write one frame with its parts; see `send`."""
    size = sum(map(len, frame.parts.values()))
    if size > PARTS_LIMIT:
        raise FrameError(f"a frame with {size} bytes of parts is larger than the pipe carries")
    described = [[name, len(part)] for name, part in frame.parts.items()]
    header = {_HEADER: dict(frame.header), _PARTS: described}
    send(fd, header, [memoryview(part) for part in frame.parts.values()], deadline)


def receive_frame(fd: int, deadline: float | None = None) -> Frame | None:
    """Read one frame with its parts; see `receive`."""
    parts: dict[str, bytearray] = {}

    def announced(header: dict[str, Any]) -> list[memoryview]:
        sizes = {str(name): size for name, size in header.pop(_PARTS)}
        if not all(type(size) is int and size >= 0 for size in sizes.values()) or sum(sizes.values()) > PARTS_LIMIT:
            raise ValueError("parts of no size, or too large")
        parts.update((name, bytearray(size)) for name, size in sizes.items())
        return [memoryview(part) for part in parts.values()]

    header = receive(fd, announced, deadline=deadline)
    if header is None:
        return None
    if header.keys() != {_HEADER} or not isinstance(header[_HEADER], dict):
        raise FrameError("a frame without a header of its own")
    return Frame(header[_HEADER], {name: bytes(part) for name, part in parts.items()})


def send(
    fd: int,
    header: Mapping[str, Any],
    payloads: Sequence[memoryview] = (),
    deadline: float | None = None,
    *,
    header_limit: int = HEADER_LIMIT,
) -> None:
    """Write one frame.

    Args:
        fd: of the pipe.
        header: plain values.
        payloads: flat bytes.
        deadline: None: wait as long as it takes.
        header_limit: bytes.

    Raises:
        FrameError: too large a header, or the other end is gone or does not read.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > header_limit:
        raise FrameError(f"a header of {len(text)} bytes is larger than the pipe carries")
    for rest in (memoryview(_PREFIX.pack(len(text)) + text), *payloads):
        _drain(fd, rest, deadline)


def receive(
    fd: int,
    announced: Callable[[dict[str, Any]], Sequence[memoryview]],
    *,
    deadline: float | None = None,
    header_limit: int = HEADER_LIMIT,
) -> dict[str, Any] | None:
    """Read one frame; None when the other end has closed the pipe between frames.

    Args:
        fd: of the pipe.
        announced: where the payloads go that a header announces, whose entry it takes out; it raises ValueError,
            KeyError, TypeError or AttributeError where they cannot be, or are too large.
        deadline: for the header; the payloads have time by their size. None: wait as long as it takes.
        header_limit: bytes.

    Raises:
        FrameError: not a frame, too large, cut short or late.
    """
    prefix = bytearray(_PREFIX.size)
    if not _fill(fd, memoryview(prefix), deadline):
        return None
    (length,) = _PREFIX.unpack(prefix)
    if length > header_limit:
        raise FrameError(f"a header of {length} bytes is too large; expected at most {header_limit}")
    text = bytearray(length)
    _fill_all(fd, memoryview(text), deadline)
    try:
        header: dict[str, Any] = json.loads(text)
        payloads = announced(header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameError(
            "a frame with a header that is not as expected, or that announces too large payloads"
        ) from error
    for payload in payloads:
        slow = None if deadline is None else deadline + payload.nbytes / _SLOWEST
        _fill_all(fd, payload, slow)
    return header


def widen(fd: int) -> None:
    """A larger kernel buffer means fewer switches between the processes; without it the pipe still works."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


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
        if deadline is not None:
            _wait(fd, select.POLLIN, deadline)
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
            raise FrameError("the other end of the pipe is too slow", ErrorCode.DEADLINE)
    return True


def _wait(fd: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
        raise FrameError("the other end of the pipe did not go on in time", ErrorCode.DEADLINE)


__all__ = [
    "HEADER_LIMIT",
    "PARTS_LIMIT",
    "Buffer",
    "Frame",
    "FrameError",
    "receive",
    "receive_frame",
    "send",
    "send_frame",
    "widen",
]
