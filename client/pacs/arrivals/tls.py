"""TLS of what waits for senders: our certificate, and where it is asked for one of theirs (PS3.15 B.12)."""

import ssl
from typing import TypeVar

from client.pacs.arrivals.settings import Waiting
from client.pacs.problems import PacsError

HANDSHAKE_S = 10.0  # a peer that is silent in its handshake

_Context = TypeVar("_Context", bound=ssl.SSLContext)


def context_of(settings: Waiting, kind: type[_Context]) -> _Context | None:
    """TLS as the settings have it; None: in the clear.

    Raises:
        PacsError: a file cannot be used.
    """
    if settings.certificate is None:
        return None
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(settings.ca)
    except (ssl.SSLError, OSError) as error:
        raise PacsError(
            "the files of --tls-certificate, --tls-key and --tls-ca cannot be used: expected PEM files, and a key "
            "without a passphrase that belongs to the certificate."
        ) from error
    return context


def not_to_be_had(where: str, error: OSError) -> PacsError:
    """A port that cannot be opened."""
    return PacsError(
        f"{where} is not to be had ({error.strerror or 'not an address of this machine'}). Give another "
        "address or port with --listen, or stop what listens there."
    )


__all__ = ["HANDSHAKE_S", "context_of", "not_to_be_had"]
