"""TLS with a PACS (PS3.15 B.12): to it, and where others come to us, as they come."""

import socket
import ssl
from typing import TypeVar

from client.pacs.problems import PacsError
from client.pacs.settings import Dimse

HANDSHAKE_S = 10.0  # a peer that is silent in its handshake

_Context = TypeVar("_Context", bound=ssl.SSLContext)


class Lazily(ssl.SSLContext):
    """Shakes hands where an association is read, not where all are accepted: a silent peer stops nobody."""

    def wrap_socket(self, sock: socket.socket, *_: object, **__: object) -> ssl.SSLSocket:
        """As pynetdicom's server calls it."""
        sock.settimeout(HANDSHAKE_S)
        return super().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def to_pacs(peer: Dimse) -> ssl.SSLContext:
    """The PACS proves its name, and we ours where it asks.

    Raises:
        PacsError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=peer.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if peer.certificate is not None:
            context.load_cert_chain(peer.certificate, peer.key)
    except (ssl.SSLError, OSError) as error:
        raise _not_usable("ca, certificate and key") from error
    return context


def to_us(
    kind: type[_Context], certificate: str | None, key: str | None, ca: str | None, which: str
) -> _Context | None:
    """Of a port of ours; None: in the clear.

    Args:
        kind: of the context.
        certificate: ours, a PEM file; None: without TLS.
        key: of it.
        ca: who has signed those that others must show; None: they need show none.
        which: what a person calls the three files.

    Raises:
        PacsError: a file cannot be used.
    """
    if certificate is None:
        return None
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        if ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        raise _not_usable(which) from error
    return context


def _not_usable(which: str) -> PacsError:
    return PacsError(
        f"{which} cannot be used: expected PEM files, and a key without a passphrase that belongs to the certificate."
    )


__all__ = ["HANDSHAKE_S", "Lazily", "to_pacs", "to_us"]
