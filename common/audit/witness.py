"""What a side remembers of other logs: a log that was seen may only grow.

Every checkpoint that is accepted is an entry of one's own log, so one's own checkpoints commit to it. A hospital's
checkpoint also says what it has seen of the coordinator's log; the coordinator relays it to the other hospitals,
signed as it is. To show two hospitals two histories, the coordinator would have to hold back each one's checkpoints
from the other from then on, for ever: whoever gets none that are new knows why.
"""

from collections.abc import Sequence

from common.audit import merkle, notes
from common.audit.entries import COORDINATOR
from common.audit.log import AuditLog, Transaction
from common.audit.notes import Checkpoint, Head
from common.errors import AuditError


class ConflictError(AuditError):
    """Two signed checkpoints that do not fit each other: `first` was seen before, `second` came now."""

    def __init__(self, message: str, first: str, second: str) -> None:
        super().__init__(message)
        self.first, self.second = first, second


def last_seen(log: AuditLog, public_key: bytes) -> Checkpoint | None:
    """The newest checkpoint accepted from the log with this key; None before the first."""
    with log.transaction() as transaction:
        note = transaction.received(public_key)
    return None if note is None else notes.peek(note)


def observe(log: AuditLog, note: str, proof: Sequence[bytes], public_key: bytes, *, origin: str) -> Checkpoint:
    """Take note of another log's checkpoint, if it continues what was seen of that log before.

    Args:
        log: one's own.
        note: the other's signed checkpoint.
        proof: consistency from the size last seen (see `last_seen`) to this one; empty at first.
        public_key: the other log's, 32 bytes.
        origin: the other log's.

    Raises:
        ConflictError: it does not continue. Unless it is merely older, both checkpoints are kept as an entry
            `conflict`; of one size with two roots, they prove to anybody that the other log was forked. At the
            coordinator also: the hospital signed that it has seen another history of this log.
        AuditError: not signed with this key, or of another origin.
    """
    checkpoint = notes.read(note, public_key)
    if checkpoint.origin != origin:
        raise AuditError(f"the checkpoint is of {checkpoint.origin}, expected {origin}")
    with log.transaction() as transaction:
        known = transaction.received(public_key)
        before = Head(0, merkle.root(0, transaction.perfect)) if known is None else _head(notes.peek(known))
        older = checkpoint.size < before.size
        fits = not older and merkle.is_consistent(before.size, before.root, checkpoint.size, checkpoint.root, proof)
        saw_this_log = log.origin != COORDINATOR or checkpoint.seen is None or transaction.was(checkpoint.seen)
        if fits and saw_this_log and checkpoint.size > before.size:
            transaction.append("checkpoint-received", {"key": public_key.hex(), "note": note})
        elif not fits and not older and known is not None:
            _keep_evidence(transaction, (known, public_key), (note, public_key))
    if not fits:
        raise ConflictError(_reason(origin, before, checkpoint), known or "", note)
    if not saw_this_log:
        raise ConflictError(
            f"{origin} signed that it has seen entries of this log which are not here. Was this log restored from a "
            "backup, or its key used elsewhere? Ask the hospital for its export and verify both.",
            known or "",
            note,
        )
    return checkpoint


def heard(
    log: AuditLog,
    note: str,
    proof: Sequence[bytes],
    *,
    site: str,
    site_key: bytes,
    coordinator_key: bytes,
) -> Checkpoint:
    """Compare what another hospital has seen of the coordinator's log with what was seen here.

    Args:
        log: one's own.
        note: the other hospital's signed checkpoint, as the coordinator relayed it.
        proof: consistency of the coordinator's log between the size that hospital saw and the one seen here,
            whichever is smaller first.
        site: the other hospital.
        site_key: its public key, 32 bytes.
        coordinator_key: the coordinator's, 32 bytes.

    Returns:
        The checkpoint. Its `seen.size` must rise from round to round: the caller keeps an eye on that.

    Raises:
        ConflictError: the two hospitals were shown different histories; kept as an entry `conflict`.
        AuditError: not signed with that hospital's key, or nothing was seen of the coordinator yet.
    """
    checkpoint = notes.read(note, site_key)
    if checkpoint.origin != f"site/{site}":
        raise AuditError(f"the checkpoint is of {checkpoint.origin}, expected site/{site}")
    if checkpoint.seen is None:
        return checkpoint
    with log.transaction() as transaction:
        mine = transaction.received(coordinator_key)
        if mine is None:
            raise AuditError("the coordinator's own checkpoint must be observed before others' views of it")
        small, large = sorted((checkpoint.seen, _head(notes.peek(mine))), key=lambda head: head.size)
        fits = merkle.is_consistent(small.size, small.root, large.size, large.root, proof)
        if not fits:
            _keep_evidence(transaction, (mine, coordinator_key), (note, site_key))
    if fits:
        return checkpoint
    raise ConflictError(
        f"site {site} has seen another history of the coordinator's log than this site ({small.size} and {large.size} "
        "entries). Stop taking part, and compare the exported logs of both sites with 'audit verify'.",
        mine,
        note,
    )


def _keep_evidence(log: Transaction, first: tuple[str, bytes], second: tuple[str, bytes]) -> None:
    log.append(
        "conflict",
        {"first": first[0], "first-key": first[1].hex(), "second": second[0], "second-key": second[1].hex()},
    )


def _head(checkpoint: Checkpoint) -> Head:
    return Head(checkpoint.size, checkpoint.root)


def _reason(origin: str, before: Head, now: Checkpoint) -> str:
    if now.size < before.size:
        what = f"it had {before.size} entries before, now it shows {now.size}: it was rolled back"
    elif now.size == before.size:
        what = f"two roots were signed for {now.size} entries: it was forked"
    else:
        what = f"it was not shown that its {now.size} entries begin with the {before.size} seen before"
    return f"the audit log of {origin} does not continue what was seen of it: {what}. Ask {origin} to explain."
