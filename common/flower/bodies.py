"""Models on their way into a SuperLink by HTTP: in pieces.

httpcore hands a body to the socket whole, and copies what is left of it after each part that the socket took. A unix
socket takes 200 kB at a time, so that 2 GB were copied to send a model of 30 MB. In pieces that a socket takes at once
nothing is copied twice.
"""

from collections.abc import Iterator

import httpx

PIECE_BYTES = 128 * 1024


def send_in_pieces(client: httpx.Client) -> None:
    """From now on a client sends its bodies in pieces."""
    if not isinstance(client._transport, _InPieces):
        client._transport = _InPieces(client._transport)


class _InPieces(httpx.BaseTransport):
    """A transport that gives the one inside a body in pieces; its length stands in the head already."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if isinstance(request.stream, httpx.ByteStream):
            request.stream = _Pieces(request.read())
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


class _Pieces(httpx.SyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), PIECE_BYTES):
            yield self._content[start : start + PIECE_BYTES]


__all__ = ["send_in_pieces"]
