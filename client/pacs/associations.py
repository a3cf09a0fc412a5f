"""How an association with a PACS is bounded, and why one was not opened (PS3.8).

What a peer could do with pynetdicom without end is bounded where the bytes come in (`bound`): the length of a PDU, of a
message, and the messages that wait. Why an association was not opened pynetdicom only logs, so where that happens the
connection is tried by hand.
"""

import socket
import ssl
from typing import Any

from pynetdicom.association import Association

from client.pacs.problems import AwayError, PacsError
from client.pacs.receiving import Meter
from client.pacs.settings import Dimse
from client.pacs.tls import to_pacs

CONNECT_S = 10.0
MOST_PDU = 1 << 18
_MOST_WAITING = 16
# PS3.8 9.3.4: who refused, and why -> what to do.
_REJECTED = {
    (
        1,
        3,
    ): "it does not know our AE title {calling}. Have it registered there, or give the one that is, with --calling",
    (1, 7): "it is not called {called}. Give its AE title with --called",
    (3, 1): "it is too busy now",
    (3, 2): "it has no association left for us now",
}


def bound(association: Association, meter: Meter, most: int) -> None:
    """Let nothing in without end.

    Args:
        association: whose connection has just been opened.
        meter: told of each piece.
        most: bytes of one message.
    """
    connection: Any = association.dul.socket
    waiting = association.dimse.msg_queue
    receive, state = connection.recv, {"since": 0, "seen": 0}

    def bounded(count: int) -> bytearray:
        if count > MOST_PDU + 64:
            raise OSError("a PDU is longer than was agreed")
        while waiting.qsize() > _MOST_WAITING and not association._kill:
            meter.pause()
        came: bytearray = receive(count)
        meter.take(len(came))
        state["since"] = 0 if association.dimse.message is None else state["since"] + len(came)
        if state["since"] > most:
            raise OSError("a message is too long")
        return came

    connection.recv = bounded


def not_opened(peer: Dimse, association: Association) -> PacsError:
    """Why an association with a PACS was not established."""
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        source, reason = answer.result_source, answer.diagnostic
        advice = _REJECTED.get((source or 0, reason or 0), "have its log read for the reason")
        kind = AwayError if source == 3 else PacsError
        return kind(
            f"{peer.called} refused the association: {advice.format(calling=peer.calling, called=peer.called)}."
        )
    if association.acceptor.primitive is not None and not association.accepted_contexts and association.is_aborted:
        return PacsError(
            f"{peer.called} took the association and none of what we asked for. Have {peer.calling} allowed to "
            "query, to retrieve, and to store where results are sent there."
        )
    return _why(peer)


def _why(peer: Dimse) -> PacsError:  # noqa: PLR0911 - one a cause
    """Why no association was opened, by trying the connection alone."""
    where = f"{peer.host}:{peer.port}"
    try:
        with socket.create_connection((peer.host, peer.port), min(CONNECT_S, peer.timeout)) as connection:
            if peer.is_encrypted:
                with to_pacs(peer).wrap_socket(connection, server_hostname=peer.host):
                    pass
    except socket.gaierror:
        return AwayError(
            f"the name {peer.host} is not known here. Correct --host, or have IT correct the name service."
        )
    except ssl.SSLCertVerificationError as error:
        return PacsError(
            f"{where} shows a certificate that does not fit ({error.verify_message}). Give the hospital's CA with "
            f"--ca; the certificate must name {peer.host}."
        )
    except (ssl.SSLError, ConnectionResetError):
        return PacsError(
            f"{where} answers, and not as TLS with us. If the PACS speaks TLS on another port, give that with --port; "
            "if it speaks none, add it without --ca."
        )
    except TimeoutError:
        return AwayError(f"{where} does not answer in {min(CONNECT_S, peer.timeout):g} s. Check address and firewall.")
    except ConnectionRefusedError:
        return AwayError(f"nothing listens at {where}. Check host and port, and whether the PACS is started.")
    except OSError as error:
        return AwayError(f"{where} is out of reach ({error.strerror or 'no answer'}). Check address and firewall.")
    wants = (
        "If it asks for a certificate of ours, give --certificate and --key"
        if peer.is_encrypted
        else "If it speaks TLS there, give --ca; if it speaks something else, another --port"
    )
    return AwayError(f"{where} takes the connection, and answers nothing that is DICOM. {wants}.")


__all__ = ["CONNECT_S", "MOST_PDU", "bound", "not_opened"]
