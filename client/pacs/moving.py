"""C-MOVE, for a PACS that offers no C-GET: it sends what we ask for to our AE title, on an association that it opens.

So a port is open here, from when a series is asked for until the answer has come. It takes associations of the PACS's
own AE title alone (over TLS with a certificate of the hospital), and objects of the series that was asked for alone.
What the PACS says that it has sent is compared with what has come: where an AE title is registered there with another
machine's address, a study goes to that machine, and the PACS calls it a success (PS3.4 C.4.2).
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association

from client.pacs.associations import MOST_PDU, bound
from client.pacs.listing import bounded
from client.pacs.problems import AwayError, PacsError, not_to_be_had
from client.pacs.receiving import MOST_BYTES, PACKED, PLAIN, Meter
from client.pacs.settings import Dimse
from client.pacs.tls import Lazily, to_us

MOVE = "1.2.840.10008.5.1.4.1.2.2.2"  # PS3.4 C.6.2.3: of the study root

_VERIFICATION = "1.2.840.10008.1.1"
_MOST_ASSOCIATIONS = 4
_STORED, _NOT_AS_ASKED = 0x0000, 0xA900  # PS3.4 B.2.3
_ALL = ("0.0.0.0", "::")  # noqa: S104 - named, not opened
_LOOK_S = 0.2


@dataclass
class Came:
    """What has come so far. meter: told of each piece of all. problem: of the first object that was not taken."""

    meter: Meter
    count: int = 0
    problem: Exception | None = None


@contextmanager
def receiving(peer: Dimse, meter: Meter, classes: Sequence[str], take: Callable[[bytes], None]) -> Iterator[Came]:
    """Our port, while the body runs.

    Args:
        peer: who may send, and where we wait.
        meter: told of each piece.
        classes: of the objects that are taken.
        take: an object in the DICOM file format; never two at a time.

    Raises:
        PacsError: the port is not to be had, or a file cannot be used.
    """
    came, one_at_a_time = Came(meter), threading.Lock()

    def stored(event: evt.Event) -> int:
        with one_at_a_time:
            try:
                take(event.encoded_dataset())
            except (PacsError, OSError, MemoryError) as error:
                came.problem = came.problem or error
                event.assoc.abort()
                return _NOT_AS_ASKED
            came.count += 1
            return _STORED

    entity = AE(ae_title=peer.calling)
    entity.require_called_aet, entity.require_calling_aet = True, [peer.called]
    entity.maximum_associations, entity.maximum_pdu_size = _MOST_ASSOCIATIONS, MOST_PDU
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = peer.timeout
    for one in (_VERIFICATION, *classes):
        entity.add_supported_context(one, [*PLAIN, *PACKED])
    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, lambda event: bound(event.assoc, meter, MOST_BYTES)),
        (evt.EVT_C_STORE, stored),
    ]
    tls = to_us(Lazily, peer.certificate, peer.key, peer.ca, "ca, certificate and key")
    try:
        where = (peer.move_address or "", peer.move_port or 0)
        server: Any = entity.start_server(where, block=False, evt_handlers=handlers, ssl_context=tls)
    except OSError as error:
        advice = "Correct move-address and move-port in pacs.toml, or stop what listens there."
        raise not_to_be_had(f"{peer.move_address}:{peer.move_port}", error, advice) from error
    try:
        yield came
    finally:
        server.shutdown()


def ask(association: Association, peer: Dimse, keys: Dataset, most: int, came: Came) -> int:
    """Have what fits sent to us, and wait for the end of it.

    Args:
        association: with the PACS.
        peer: the PACS.
        keys: what is asked for.
        most: answers that are taken.
        came: what comes meanwhile.

    Returns:
        The last status (PS3.4 C.4.2.1.5).

    Raises:
        PacsError: it offers none, says that it has sent something else than came, or sends what must not come.
        AwayError: it breaks off, or is silent.
    """
    if not any(one.abstract_syntax == MOVE for one in association.accepted_contexts):
        raise PacsError(
            f"{peer.called} offers {peer.calling} no C-MOVE either. Have C-GET or C-MOVE (study root) allowed there, "
            "or use its DICOMweb: `wardround-client pacs add NAME --url URL`."
        )
    association.dimse_timeout = None  # it may say nothing while it sends
    status = Dataset()
    with _watched(association, peer.timeout, came):
        for status, _ in bounded(association.send_c_move(keys, peer.calling, MOVE), most, "answers to one C-MOVE"):  # noqa: B007
            if came.problem is not None:
                break
    if came.problem is not None:
        raise came.problem
    if "Status" not in status:
        raise AwayError(
            f"{peer.called} ended the association, or was silent for {peer.timeout:g} s (timeout in pacs.toml) while "
            f"it sent. Try again; if it stays so, have {peer.calling} registered there as {place_of(peer)}, with "
            "retrieve (C-MOVE) allowed, and its log read."
        )
    told = [status.get(f"NumberOf{what}Suboperations") for what in ("Completed", "Warning", "Failed")]
    completed, warned, failed = (int(one or 0) for one in told)
    if failed or status.Status == 0xB000:
        raise PacsError(
            f"{peer.called} could not send {failed or 'some'} of the objects to us (C-MOVE status "
            f"{int(status.Status):04X}). Check that it reaches {place_of(peer)}, and its log for the reason."
        )
    if told[0] is not None and completed + warned != came.count:
        raise PacsError(
            f"{peer.called} says that it has sent {completed + warned} objects, and {came.count} came here. Have it "
            f"checked there where {peer.calling} is: it must be {place_of(peer)}."
        )
    return int(status.Status)


def refused(peer: Dimse, status: int) -> PacsError:
    """What a status that is no success means, and what to do."""
    code = f"C-MOVE status {status:04X}"
    if status == 0xA801:
        return PacsError(
            f"{peer.called} does not know where {peer.calling} is ({code}). Have that AE title registered there, as "
            f"{place_of(peer)}."
        )
    if status >> 8 == 0xA7:
        return AwayError(f"{peer.called} has not the means to send it now ({code}).")
    return PacsError(
        f"{peer.called} refuses to send it ({code}). Have {peer.calling} registered there as {place_of(peer)}, and "
        "retrieve (C-MOVE) allowed for it."
    )


def place_of(peer: Dimse) -> str:
    """Where the PACS must send to."""
    address = "this machine" if peer.move_address in _ALL else peer.move_address
    return f"{address}, port {peer.move_port}{', TLS' if peer.is_encrypted else ''}"


@contextmanager
def _watched(association: Association, patience_s: float, came: Came) -> Iterator[None]:
    """Wake up who waits for an answer, where nothing comes on either association, or what must not."""
    over, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            if came.problem is not None or time.monotonic() - max(came.meter.last, began) > patience_s:
                association.dimse.msg_queue.put((None, None))  # as pynetdicom says that the peer is gone
                return

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


__all__ = ["MOVE", "Came", "ask", "place_of", "receiving", "refused"]
