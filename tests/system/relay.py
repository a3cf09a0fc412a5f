"""A wire tap between a hospital and its coordinator: it passes every byte on and keeps a copy of each direction."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Capture:
    """What went over the wire: one byte string for each direction of each connection."""

    port: int
    streams: list[bytearray] = field(default_factory=list)

    def __contains__(self, secret: bytes) -> bool:
        return any(secret in stream for stream in self.streams)

    def __len__(self) -> int:
        return sum(map(len, self.streams))


@contextmanager
def tapped(target: int) -> Iterator[Capture]:
    """Listen on a free port of 127.0.0.1 and relay to another."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        capture = Capture(listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, target, capture), daemon=True).start()
        yield capture


def tls_records(stream: bytes) -> list[int]:
    """Content types of the TLS records a byte stream is made of (RFC 8446, section 5.1).

    Raises:
        ValueError: some byte does not belong to a well-formed record.
    """
    kinds, at = [], 0
    while at < len(stream):
        kind, version, length = stream[at], stream[at + 1 : at + 3], int.from_bytes(stream[at + 3 : at + 5], "big")
        if kind not in (20, 21, 22, 23) or version not in (b"\x03\x01", b"\x03\x03") or not 0 < length <= 2**14 + 256:
            raise ValueError(f"byte {at} does not start a TLS record")
        kinds.append(kind)
        at += 5 + length
    return kinds


def _accept(listener: socket.socket, target: int, capture: Capture) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        try:
            far = socket.create_connection(("127.0.0.1", target))
        except OSError:
            near.close()
            continue
        for source, sink in ((near, far), (far, near)):
            stream = bytearray()
            capture.streams.append(stream)
            threading.Thread(target=_pump, args=(source, sink, stream), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, stream: bytearray) -> None:
    try:
        while chunk := source.recv(65536):
            stream += chunk
            sink.sendall(chunk)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
