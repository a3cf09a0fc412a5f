"""The audit log's conversation with the coordinator: receipts are countersigned, checkpoints are exchanged.

After an update has left, the coordinator signs its receipt; until it has, the next round of training is refused. After
each round, and every few minutes besides, each side shows that its log only grew, and the coordinator passes on what
the other hospitals have seen of it, with the certificates in which the root names their keys; what is not signed with
such a key counts for nothing, and is said. What does not fit is a conflict: it is written down, the agent does no more
work, and no command sets it aside. The way back is a new enrolment, after people have looked at both logs
(docs/audit.md).
"""

import base64
import logging
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from client.trail.outbox import Parcel
from common.audit import notes, witness
from common.audit.entries import COORDINATOR
from common.audit.log import AuditLog
from common.audit.receipts import Receipt, countersigned_fields, is_countersigned
from common.audit.witness import ConflictError
from common.console.logs import Trouble
from common.errors import AuditError, EnrolmentError, ErrorCode, PolicyError
from common.identity.receipt_keys import receipt_key_of
from common.rescue import restored
from common.system.files import write_private
from common.text import NAME_PATTERN
from common.wire.pushback import retry_after
from common.wire.wardround_pb2 import ExchangeCheckpointsRequest, SubmitReceiptRequest

CONFLICT_NAME = "audit-conflict.txt"
# Between two exchanges while nothing is trained.
IDLE_S = 600.0
# Until a receipt that is not signed is shown again.
RETRY_S = 5.0
CALL_TIMEOUT_S = 30.0
# After so many exchanges in which another hospital has seen nothing new, it is said.
PATIENCE = 10

# The coordinator cannot be reached just now.
_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
)

_NO_NAME = "(not a name)"
_MOST_RECORDED = 100
_ALL = 2**31  # as many as there are
_RECENT = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pending:
    """A receipt without the coordinator's signature."""

    receipt: Receipt
    signature: bytes


@dataclass
class _Other:
    """Another hospital, as its own signature and the root show it."""

    key: bytes
    size: int
    still: int = 0  # exchanges without anything new


