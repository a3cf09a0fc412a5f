"""What a compressed frame says of itself, before a decoder believes it: JPEG, JPEG-LS and JPEG 2000.

A frame may announce more than its DICOM header does, and decoders fill memory by it; one of them ends the whole process
over headers that make no sense. So a header is walked segment by segment up to where the compressed values begin, and
anything that is out of place there makes the stream corrupt.
Source: ITU-T T.81 annex B (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

_JPEG_2000_START = b"\xff\x4f\xff\x51"  # start of codestream, then its size
_JPEG_START = b"\xff\xd8"

_HUFFMAN_TABLES, _SCAN, _JFIF = 0xC4, 0xDA, 0xE0
# Markers of a frame header: JPEG's sixteen less three that mean something else, and JPEG-LS' own.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {_HUFFMAN_TABLES, 0xC8, 0xCC}
# Quantisation, restarts, applications, JPEG-LS presets, comments.
_OTHERS = {0xDB, 0xDD, *range(0xE0, 0xF0), 0xF8, 0xFE}
_LOSSLESS = 0xC3
_MOST_BITS = 16


class StreamHeader(NamedTuple):
    """The size of a frame."""

    rows: int
    columns: int
    samples: int


def stream_header(stream: bytes) -> StreamHeader:
    """Walk the header of a compressed frame.

    Raises:
        ValueError: it is none, or makes no sense.
    """
    try:
        if stream.startswith(_JPEG_2000_START):
            right, lower, left, upper = struct.unpack_from(">4L", stream, 8)
            (samples,) = struct.unpack_from(">H", stream, 40)
            return StreamHeader(lower - upper, right - left, samples)
        if stream.startswith(_JPEG_START):
            return _jpeg(stream)
    except (struct.error, IndexError) as error:
        raise ValueError("the stream ends within its header") from error
    raise ValueError("the stream is neither JPEG nor JPEG 2000")


def _jpeg(stream: bytes) -> StreamHeader:
    frame = b""
    kind = 0
    tables: set[int] = set()
    for marker, segment in _segments(stream):
        if marker in _FRAMES:
            _require(not frame)
            _check_frame(segment)
            frame, kind = segment, marker
        elif marker == _HUFFMAN_TABLES:
            tables |= _tables(segment)
        elif marker == _SCAN:
            _require(bool(frame))
            _check_scan(segment, set(frame[6::3]), tables if kind == _LOSSLESS else None)
            return StreamHeader(*struct.unpack_from(">HHB", frame, 1))
        elif marker == _JFIF and segment.startswith(b"JFIF\0"):
            _require(len(segment) >= 14 and segment[5] == 1)
        else:
            _require(marker in _OTHERS)
    raise ValueError("the stream ends within its header")


def _check_frame(segment: bytes) -> None:
    """Bits, size, and the number and sampling of each component."""
    components, sampling = segment[6::3], segment[7::3]
    _require(2 <= segment[0] <= _MOST_BITS)
    _require(len(segment) == 6 + 3 * segment[5] and len(set(components)) == segment[5] > 0)
    _require(all(1 <= factors >> 4 <= 4 and 1 <= factors & 15 <= 4 for factors in sampling))


def _check_scan(segment: bytes, components: set[int], tables: set[int] | None) -> None:
    """The components of the first scan, and for lossless values their tables and their predictor."""
    scanned, chosen = segment[1:-3:2], segment[2:-3:2]
    _require(len(segment) == 4 + 2 * segment[0] and len(set(scanned)) == segment[0] > 0 and set(scanned) <= components)
    if tables is not None:
        predictor, end, shifts = segment[-3:]
        _require({tables_of >> 4 for tables_of in chosen} <= tables)
        _require(1 <= predictor <= 7 and end == 0 and shifts < 16)


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment."""
    at = len(_JPEG_START)
    while True:
        _require(stream[at] == 0xFF)
        while stream[at + 1] == 0xFF:  # fill bytes
            at += 1
        (length,) = struct.unpack_from(">H", stream, at + 2)
        _require(length >= 2 and at + 2 + length <= len(stream))
        yield stream[at + 1], stream[at + 4 : at + 2 + length]
        at += 2 + length


def _tables(segment: bytes) -> set[int]:
    """The numbers of the Huffman tables for lossless values, and for the first value of a block."""
    numbers = set()
    while segment:
        kind, number, counts = segment[0] >> 4, segment[0] & 15, segment[1:17]
        end = 17 + sum(counts)
        _require(kind < 2 and number < 4 and len(counts) == 16 and 17 < end <= len(segment))
        room = 1  # for codes of one more bit
        for count in counts:
            room = 2 * room - count
            _require(room >= 0)
        if kind == 0:
            _require(max(segment[17:end]) <= _MOST_BITS)
            numbers.add(number)
        segment = segment[end:]
    return numbers


def _require(sane: bool) -> None:
    if not sane:
        raise ValueError("the stream's header makes no sense")
