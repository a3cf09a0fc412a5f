"""What the coordinator writes into its audit log, home/audit.sqlite, and what it answers to the hospitals' logs.

The gateway notes every update that arrives before it goes on to the ServerApp, if it is one to what the site was asked:
of that run, that round and that model, as the message says, whatever the reply does. It countersigns a receipt only for
such an update, the last one that arrived: one receipt for a site and round, the same one as often as it is asked; after
that no other update is taken. So no hospital gets a signature for what the coordinator never asked, or did not use.

The ServerApp notes which updates entered a model and why others did not. So an auditor can follow each receipt into a
model, or to a refusal.
"""

import base64
import logging
from collections.abc import Callable, Mapping

from flwr.proto.fleet_pb2 import PushMessagesRequest

from common.audit import notes, receipts, witness
from common.audit.entries import COORDINATOR, Value
from common.audit.log import AuditLog, Transaction
from common.audit.receipts import Receipt
from common.audit.witness import ConflictError
from common.errors import AuditError, ErrorCode, UpdateError
from common.flower.packing import unpack_message
from common.rescue import restored
from common.wire.messages import Request, TrainReply, TrainRequest
from common.wire.records import reply_from_record
from common.wire.wardround_pb2 import ExchangeCheckpointsReply, ExchangeCheckpointsRequest, SiteCheckpoint
from server.home.folder import Home
from server.home.root import with_vouchers
from server.registry.registry import Registry
from server.registry.sites import Site

AUDIT_NAME = "audit.sqlite"
# Checkpoints of other sites that a site is shown in one exchange.
OTHERS_AT_ONCE = 16

_log = logging.getLogger(__name__)


class UnknownUpdateError(AuditError):
    """A receipt for an update that has not arrived."""


def open_log(home: Home) -> AuditLog:
    """The coordinator's log, begun on first use.

    Raises:
        AuditError: it is another's, or cannot be used.
    """
    return AuditLog(home.path / AUDIT_NAME, COORDINATOR, home.log_key)


