"""The messages each site has not answered yet, kept where a crash of the gateway does not lose them.

The SuperLink hands a message out once. From then on it is here, until its answer is complete. A message belongs to
the node id it was sent to: a new SuperLink gives new ids, and what the old one sent is void. Nothing is forced to
disk: when the machine itself goes down, so does the SuperLink.
"""

import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flwr.proto.message_pb2 import Message, ObjectTree


@dataclass(frozen=True)
class Delivery:
    """A message on its way."""

    head: Message
    tree: ObjectTree
    confirmed: bool  # the site has all of it


class Mailbox:
    """All sites' messages, by the node they were sent to."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS deliveries (message_id TEXT PRIMARY KEY, node_id TEXT NOT NULL, "
            "run_id TEXT NOT NULL, head BLOB NOT NULL, tree BLOB NOT NULL, confirmed INTEGER NOT NULL DEFAULT 0)"
        )

    def add(self, node_id: int, head: Message, tree: ObjectTree) -> None:
        """Keep a message that the SuperLink handed out."""
        values = (
            head.metadata.message_id,
            str(node_id),
            str(head.metadata.run_id),
            head.SerializeToString(),
            tree.SerializeToString(),
        )
        self._write(
            "INSERT OR IGNORE INTO deliveries (message_id, node_id, run_id, head, tree) VALUES (?, ?, ?, ?, ?)", values
        )

    def of(self, node_id: int) -> list[Delivery]:
        """What a node has not answered, the oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT head, tree, confirmed FROM deliveries WHERE node_id = ? ORDER BY rowid", (str(node_id),)
            ).fetchall()
        return [
            Delivery(Message.FromString(head), ObjectTree.FromString(tree), bool(done)) for head, tree, done in rows
        ]

    def confirm(self, node_id: int, message_id: str) -> None:
        """The site has all of a message."""
        self._write(
            "UPDATE deliveries SET confirmed = 1 WHERE node_id = ? AND message_id = ?", (str(node_id), message_id)
        )

    def unconfirm(self, node_id: int) -> None:
        """The site has started anew and forgotten what it had."""
        self._write("UPDATE deliveries SET confirmed = 0 WHERE node_id = ?", (str(node_id),))

    def remove(self, message_id: str) -> None:
        """A message is answered."""
        self._write("DELETE FROM deliveries WHERE message_id = ?", (message_id,))

    def keep_only(self, live_runs: Iterable[int]) -> None:
        """Forget the messages of runs that have ended."""
        runs = [str(run) for run in live_runs]
        marks = ", ".join("?" * len(runs))
        self._write(f"DELETE FROM deliveries WHERE run_id NOT IN ({marks})", tuple(runs))  # noqa: S608 - only marks

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _write(self, statement: str, values: tuple[str | bytes, ...]) -> None:
        with self._lock:
            self._database.execute(statement, values)
