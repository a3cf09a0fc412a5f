"""A log as it lies in a file, true or not: the SQLite file, or the export. Nothing is believed here.

Reading changes nothing. A file that was copied or left in the middle of a write has a journal beside it; then a copy
is completed and read.
"""

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from common.errors import AuditError

_SQLITE_MAGIC = b"SQLite format 3\0"
_EXPORT_MAGIC = b'{"key":'
_CHECKPOINT_MAGIC = b'{"checkpoint":'


@dataclass(frozen=True)
class Stored:
    """What a file holds."""

    name: str  # of the file, for messages
    numbers: tuple[int, ...]  # of the entries
    lines: tuple[bytes, ...]  # the entries' bytes
    notes: tuple[str, ...]  # the owner's checkpoints, in their order
    nodes: dict[tuple[int, int], bytes] | None  # the stored tree; an export has none
    damage: str = ""  # what SQLite's own check says, if anything

    @property
    def is_export(self) -> bool:
        """Whether it is an export, which ends with a checkpoint over all entries."""
        return self.nodes is None


def read(path: Path) -> Stored:
    """Read a log.

    Raises:
        AuditError: neither a log nor an export of one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_SQLITE_MAGIC))
        if start == _SQLITE_MAGIC:
            return _from_database(path)
        if start.startswith(_EXPORT_MAGIC):
            return _from_export(path)
    except (OSError, sqlite3.Error) as error:
        raise AuditError(f"{path.name} cannot be read ({type(error).__name__}: {error})") from error
    raise AuditError(f"{path.name} is neither an audit log nor an export of one")


def _from_database(path: Path) -> Stored:
    try:
        return _query(path.name, path)
    except sqlite3.OperationalError:
        journal = path.with_name(f"{path.name}-journal")
        if not journal.exists():
            raise
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "log"
            shutil.copyfile(path, copy)
            shutil.copyfile(journal, copy.with_name("log-journal"))
            with closing(sqlite3.connect(copy)) as database:  # may write: SQLite takes the unfinished write back
                database.execute("SELECT count(*) FROM entries")
            return _query(path.name, copy)


def _query(name: str, path: Path) -> Stored:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        database.text_factory = bytes  # not every byte that can be put there is UTF-8
        database.execute("BEGIN")  # one state, however many queries
        rows = database.execute("SELECT seq, entry FROM entries ORDER BY seq").fetchall()
        notes = database.execute("SELECT note FROM checkpoints ORDER BY size").fetchall()
        nodes = database.execute("SELECT level, position, hash FROM nodes").fetchall()
        ((damage,), *_) = database.execute("PRAGMA integrity_check(1)").fetchall()
    return Stored(
        name,
        tuple(seq for seq, _ in rows),
        tuple(bytes(entry) for _, entry in rows),
        tuple(note.decode(errors="replace") for (note,) in notes),
        {(level, position): hash_ for level, position, hash_ in nodes},
        "" if damage == b"ok" else damage.decode(errors="replace"),
    )


def _from_export(path: Path) -> Stored:
    _, *lines = path.read_bytes().splitlines()
    entries = tuple(line for line in lines if not line.startswith(_CHECKPOINT_MAGIC))
    notes = tuple(_note(line) for line in lines if line.startswith(_CHECKPOINT_MAGIC))
    return Stored(path.name, tuple(range(len(entries))), entries, notes, None)


def _note(line: bytes) -> str:
    try:
        return str(json.loads(line)["checkpoint"])
    except (ValueError, KeyError, RecursionError):
        return ""
