"""TLS in front of a server in the clear, as a reverse proxy does it: Debian's Orthanc 1.10 ends when asked by HTTPS."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.client.pacs.bad_dimse import raw_server


@contextmanager
def tls_front(behind: int, both: Path, clients: Path | None = None) -> Iterator[int]:
    """Its port.

    Args:
        behind: port of the server in the clear.
        both: PEM file with certificate and key.
        clients: the CA of those who may connect; None: all may.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)

    def serve(connection: socket.socket) -> None:
        with (
            context.wrap_socket(connection, server_side=True) as outer,
            socket.create_connection(("127.0.0.1", behind)) as inner,
        ):
            back = threading.Thread(target=copy, args=(inner, outer), daemon=True)
            back.start()
            copy(outer, inner)
            back.join()

    def copy(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(1 << 16):
                other.sendall(piece)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    with raw_server(serve) as port:
        yield port
