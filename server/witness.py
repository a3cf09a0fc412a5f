"""What the coordinator writes into its audit log, home/audit.sqlite, and what it answers to the hospitals' logs.

The gateway notes every update that arrives before it goes on to the ServerApp, and countersigns a receipt only for an
update that arrived: one receipt for a site and round, the same one as often as it is asked. The ServerApp notes which
updates entered a model and why others did not. So an auditor can follow each receipt into a model, or to a refusal.
"""

import base64
import logging
from collections.abc import Mapping
from hashlib import sha256

from flwr.proto.fleet_pb2 import PushMessagesRequest

from common.audit import notes, receipts, witness
from common.audit.entries import COORDINATOR
from common.audit.log import AuditLog, Transaction
from common.audit.receipts import Receipt
from common.audit.witness import ConflictError
from common.errors import AuditError, ErrorCode, UpdateError
from common.flower import unpack_message
from common.records import TrainReply, reply_from_record
from common.wire.wardround_pb2 import ExchangeCheckpointsReply, ExchangeCheckpointsRequest, SiteCheckpoint
from server.home import Home
from server.registry import Registry
from server.root import with_vouchers
from server.sites import Site

AUDIT_NAME = "audit.sqlite"

_log = logging.getLogger(__name__)


class UnknownUpdateError(AuditError):
    """A receipt for an update that has not arrived."""


def open_log(home: Home) -> AuditLog:
    """The coordinator's log, begun on first use.

    Raises:
        AuditError: it is another's, or cannot be used.
    """
    return AuditLog(home.path / AUDIT_NAME, COORDINATOR, home.log_key)


class Witness:
    """The gateway's part. For all of its threads."""

    def __init__(self, home: Home, registry: Registry) -> None:
        self.log = open_log(home)
        self._home, self._key, self._registry = home, home.log_key, registry

    def arrived(self, site: str, request: PushMessagesRequest, contents: Mapping[str, bytes]) -> None:
        """Note an update that is here as a whole, before it goes on. Other replies need no note.

        Args:
            site: whose certificate it came with.
            request: the reply's head and tree.
            contents: its objects by id.

        Raises:
            AuditError: the log cannot be written.
        """
        try:
            message = unpack_message(request.messages_list[0], request.message_object_trees[0], contents)
            reply = reply_from_record(message.content)
        except UpdateError:
            return  # the ServerApp refuses it, by name
        if not isinstance(reply, TrainReply):
            return
        fields = {"run": reply.run_hash, "round": reply.round, "site": site, "update": _sha256(reply.weights)}
        with self.log.transaction() as log:
            if all(dict(entry.fields) != fields for entry in log.about("arrived", reply.run_hash, reply.round)):
                log.append("arrived", fields)

    def countersign(self, site: Site, data: bytes, signature: bytes) -> bytes:
        """The coordinator's signature under a receipt.

        Raises:
            UnknownUpdateError: no such update arrived.
            AuditError: not the site's receipt, or another one than before for this round; the attempt is recorded.
        """
        try:
            receipt = Receipt.from_bytes(data)
            if receipt.site != site.name or site.receipt_key is None:
                raise AuditError(f"site {site.name} shows a receipt of site {receipt.site}")
            countersignature = receipts.countersign(receipt, signature, site.receipt_key, self._key)
        except AuditError:
            self.refused(site.name)
            raise
        with self.log.transaction() as log:
            known = [one for one in log.about("round", receipt.run, receipt.round) if _site(one.fields) == site.name]
            if not known:
                _check_arrived(log, receipt)
                log.append("round", receipts.entry_fields(receipt, signature, countersignature))
            elif known[0].fields["receipt"] == receipt.to_fields():
                return base64.b64decode(known[0].fields["countersignature"])
        if known:
            self.refused(site.name, receipt)
            raise AuditError(f"site {site.name} shows a second receipt for round {receipt.round}, unlike the first")
        return countersignature

    def refused(self, site: str, receipt: Receipt | None = None) -> None:
        """Note a receipt that was not taken."""
        about = {"run": receipt.run, "round": receipt.round} if receipt else {}
        self.log.append("refusal", {"code": str(ErrorCode.RECEIPT_MISSING), "site": site, **about})

    def exchange(self, site: Site, request: ExchangeCheckpointsRequest) -> ExchangeCheckpointsReply:
        """Take a site's checkpoint, show our own, and what other sites have seen.

        Raises:
            ConflictError: the site's log does not continue what was seen of it.
            AuditError: it is not signed with its key, or asks for what this log never had.
        """
        if site.receipt_key is None:
            raise AuditError(f"site {site.name} has no key for its audit log; let it join anew")
        known = witness.last_seen(self.log, site.receipt_key)
        if request.from_size != (known.size if known else 0):
            return ExchangeCheckpointsReply(seen_size=known.size if known else 0)
        note = request.checkpoint.decode("utf-8", errors="replace")
        seen = witness.observe(self.log, note, list(request.proof), site.receipt_key, origin=f"site/{site.name}")
        own = self.log.checkpoint()
        size = notes.peek(own).size
        return ExchangeCheckpointsReply(
            seen_size=seen.size,
            checkpoint=own.encode(),
            # Whoever knows more than there is sees for itself that this log was rolled back.
            proof=self.log.prove(request.known_size, size) if request.known_size <= size else [],
            others=self._others(site.name, size),
        )

    def _others(self, name: str, size: int) -> list[SiteCheckpoint]:
        """The newest checkpoint of every other active site, with the proof from what it has seen to our size."""
        found = []
        for other in self._registry.sites():
            if other.name == name or other.state != "active" or other.receipt_key is None or other.certificate is None:
                continue
            with self.log.transaction() as log:
                note = log.received(other.receipt_key)
            seen = None if note is None else notes.peek(note).seen
            if note is not None and seen is not None:
                proof, certificate = self.log.prove(seen.size, size), with_vouchers(self._home, other.certificate)
                found.append(
                    SiteCheckpoint(site=other.name, checkpoint=note.encode(), proof=proof, certificate_pem=certificate)
                )
        return found


