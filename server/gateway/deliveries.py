"""The messages each site has not answered yet, kept where a crash of the gateway does not lose them.

The SuperLink hands a message out once. From then on it is here, until its answer is complete, or no answer counts any
more. A message belongs to the node id it was sent to: a new SuperLink gives new ids, and what the old one sent is void.
Nothing is forced to disk: when the machine itself goes down, so does the SuperLink.

The messages are in memory, and the file follows. A file that cannot be written (a full disk, a lock) costs nothing
while the process lives: it is written whole as soon as that is possible. What is lost with the process before that is
asked again by the ServerApp, which reads the file to find out (`held`).
"""

import dataclasses
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from flwr.proto.message_pb2 import Message, ObjectTree

from common.flower.packing import object_ids
from common.system.files import create_private

NAME = "mailbox.sqlite"

# Whoever else has the file open, a backup say, holds up no message.
_PATIENCE_S = 0.05
_PATIENCE_AT_START_S = 30.0
# Beyond that time, in which an answer that was announced in time may still be under way.
_LEEWAY_S = 60.0
_INSERT = (
    "INSERT OR REPLACE INTO deliveries (message_id, node_id, run_id, head, tree, confirmed) VALUES (?, ?, ?, ?, ?, ?)"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """A message on its way."""

    head: Message
    tree: ObjectTree
    confirmed: bool = False  # the site has all of it
    since: float = field(default_factory=time.monotonic, compare=False)  # when this process had it first

    @property
    def overdue(self) -> bool:
        """Whether no answer counts any more. By how long it has been here: a clock that jumps ends no message."""
        return time.monotonic() - self.since > self.head.metadata.ttl + _LEEWAY_S


class Deliveries:
    """All sites' messages, by the node they were sent to. For all threads of one process."""

    def __init__(self, path: Path) -> None:
        create_private(path, b"")
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            path, timeout=_PATIENCE_AT_START_S, isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS deliveries (message_id TEXT PRIMARY KEY, node_id TEXT NOT NULL, "
            "run_id TEXT NOT NULL, head BLOB NOT NULL, tree BLOB NOT NULL, confirmed INTEGER NOT NULL DEFAULT 0)"
        )
        rows = self._database.execute(
            "SELECT message_id, node_id, head, tree, confirmed FROM deliveries ORDER BY rowid"
        ).fetchall()
        self._deliveries: dict[int, dict[str, Delivery]] = {}  # node -> message id -> message, the oldest first
        self._nodes: dict[str, int] = {}  # message id -> node
        for message_id, node_id, head, tree, confirmed in rows:
            kept = Delivery(Message.FromString(head), ObjectTree.FromString(tree), bool(confirmed))
            self._keep(int(node_id), message_id, kept)
        self._behind = False  # the file lacks something
        self._database.execute(f"PRAGMA busy_timeout = {_PATIENCE_S * 1000:.0f}")

    def add(self, node_id: int, head: Message, tree: ObjectTree) -> None:
        """Keep a message that the SuperLink handed out."""
        message_id = head.metadata.message_id
        with self._lock:
            if message_id not in self._nodes:
                self._keep(node_id, message_id, Delivery(head, tree))
                self._write(_INSERT, _row(node_id, Delivery(head, tree)))

    def of(self, node_id: int) -> list[Delivery]:
        """What a node has not answered, the oldest first."""
        with self._lock:
            return list(self._deliveries.get(node_id, {}).values())

    def confirm(self, node_id: int, message_id: str) -> None:
        """The site has all of a message."""
        with self._lock:
            self._set_confirmed(node_id, True, message_id)
            self._write(
                "UPDATE deliveries SET confirmed = 1 WHERE node_id = ? AND message_id = ?", (str(node_id), message_id)
            )

    def unconfirm(self, node_id: int) -> None:
        """The site has started anew and forgotten what it had."""
        with self._lock:
            self._set_confirmed(node_id, False)
            self._write("UPDATE deliveries SET confirmed = 0 WHERE node_id = ?", (str(node_id),))

    def remove(self, message_id: str) -> None:
        """A message is answered."""
        with self._lock:
            self._drop(message_id)

    def objects(self) -> set[str]:
        """The ids of all objects of what has not been answered."""
        with self._lock:
            return {one for own in self._deliveries.values() for each in own.values() for one in object_ids(each.tree)}

    def nodes(self) -> set[int]:
        """The ids of all nodes that have not answered something."""
        with self._lock:
            return set(self._deliveries)

    def remove_of(self, node_id: int) -> None:
        """A node is nobody's any more."""
        with self._lock:
            for message_id in list(self._deliveries.get(node_id, ())):
                self._drop(message_id)

    def keep_only(self, live_runs: Iterable[int]) -> None:
        """Forget the messages of runs that have ended."""
        runs = set(live_runs)
        with self._lock:
            for message_id, node_id in list(self._nodes.items()):
                if self._deliveries[node_id][message_id].head.metadata.run_id not in runs:
                    self._drop(message_id)

    def save(self) -> None:
        """Write what could not be written before, if that is possible now. Call it every second or so."""
        with self._lock:
            if not self._behind:
                return
            try:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute("DELETE FROM deliveries")
                rows = [_row(node, self._deliveries[node][message]) for message, node in self._nodes.items()]
                self._database.executemany(_INSERT, rows)
                self._database.execute("COMMIT")
            except sqlite3.Error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                return
            self._behind = False
            _log.warning("the messages on their way to the sites are on disk again")

    def close(self) -> None:
        """Close the file."""
        self.save()
        self._database.close()

    def _keep(self, node_id: int, message_id: str, delivery: Delivery) -> None:
        self._nodes[message_id] = node_id
        self._deliveries.setdefault(node_id, {})[message_id] = delivery

    def _drop(self, message_id: str) -> None:
        node_id = self._nodes.pop(message_id, None)
        if node_id is not None:
            del self._deliveries[node_id][message_id]
            if not self._deliveries[node_id]:
                del self._deliveries[node_id]
        self._write("DELETE FROM deliveries WHERE message_id = ?", (message_id,))

    def _set_confirmed(self, node_id: int, confirmed: bool, message_id: str | None = None) -> None:
        own = self._deliveries.get(node_id, {})
        for known in own:
            if message_id in (None, known):
                own[known] = dataclasses.replace(own[known], confirmed=confirmed)

    def _write(self, statement: str, values: tuple[str | bytes | bool, ...]) -> None:
        if self._behind:
            return
        try:
            self._database.execute(statement, values)
        except sqlite3.Error as error:
            _log.warning("the messages on their way to the sites are in memory alone: %s", error)
            self._behind = True


def held(path: Path) -> frozenset[str]:
    """The ids of all messages in the file.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=_PATIENCE_S, uri=True)) as database:
        return frozenset(row[0] for row in database.execute("SELECT message_id FROM deliveries"))


def _row(node_id: int, delivery: Delivery) -> tuple[str, str, str, bytes, bytes, bool]:
    metadata = delivery.head.metadata
    return (
        metadata.message_id,
        str(node_id),
        str(metadata.run_id),
        delivery.head.SerializeToString(),
        delivery.tree.SerializeToString(),
        delivery.confirmed,
    )


__all__ = ["NAME", "Deliveries", "Delivery", "held"]