class GatewayTrail:
    """The gateway's part. For all of its threads."""

    def __init__(self, home: Home, registry: Registry) -> None:
        self.log = open_log(home)
        self._home, self._key, self._registry = home, home.log_key, registry
        self._turns: dict[str, int] = {}  # site -> which of the others it is shown next

    def arrived(
        self,
        site: str,
        ask: Callable[[], Request | None],
        request: PushMessagesRequest,
        contents: Mapping[str, bytes],
    ) -> None:
        """Note an update that is here as a whole, before it goes on. Other replies need no note.

        Args:
            site: whose certificate it came with.
            ask: tells what the message said that it answers.
            request: the reply's head and tree.
            contents: its objects by id, which they hash to.

        Raises:
            UpdateError: the site has a receipt for another update of this round.
            AuditError: the log cannot be written.
        """
        try:
            message = unpack_message(request.messages_list[0], request.message_object_trees[0], contents, hashed=True)
            reply = reply_from_record(message.content)
        except UpdateError:
            return  # the ServerApp refuses it, by name
        if not isinstance(reply, TrainReply):
            return
        asked = ask()
        if not isinstance(asked, TrainRequest) or (asked.run_hash, asked.round) != (reply.run_hash, reply.round):
            _log.warning("site %s answers with an update that it was not asked for; it is not noted", site)
            return  # the ServerApp refuses this one, too
        fields = {"run": reply.run_hash, "round": reply.round, "site": site, "update": reply.sha256}
        fields["received"] = asked.sha256
        with self.log.transaction() as log:
            signed = _receipt_of(log, site, reply.run_hash, reply.round)
            if signed is not None and signed["update"] != fields["update"]:
                raise UpdateError(f"site {site} has a receipt for another update of round {reply.round}")
            if _last_arrived(log, site, reply.run_hash, reply.round) != fields:
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
            known = log.about("round", receipt.run, receipt.round, site.name)
            if known and known[0].fields["receipt"] == receipt.to_fields():
                return base64.b64decode(known[0].fields["countersignature"])
            wrong = (
                f"a second one for round {receipt.round}, unlike the first" if known else _check_arrived(log, receipt)
            )
            if not wrong:
                log.append("round", receipts.entry_fields(receipt, signature, countersignature))
        if wrong:
            self.refused(site.name, receipt)
            raise AuditError(f"site {site.name} shows a receipt that is not signed here: {wrong}")
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
        if 0 < request.known_size <= size:
            restored.settle(self._home.path)  # what this site has seen of our log is in it: `observe` has looked
        return ExchangeCheckpointsReply(
            seen_size=seen.size,
            checkpoint=own.encode(),
            # Whoever knows more than there is sees for itself that this log was rolled back.
            proof=self.log.prove(request.known_size, size) if request.known_size <= size else [],
            others=self._others(site.name, size),
        )

    def _others(self, name: str, size: int) -> list[SiteCheckpoint]:
        """The newest checkpoints of other active sites, with the proof from what each has seen to our size.

        Of many sites some each time, in turn, so that a round costs no more than in proportion to them.
        """
        sites = [one for one in self._registry.sites() if one.name != name and one.state == "active"]
        start = self._turns.get(name, 0) % max(1, len(sites))
        self._turns[name] = start + OTHERS_AT_ONCE
        found = []
        with self.log.transaction() as log:
            for other in (*sites[start:], *sites[:start])[:OTHERS_AT_ONCE]:
                if other.receipt_key is None or other.certificate is None:
                    continue
                note = log.received(other.receipt_key)
                seen = None if note is None else notes.peek(note).seen
                if note is not None and seen is not None:
                    proof, certificate = log.prove(seen.size, size), with_vouchers(self._home, other.certificate)
                    found.append(
                        SiteCheckpoint(
                            site=other.name, checkpoint=note.encode(), proof=proof, certificate_pem=certificate
                        )
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
            # Of an update that came to an earlier try of the round, and whose site is away now, it is said as well.
            came = {str(one.fields["site"]) for one in log.about("arrived", self._run, round_)}
            left = dict.fromkeys(came - entered.keys(), ErrorCode.DEADLINE)
            for site, code in sorted((left | dict(refused)).items()):
                log.append("refusal", {**about, "site": site, "code": str(code)})
            if model is not None:
                for site, update in sorted(entered.items()):
                    log.append("entered", {**about, "site": site, "update": update})
                log.append("aggregated", {**about, "model": model, "updates": len(entered)})


def _last_arrived(log: Transaction, site: str, run_hash: str, round_: int) -> Mapping[str, Value] | None:
    """The site's update of a round that came last, as it was noted."""
    noted = log.about("arrived", run_hash, round_, site)
    return dict(noted[-1].fields) if noted else None


def _receipt_of(log: Transaction, site: str, run_hash: str, round_: int) -> Mapping[str, Value] | None:
    """The receipt of a site for a round that was countersigned."""
    signed = log.about("round", run_hash, round_, site)
    return signed[0].fields["receipt"] if signed else None


def _check_arrived(log: Transaction, receipt: Receipt) -> str:
    """What a receipt says that is not so; empty if it is for the update that arrived last.

    Raises:
        UnknownUpdateError: no such update arrived.
    """
    noted = _last_arrived(log, receipt.site, receipt.run, receipt.round)
    if noted is None or noted["update"] != receipt.update:
        raise UnknownUpdateError(f"no such update of site {receipt.site} arrived for round {receipt.round}")
    # Entries of earlier versions do not say which model was sent.
    return "" if noted.get("received", receipt.received) == receipt.received else "it received another model"


__all__ = ["AUDIT_NAME", "ConflictError", "GatewayTrail", "RoundNotes", "UnknownUpdateError", "open_log"]
