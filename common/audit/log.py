"""One side's audit log: an append-only Merkle log in one SQLite file.

Entry number n is leaf n of the tree. The perfect subtrees are stored beside the entries, so that an append, the root
and a proof cost O(log n). Nothing is ever changed or removed; triggers refuse it as a seat belt, but what shows it is
the root that was signed and given away (see docs/audit.md). Any number of threads and processes may write
(common/system/database.py). The file is complete by itself after each transaction, so a copy of it can be given to an
auditor.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit import merkle, notes
from common.audit.entries import Entry, Value, canonical, check, check_site
from common.audit.notes import Checkpoint, Head
from common.errors import AuditError, ErrorCode
from common.system.database import transaction

EXPORT_FORMAT = 1

_VERSION = 1
_RECENT_STARTS = 20
_TABLES = ("entries", "nodes", "checkpoints")
# Entries about a round name it directly, or in their receipt.
_RUN, _ROUND, _SITE = (
    f"coalesce(json_extract(entry, '$.{name}'), json_extract(entry, '$.receipt.{name}'))"
    for name in ("run", "round", "site")
)
_SCHEMA = (
    # An entry's canonical JSON, and the checkpoints signed here; the tree follows from the entries.
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, entry TEXT NOT NULL) STRICT",
    "CREATE TABLE nodes (level INTEGER, position INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, position)) "
    "STRICT, WITHOUT ROWID",
    "CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL) STRICT",
    # To find the last checkpoint received from a log without reading all entries.
    "CREATE INDEX received ON entries (json_extract(entry, '$.key'), seq) "
    "WHERE json_extract(entry, '$.kind') = 'checkpoint-received'",
    # To find the last entries of a kind, and what was noted about a round.
    "CREATE INDEX kinds ON entries (json_extract(entry, '$.kind'))",
    f"CREATE INDEX work ON entries ({_RUN}, {_ROUND}, json_extract(entry, '$.kind')) WHERE {_RUN} IS NOT NULL",
    *(
        f"CREATE TRIGGER {table}_keep_{event.lower()} BEFORE {event} ON {table} "
        "BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END"
        for table in _TABLES
        for event in ("UPDATE", "DELETE")
    ),
)


class Transaction:
    """The log while it is locked: what is read cannot change before what is appended is on disk."""

    def __init__(self, database: sqlite3.Connection, origin: str, clock: Callable[[], float]) -> None:
        self._database, self._origin, self._clock = database, origin, clock
        self.size: int = database.execute("SELECT coalesce(max(seq) + 1, 0) FROM entries").fetchone()[0]

    def append(self, kind: str, fields: Mapping[str, Value] | None = None) -> int:
        """Add an entry.

        Returns:
            Its number, from 0.

        Raises:
            AuditError: the kind or a field is not on the list; nothing is added.
        """
        fields = dict(fields or {})
        check(kind, fields)
        check_site(self._origin, fields)
        seq = self.size
        data = Entry(seq, int(self._clock()), kind, fields).to_bytes()
        self._database.execute("INSERT INTO entries VALUES (?, ?)", (seq, data.decode()))
        nodes = merkle.grow(merkle.leaf_hash(data), seq, self.perfect)
        self._database.executemany("INSERT INTO nodes VALUES (?, ?, ?)", nodes)
        self.size = seq + 1
        return seq

    def perfect(self, level: int, index: int) -> bytes:
        """The hash of a perfect subtree."""
        query = "SELECT hash FROM nodes WHERE level = ? AND position = ?"
        row = self._database.execute(query, (level, index)).fetchone()
        if row is None:
            raise AuditError("the audit log's tree has a hole: the file was changed. Verify it, and keep it as it is.")
        return bytes(row[0])

    def was(self, head: Head) -> bool:
        """Whether this log was once in that state."""
        return head.size <= self.size and merkle.root(head.size, self.perfect) == head.root

    def received(self, public_key: bytes) -> str | None:
        """The last checkpoint accepted from the log with this key."""
        row = self._database.execute(
            "SELECT json_extract(entry, '$.note') FROM entries WHERE json_extract(entry, '$.kind') = "
            "'checkpoint-received' AND json_extract(entry, '$.key') = ? ORDER BY seq DESC LIMIT 1",
            (public_key.hex(),),
        ).fetchone()
        return None if row is None else str(row[0])

    def latest(self, *kinds: str, count: int = 1) -> list[Entry]:
        """The last entries of these kinds, the newest first."""
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT entry FROM entries WHERE json_extract(entry, '$.kind') IN ({marks}) ORDER BY seq DESC LIMIT ?"  # noqa: S608 - only marks
        return _entries(self._database.execute(query, (*kinds, count)))

    def about(self, kind: str, run: str, round_: int, site: str | None = None) -> list[Entry]:
        """All entries of a kind about one round of a run, or about a site's part in it, oldest first."""
        where = f"{_RUN} = ? AND {_ROUND} = ? AND json_extract(entry, '$.kind') = ?"
        values: tuple[str | int, ...] = (run, round_, kind)
        if site is not None:
            where, values = f"{where} AND {_SITE} = ?", (*values, site)
        query = f"SELECT entry FROM entries WHERE {where} ORDER BY seq"  # noqa: S608 - constants
        return _entries(self._database.execute(query, values))

    def prove(self, old: int, new: int) -> list[bytes]:
        """See `AuditLog.prove`."""
        if not 0 <= old <= new <= self.size:
            raise AuditError(f"a proof from {old} to {new} entries is asked for; the log has {self.size}")
        return merkle.consistency_proof(old, new, self.perfect)

    def checkpoint(self, key: Ed25519PrivateKey, coordinator_key: bytes | None) -> str:
        """Sign the present state, once: the same state is the same checkpoint."""
        row = self._database.execute("SELECT note FROM checkpoints WHERE size = ?", (self.size,)).fetchone()
        if row is not None:
            return str(row[0])
        root, seen = merkle.root(self.size, self.perfect), None
        if coordinator_key is not None and (note := self.received(coordinator_key)) is not None:
            known = notes.peek(note)
            seen = Head(known.size, known.root)
        note = notes.sign(Checkpoint(self._origin, self.size, root, int(self._clock()), seen), key)
        self._database.execute("INSERT INTO checkpoints VALUES (?, ?)", (self.size, note))
        return note

    def entries(self) -> list[Entry]:
        """All entries, oldest first."""
        return _entries(self._database.execute("SELECT entry FROM entries ORDER BY seq"))

    def lines(self) -> Iterator[bytes]:
        """The canonical bytes of all entries."""
        for (text,) in self._database.execute("SELECT entry FROM entries ORDER BY seq"):
            yield text.encode()

    def checkpoints(self) -> Iterator[str]:
        """All checkpoints signed here, oldest first."""
        for (note,) in self._database.execute("SELECT note FROM checkpoints ORDER BY size"):
            yield note


