"""The process that waits for what others send by C-STORE: it sees the hospital's network, nothing of the federation.

Started by `client.pacs.listener`. Before it opens its port it hides the site's keys from itself, and lets itself wait
at that port alone, connect to nothing, and write into the staging folder alone; its environment holds no secret, and
what its libraries print goes nowhere. Only then it imports what speaks and parses. It judges no image and moves no
study: it says which have come to their end (`client.pacs.arriving`).

    python -P -m client.pacs.listening --home HOME --staging FOLDER --port PORT     frames on stdin and stdout
"""

import argparse
import resource
import select
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.system import sandbox
from common.wire import frames

if TYPE_CHECKING:
    from client.pacs.arriving import Arrivals
    from client.pacs.settings import Listening

_MEMORY = 6 << 30  # bytes of address space
_LOOK_S, _BEAT_S = 0.1, 5.0
_MOST_ASSOCIATIONS = 8
_TLS_S = 10.0  # a peer that is silent in its handshake


def main(arguments: Sequence[str] | None = None) -> int:
    """Receive until the pipe is closed."""
    parser = argparse.ArgumentParser(prog="client.pacs.listening", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the site's home folder")
    parser.add_argument("--staging", type=Path, required=True, help="the folder to write into")
    parser.add_argument("--port", type=int, required=True, help="to wait at")
    given = parser.parse_args(arguments)
    sandbox.die_with_parent()
    sandbox.shed()
    keys = sandbox.hide([given.home / name for name in sandbox.SECRETS])
    disk = sandbox.lock([given.staging], listening=[given.port])
    questions, answers = sandbox.take_pipe()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    frames.send(answers, {"kind": "ready", "keys": keys, "disk": disk})
    question = frames.receive(questions, lambda _header: ())
    if question is not None:
        _listen(question, given.staging, questions, lambda header: frames.send(answers, header))
    return 0


def _listen(question: dict[str, Any], staging: Path, questions: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Open the port, and tell of each study that comes to its end, until the pipe is closed."""
    from client.pacs import problems  # noqa: PLC0415 - what speaks and parses comes after the sandbox
    from client.pacs.arriving import Arrivals  # noqa: PLC0415
    from client.pacs.settings import Listening  # noqa: PLC0415
    from common.config import validate  # noqa: PLC0415

    settings = validate(Listening, question["settings"])
    arrivals = Arrivals(staging, settings.quiet)
    try:
        server = _opened(settings, arrivals)
    except problems.PacsError as error:
        tell(problems.to_json(error))
        return
    tell({"kind": "listening"})
    told = time.monotonic()
    try:
        while not select.select([questions], [], [], _LOOK_S)[0]:
            for one in arrivals.finished():
                tell({"kind": "arrived", "study": vars(one)})
            if time.monotonic() - told >= _BEAT_S:
                told = time.monotonic()
                tell({"kind": "beat", "refused": arrivals.refused})
    finally:
        server.shutdown()


def _opened(settings: "Listening", arrivals: "Arrivals") -> Any:
    """The server at its port.

    Raises:
        PacsError: the port is not to be had, or a file cannot be used.
    """
    from pynetdicom import AE, _config, evt  # noqa: PLC0415 - after the sandbox

    from client.pacs.arriving import IMAGES  # noqa: PLC0415
    from client.pacs.dimse import MOST_PDU, PACKED, PLAIN, bound  # noqa: PLC0415
    from client.pacs.problems import PacsError  # noqa: PLC0415
    from client.pacs.receiving import MOST_BYTES, Meter  # noqa: PLC0415

    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    entity = AE(ae_title=settings.title)
    entity.require_called_aet, entity.require_calling_aet = True, list(settings.accept)
    entity.maximum_associations, entity.maximum_pdu_size = _MOST_ASSOCIATIONS, MOST_PDU
    # Longer than the longest pause: what is whole is known before a sender that keeps silent is let go.
    entity.network_timeout = max(settings.quiet, 60.0) + 60.0
    entity.acse_timeout = entity.dimse_timeout = 30.0
    entity.add_supported_context("1.2.840.10008.1.1")  # verification
    for one in IMAGES:
        entity.add_supported_context(one, [*PLAIN, *PACKED])
    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, lambda event: bound(event.assoc, Meter(None, lambda _total: None), MOST_BYTES)),
        (evt.EVT_C_STORE, lambda event: arrivals.take(id(event.assoc), event.encoded_dataset())),
        (evt.EVT_RELEASED, lambda event: arrivals.ended(id(event.assoc), released=True)),
        # After a release this finds nothing left to say.
        (evt.EVT_ABORTED, lambda event: arrivals.ended(id(event.assoc), released=False)),
        (evt.EVT_CONN_CLOSE, lambda event: arrivals.ended(id(event.assoc), released=event.assoc.is_released)),
    ]
    where = (settings.address, settings.port)
    try:
        return entity.start_server(where, block=False, evt_handlers=handlers, ssl_context=_tls(settings))
    except OSError as error:
        raise PacsError(
            f"{settings.where} is not to be had ({error.strerror or 'not an address of this machine'}). Give another "
            "address or port with --listen, or stop what listens there."
        ) from error


def _tls(settings: "Listening") -> Any:
    """TLS as the settings have it; None: in the clear.

    Raises:
        PacsError: a file cannot be used.
    """
    import socket  # noqa: PLC0415 - after the sandbox
    import ssl  # noqa: PLC0415

    from client.pacs.problems import PacsError  # noqa: PLC0415

    if settings.certificate is None:
        return None

    class Lazily(ssl.SSLContext):
        """Shakes hands where the association is read, not where all are accepted: a silent peer stops nobody."""

        def wrap_socket(self, sock: socket.socket, *_: Any, **__: Any) -> ssl.SSLSocket:
            sock.settimeout(_TLS_S)
            return super().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    context = Lazily(ssl.PROTOCOL_TLS_SERVER)
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


if __name__ == "__main__":
    sys.exit(main())
