"""predict --listen: studies that others send, answered as they come, and the answers sent to a PACS."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from client.pacs.arrivals.listener import QUARANTINE, Listener
from client.pacs.arrivals.settings import Waiting
from client.pacs.caller import Caller
from client.pacs.sending import Sender
from client.pacs.settings import Peer, peer_of
from client.trail import audit_trail
from common.console.cli import note
from common.errors import WardroundError

_LOOK_S = 0.5
_TROUBLE_PAUSE_S = 60.0
# Of OUT; hidden, so that nobody takes it for results.
_RECEIVED = ".received"

_log = logging.getLogger(__name__)


def listen(  # noqa: PLR0917 - as they are typed
    model: Path,
    out: Path,
    home: Path,
    settings: Waiting,
    send_to: str | None,
    device: str,
    personal: Callable[[str], bytes] | None,
    stopped: Callable[[], bool],
    *,
    reports: bool,
) -> None:
    """Receive, answer, and send the answers, until told to stop; the study in hand is finished first.

    Raises:
        ConfigError: the model cannot be loaded, the port not opened, or OUT not written; or OUT is another model's.
    """
    from client.predict.prediction import load_predictor, reading  # noqa: PLC0415 - torch
    from client.predict.received import answer  # noqa: PLC0415
    from client.predict.service import RESULT_NAME, claim, only_one  # noqa: PLC0415

    peer = None if send_to is None else peer_of(home, send_to)
    with ExitStack() as open_:
        open_.enter_context(only_one(out))
        segmenter = load_predictor(model, device, personal, reports=reports)
        claim(out, segmenter.sha256)
        find, read = open_.enter_context(reading(segmenter.run))
        if peer is not None:
            caller = open_.enter_context(Caller(home, peer))
            open_.enter_context(Sender(caller, peer.name, lambda: _whole(out, RESULT_NAME), lambda: audit_sent(home)))
        listener = open_.enter_context(Listener(home, settings, out / _RECEIVED))
        _tell(settings, peer, out)
        while not stopped():
            for folder in listener.whole(_LOOK_S)[:1]:
                try:
                    problem = answer(segmenter, find, read, folder, out.absolute())
                    listener.done(folder) if problem is None else listener.set_aside(folder, problem)
                except (WardroundError, OSError) as error:  # no space, or no reader: it is tried again
                    _log.error("waiting: %s", error if isinstance(error, WardroundError) else error.strerror)
                    _rest(stopped)
    _log.info("stopped")


def audit_sent(home: Path) -> None:
    """Results have arrived at a PACS."""
    audit_trail.note(home, "results-sent")


def _whole(out: Path, last: str) -> Iterator[Path]:
    """The folders of results that are whole."""
    yield from (path.parent for path in sorted(out.glob(f"*/{last}")))


def _tell(settings: Waiting, peer: Peer | None, out: Path) -> None:
    how = "in the clear" if settings.certificate is None else "over TLS"
    note(f"Waiting as {settings.where}, {how}, for {settings.senders}.")
    if settings.certificate is None and not settings.is_local:
        note("What is sent here is not encrypted, and an AE title proves nothing: give --tls-certificate and --tls-ca.")
    to = "nowhere: give --send-to" if peer is None else f"{peer.name}, {peer.address}"
    note(f"Results go to {out}, and from there to {to}.")
    note(f"What cannot be answered is kept in {out / _RECEIVED / QUARANTINE}.")
    note("Ctrl-C or SIGTERM stops after the study in hand.")


def _rest(stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + _TROUBLE_PAUSE_S
    while not stopped() and time.monotonic() < end:
        time.sleep(_LOOK_S)