class AuditLog:
    """The log in a file, made on first use."""

    def __init__(
        self,
        path: Path,
        origin: str,
        key: Ed25519PrivateKey,
        *,
        coordinator_key: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open a log, or begin one.

        Args:
            path: of the file; made with mode 0600.
            origin: "coordinator" or "site/NAME".
            key: signs the checkpoints.
            coordinator_key: at a hospital, the 32 bytes of the coordinator's public key: each checkpoint then says
                what this hospital has seen of the coordinator's log.
            clock: Unix seconds.

        Raises:
            AuditError: the file is another log's, or cannot be used.
        """
        self._path, self._key, self._clock = path, key, clock
        self.origin, self.public_key, self.coordinator_key = origin, notes.public_bytes(key), coordinator_key
        with self.transaction() as log:
            first = Entry.from_bytes(next(log.lines()))
        if dict(first.fields) != self._identity:
            raise AuditError(
                f"the audit log {path.name} was begun by {first.fields.get('origin', 'somebody else')} or with another "
                "key. Restore the key it belongs to, or keep the file for the auditors and begin a new one."
            )

    def append(self, kind: str, fields: Mapping[str, Value] | None = None) -> int:
        """Add an entry; it is on disk when this returns. See `Transaction.append`."""
        with self.transaction() as log:
            return log.append(kind, fields)

    def begin(self, program: str, version: str) -> None:
        """Note that a program starts; if it had not been stopped before, it crashed."""
        with self.transaction() as log:
            past = log.latest("started", "stopped", count=_RECENT_STARTS)
            last = next((entry for entry in past if entry.fields["program"] == program), None)
            if last is not None and last.kind == "started":
                log.append("crashed", {"program": program})
            log.append("started", {"program": program, "version": version})

    def checkpoint(self) -> str:
        """A signed checkpoint over all entries."""
        with self.transaction() as log:
            return log.checkpoint(self._key, self.coordinator_key)

    def prove(self, old: int, new: int) -> list[bytes]:
        """The consistency proof between two sizes of this log.

        Raises:
            AuditError: the log has never had these sizes.
        """
        with self.transaction() as log:
            return log.prove(old, new)

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        with self.transaction() as log:
            return tuple(log.entries())

    def export(self) -> bytes:
        """The whole log for auditors, in one text file: a header, the entries, then the checkpoints, a line each."""
        with self.transaction() as log:
            log.checkpoint(self._key, self.coordinator_key)
            lines = [canonical({"wardround-audit": EXPORT_FORMAT, **self._identity}), *log.lines()]
            lines += [canonical({"checkpoint": note}) for note in log.checkpoints()]
        return b"\n".join(lines) + b"\n"

    @property
    def _identity(self) -> dict[str, Value]:
        return {"origin": self.origin, "key": self.public_key.hex()}

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Lock the log; what the body appends is on disk on return, all of it, or none if the body raises."""
        with transaction(self._path, _unusable) as database:
            log = _prepare(database, self.origin, self._clock)
            if log.size == 0:
                log.append("created", self._identity)
            yield log


def _entries(rows: sqlite3.Cursor) -> list[Entry]:
    # To its end first: a cursor that is left in the middle by an error keeps the file locked while the error lives.
    return [Entry.from_bytes(text.encode()) for (text,) in rows.fetchall()]


def _prepare(database: sqlite3.Connection, origin: str, clock: Callable[[], float]) -> Transaction:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in _SCHEMA:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    elif version != _VERSION:
        raise AuditError(
            f"the audit log has format {version}, this program knows {_VERSION}. Use the version of Wardround that "
            "wrote it, or a newer one."
        )
    return Transaction(database, origin, clock)


def _unusable(name: str, error: Exception, code: ErrorCode) -> AuditError:
    said = error.strerror if isinstance(error, OSError) else error  # a path can name more than the file
    return AuditError(
        f"the audit log {name} cannot be used ({said}); without it nothing is done that must be recorded. End the "
        "program that holds it, free disk space, or give this user the right to write the file and its folder. Do not "
        "delete it: the other side remembers what it said.",
        code,
    )