class RoundNotes:
    """The ServerApp's part: what became of each update."""

    def __init__(self, home: Home, run_hash: str) -> None:
        self._log, self._run = open_log(home), run_hash

    def __call__(
        self, round_: int, entered: Mapping[str, str], refused: Mapping[str, ErrorCode], model: str | None
    ) -> None:
        """Note a round.

        Args:
            round_: from 1.
            entered: sites whose update is in the model -> its SHA-256.
            refused: the others, missing ones included, and why.
            model: SHA-256 of the new model; None where too few entered for one.
        """
        about = {"run": self._run, "round": round_}
        with self._log.transaction() as log:
            for site, code in sorted(refused.items()):
                log.append("refusal", {**about, "site": site, "code": str(code)})
            if model is not None:
                for site, update in sorted(entered.items()):
                    log.append("entered", {**about, "site": site, "update": update})
                log.append("aggregated", {**about, "model": model, "updates": len(entered)})


def _check_arrived(log: Transaction, receipt: Receipt) -> None:
    for entry in log.about("arrived", receipt.run, receipt.round):
        if (entry.fields["site"], entry.fields["update"]) == (receipt.site, receipt.update):
            return
    raise UnknownUpdateError(f"no such update of site {receipt.site} arrived for round {receipt.round}")


def _site(fields: Mapping[str, object]) -> object:
    receipt = fields["receipt"]
    return receipt["site"] if isinstance(receipt, dict) else None


def _sha256(data: bytes) -> str:
    return sha256(data).hexdigest()


__all__ = ["AUDIT_NAME", "ConflictError", "RoundNotes", "UnknownUpdateError", "Witness", "open_log"]