class LogExchange:
    """What is under way between the two logs. For all threads of the agent."""

    def __init__(self, home: Path, log: AuditLog, log_key: bytes) -> None:
        self._home, self._path, self._log, self._log_key = home, home / CONFLICT_NAME, log, log_key
        self._lock = threading.Lock()
        self._pending = _unacknowledged(log)
        self._delivered: set[str] = set()  # the coordinator took these updates; it cannot say that they never came
        self._acknowledged = 0  # entries of this log that the coordinator knows
        self._others: dict[str, _Other] = {}
        self._doubts: dict[str, str] = {}  # other hospitals whose checkpoint is not believed, and why
        self._recorded: set[str] = set()  # those of them for which this log has an entry
        self._next = 0.0
        self._alarmed = ""
        self._trouble = Trouble(_log)
        self.has_compared = False  # with the coordinator's, by this process
        # What is wrong with the exchange, though the coordinator is there.
        self.problem = "" if restored.made(home) is None else _not_compared(home)

    @property
    def conflict(self) -> str:
        """Why no work is done; empty while all fits."""
        return self._alarmed or (self._path.read_text(encoding="utf-8").strip() if self._path.exists() else "")

    @property
    def is_due(self) -> bool:
        """Whether it is time to exchange checkpoints."""
        return time.monotonic() >= self._next

    def check_conflict(self) -> None:
        """Refuse all work after a conflict, and in a home that was restored before the logs were compared.

        Raises:
            PolicyError: there was one, or they were not.
        """
        if conflict := self.conflict:
            raise PolicyError(f"no work is done: {conflict}", ErrorCode.AUDIT_CONFLICT)
        if restored.made(self._home) is not None:
            raise PolicyError(f"no work is done: {_not_compared(self._home)}", ErrorCode.AUDIT_CONFLICT)

    def check_receipts(self, stub: Any) -> None:
        """Refuse the next round while the coordinator has not signed for the last one. It is asked once more before.

        Raises:
            PolicyError: it was reached, and did not sign.
            grpc.RpcError: it is away.
        """
        self.submit(stub)
        if self._pending:
            raise PolicyError(
                "the coordinator has an update of this site and did not sign its receipt. Nothing is trained until it "
                "does. Ask the coordinator; see logs/agent.log.",
                ErrorCode.RECEIPT_MISSING,
            )

    def delivered(self, parcel: Parcel) -> None:
        """An update has arrived at the coordinator."""
        name = parcel.receipt.sha256
        with self._lock:
            try:
                known = _is_acknowledged(self._log, parcel.receipt)
            except AuditError as error:  # such as a full disk: the coordinator may sign twice
                self._trouble.say(str(error))
                known = False
            if not known:
                self._pending[name] = _Pending(parcel.receipt, parcel.signature)
                self._delivered.add(name)
            self._next = 0.0

    def submit(self, stub: Any) -> None:
        """Ask the coordinator to sign the receipts it has not signed yet, and write its signatures down.

        Raises:
            grpc.RpcError: it is away.
        """
        with self._lock:
            for name, one in list(self._pending.items()):
                if self._submit(stub, name, one):
                    del self._pending[name]
                    self._delivered.discard(name)

    def compare(self, stub: Any, roots_pem: bytes) -> None:
        """The first exchange of this process, before its first message: what an old copy of a home would do again."""
        if not self.has_compared:
            self.exchange(stub, roots_pem)

    def exchange(self, stub: Any, roots_pem: bytes) -> None:
        """Show this log, look at the coordinator's, and compare with what others have seen of it.

        Args:
            stub: of the coordinator's Coordination service.
            roots_pem: that vouch for the other hospitals' keys.

        Raises:
            grpc.RpcError: the coordinator is away.
            AuditError: the log cannot be used, or what came is not signed; a conflict is kept, see `conflict`.
        """
        self._next = time.monotonic() + RETRY_S
        self.submit(stub)
        with self._lock:
            try:
                self._exchange(stub, roots_pem)
                self.problem = next(iter(self._doubts.values()), "")
            except ConflictError as error:
                self._alarm(str(error))
            except grpc.RpcError as error:
                if _is_away(error):
                    raise
                self.problem = f"the coordinator does not exchange checkpoints ({error.code().name})"
                self._trouble.say(self.problem)
            if not self._pending:
                self._next = time.monotonic() + IDLE_S

    def _submit(self, stub: Any, name: str, one: _Pending) -> bool:
        """Whether this receipt is settled."""
        receipt = one.receipt
        request = SubmitReceiptRequest(receipt=receipt.to_bytes(), signature=one.signature)
        try:
            signature = stub.SubmitReceipt(request, timeout=CALL_TIMEOUT_S).signature
        except grpc.RpcError as error:
            if _is_away(error):
                raise
            if error.code() == grpc.StatusCode.NOT_FOUND and name not in self._delivered:
                _log.warning("the update of round %d never arrived, its receipt stays unsigned", receipt.round)
                return True
            self._trouble.say(
                f"the coordinator does not sign the receipt of round {receipt.round}: {error.code().name}"
            )
            return False
        if not is_countersigned(receipt, one.signature, signature, self._log_key):
            self._trouble.say(f"the signature under the receipt of round {receipt.round} is not the coordinator's")
            return False
        self._log.append("countersigned", countersigned_fields(receipt, signature))
        return True

    def _exchange(self, stub: Any, roots_pem: bytes) -> None:
        known = witness.last_seen(self._log, self._log_key)
        note = self._log.checkpoint()
        size = notes.peek(note).size
        for _ in range(2):  # the second time from where the coordinator says it is
            request = ExchangeCheckpointsRequest(
                checkpoint=note.encode(),
                from_size=self._acknowledged,
                proof=self._log.prove(self._acknowledged, size),
                known_size=known.size if known else 0,
            )
            try:
                reply = stub.ExchangeCheckpoints(request, timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.DATA_LOSS:
                    self._alarm(f"the coordinator says that the two logs do not fit: {str(error.details())[:500]}")
                    return
                raise
            if reply.seen_size > size:
                self._alarm(
                    f"the coordinator has seen {reply.seen_size} entries of this site's audit log, here are {size}: "
                    "was this home restored from an old copy?"
                )
                return
            self._acknowledged = reply.seen_size
            if reply.checkpoint:
                break
        else:
            raise AuditError("the coordinator did not take this site's checkpoint")
        checkpoint = bytes(reply.checkpoint).decode("utf-8", errors="replace")
        witness.observe(self._log, checkpoint, list(reply.proof), self._log_key, origin=COORDINATOR)
        self.has_compared = True
        restored.settle(self._home)
        self._doubts.clear()
        for other in reply.others:
            # The name is the coordinator's word too.
            site = other.site if re.fullmatch(NAME_PATTERN, other.site) else _NO_NAME
            note = bytes(other.checkpoint).decode("utf-8", errors="replace")
            try:
                # The root says which key is that hospital's: not the coordinator.
                key = receipt_key_of(other.certificate_pem, roots_pem, site)
                if notes.read(note, key).origin != f"site/{site}":
                    raise AuditError("it is another site's")
            except (AuditError, EnrolmentError) as error:
                self._doubt(site, str(error))
            else:
                self._hear(site, key, note, list(other.proof))

    def _doubt(self, site: str, why: str) -> None:
        """What is shown as another hospital's is not, as far as can be told: it counts for nothing, and is recorded."""
        text = (
            f"what the coordinator shows as the checkpoint of site {site} is not believed: {why}. If the root was "
            "rotated lately, that site has yet to renew; otherwise the coordinator has made it up. Ask that hospital"
        )
        self._doubts[site] = text
        # Once for each, and not for all that a coordinator can think of.
        if site not in self._recorded and len(self._recorded) < _MOST_RECORDED:
            self._recorded.add(site)
            _log.error("%s", text)
            self._log.append("refusal", {"code": str(ErrorCode.AUDIT_CONFLICT)})

    def _hear(self, site: str, key: bytes, note: str, proof: list[bytes]) -> None:
        """What another hospital has seen."""
        known = self._others.get(site)
        if known is not None and known.key != key:
            _log.warning("site %s has another key than before: it has joined anew?", site)
        checkpoint = witness.heard(self._log, note, proof, site=site, site_key=key, coordinator_key=self._log_key)
        size = checkpoint.seen.size if checkpoint.seen else 0
        if known is None or size > known.size:
            self._others[site] = _Other(key, size)
            return
        known.still += 1
        if known.still == PATIENCE:
            _log.warning(
                "the coordinator shows nothing new of site %s since its log had %d entries. If that site takes part, "
                "the coordinator may be showing the two of you different histories: compare the logs.",
                site,
                known.size,
            )

    def _alarm(self, text: str) -> None:
        _log.error("audit conflict, no more work is done: %s", text)
        self._alarmed = text  # also where the disk is full
        write_private(self._path, f"{text}\n".encode())


def _not_compared(home: Path) -> str:
    return (
        f"this home was restored from a backup of {restored.made(home)}, and the coordinator has not shown yet that it "
        "is the newest. That is done when it is reached; see logs/agent.log"
    )


def _is_away(error: grpc.RpcError) -> bool:
    """Whether it is worth asking again: the coordinator cannot be reached, or says that we ask too much just now."""
    return error.code() in _AWAY or retry_after(error) is not None


def _unacknowledged(log: AuditLog) -> dict[str, _Pending]:
    """Receipts that were written and never countersigned, as an earlier process left them."""
    with log.transaction() as transaction:
        entries = transaction.latest("round", "countersigned", count=_ALL)
    signed = {entry.fields["receipt-hash"] for entry in entries if entry.kind == "countersigned"}
    found = {}
    for entry in reversed(entries):
        if entry.kind == "round":
            receipt = Receipt.from_fields(entry.fields["receipt"])
            if receipt.sha256 not in signed:
                found[receipt.sha256] = _Pending(receipt, base64.b64decode(entry.fields["signature"]))
    return found


def _is_acknowledged(log: AuditLog, receipt: Receipt) -> bool:
    """Whether the coordinator signed this receipt, which it may have done before the update was sent again."""
    with log.transaction() as transaction:
        entries = transaction.latest("countersigned", count=_RECENT)
    return any(entry.fields["receipt-hash"] == receipt.sha256 for entry in entries)
