"""A body of several parts, read as it comes: multipart/related, DICOM in each part (RFC 2046 5.1, RFC 2387).

Only the part in hand is held. Everything that a sender could make without end has a bound: what stands before the
first part and after the last, the headers of a part, a part, and how many there are. What comes after the end of the
parts is not looked at.
"""

import re
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesHeaderParser

MOST_AROUND = 64 << 10  # bytes before the first part, and after the last
MOST_HEADERS = 8 << 10  # bytes, of one part

_DICOM = "application/dicom"
# RFC 2046 5.1.1: its letters, no space at its end. It has 70 there, and those of Orthanc 1.10 have 73.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,127}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)
_BEFORE = -1  # the first part
_PADDING = 1024  # of white space after a boundary, and the end of its line
_LINE_END = re.compile(rb"[ \t]*\r\n")
_MAY_BECOME_ONE = re.compile(rb"-?|[ \t]*\r?")


class BodyError(Exception):
    """A request that cannot be taken. The sentence is for its sender; nothing of what was sent stands in it.

    status: of the answer (RFC 9110 15).
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def boundary_of(content_type: str) -> bytes:
    """What stands between the parts, by a request's Content-Type.

    Raises:
        BodyError: it is another media type, or names no boundary.
    """
    header = Message()
    header["Content-Type"] = content_type
    kind = header.get_param("type")
    if header.get_content_type() != "multipart/related" or not isinstance(kind, str) or kind.lower() != _DICOM:
        raise BodyError(415, f'Send multipart/related; type="{_DICOM}".')
    boundary = header.get_boundary()
    if boundary is None or not _BOUNDARY.fullmatch(boundary):
        raise BodyError(400, "The Content-Type has no boundary that could be one.")
    return boundary.encode("ascii")


class Parts:
    """The parts of one body."""

    def __init__(self, boundary: bytes, most: int, most_parts: int) -> None:
        """Nothing has come yet.

        Args:
            boundary: between the parts.
            most: bytes of a part.
            most_parts: how many are taken.
        """
        self._mark, self._most, self._most_parts = b"\r\n--" + boundary, most, most_parts
        # The first boundary may be the first line.
        self._buffer, self._searched, self._after = bytearray(b"\r\n"), 0, 0
        self._count, self._ended = _BEFORE, False

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return len(self._buffer)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The parts that a further piece of the body completes.

        Raises:
            BodyError: it is no such body, or more than is taken.
        """
        if self._ended:
            self._after += len(piece)
        else:
            self._buffer += piece
        while not self._ended and (found := self._boundary()) is not None:
            start, end, self._ended = found
            part = self._part(start) if self._count != _BEFORE else None
            self._after = len(self._buffer) - end if self._ended else 0
            del self._buffer[: len(self._buffer) if self._ended else end]
            self._searched = 0
            self._count += 1
            if part is not None:
                yield part
        self._check()

    def finish(self) -> None:
        """The body is over.

        Raises:
            BodyError: its parts are not.
        """
        if not self._ended:
            raise BodyError(400, "The body ends before its last boundary.")
        if self._count == 0:
            raise BodyError(400, "The body has no part.")

    def _boundary(self) -> tuple[int, int, bool] | None:
        """Where the next one begins and ends, and whether it is the last; None: it has not come yet."""
        at = self._searched
        while (start := self._buffer.find(self._mark, at)) >= 0:
            end = start + len(self._mark)
            rest = bytes(self._buffer[end : end + _PADDING])
            if rest.startswith(b"--"):
                return start, end + 2, True
            if line_end := _LINE_END.match(rest):
                return start, end + line_end.end(), False
            if _MAY_BECOME_ONE.fullmatch(rest) and len(rest) < _PADDING:
                self._searched = start
                return None
            at = end  # a longer word that begins so: it belongs to the part
        self._searched = max(at, len(self._buffer) - len(self._mark) + 1)
        return None

    def _part(self, end: int) -> bytes:
        """What stands in a part that ends there."""
        if self._count >= self._most_parts:
            raise BodyError(413, f"The body has more than {self._most_parts} parts.")
        begin = self._headers_end(end)
        if begin is None:
            raise BodyError(400, f"A part has no end of its headers in {MOST_HEADERS} bytes.")
        if end - begin > self._most:
            raise BodyError(413, f"A part is longer than {self._most} bytes.")
        headers = BytesHeaderParser().parsebytes(bytes(self._buffer[:begin]))
        if headers.get_content_type() != _DICOM:
            raise BodyError(415, f"A part is no {_DICOM}.")
        if str(headers.get("Content-Transfer-Encoding", "binary")).strip().lower() not in ("binary", "8bit"):
            raise BodyError(415, "A part is packed. Send it as it is (binary).")
        with memoryview(self._buffer) as whole:
            return bytes(whole[begin:end])

    def _headers_end(self, most: int) -> int | None:
        """Where the content of the part in hand begins; None: it has not come, or is too far."""
        if self._buffer.startswith(b"\r\n"):
            return 2
        at = self._buffer.find(b"\r\n\r\n", 0, min(most, MOST_HEADERS))
        return None if at < 0 else at + 4

    def _check(self) -> None:
        """Whether what is held may become a part."""
        if self._after > MOST_AROUND or (self._count == _BEFORE and self.held > MOST_AROUND):
            raise BodyError(400, "There is too much before or after the parts.")
        if self._count != _BEFORE and not self._ended:
            if self.held > MOST_HEADERS and self._headers_end(self.held) is None:
                raise BodyError(400, f"A part has no end of its headers in {MOST_HEADERS} bytes.")
            if self.held > self._most + MOST_HEADERS + len(self._mark) + _PADDING:
                raise BodyError(413, f"A part is longer than {self._most} bytes.")


__all__ = ["MOST_AROUND", "MOST_HEADERS", "BodyError", "Parts", "boundary_of"]
