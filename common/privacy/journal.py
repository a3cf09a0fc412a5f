"""Sealed rows in one SQLite file that only grows: nobody without the site key reads one, and none goes unnoticed.

    rows   number, from 1 | name: keyed, unique | content: sealed
    head   sealed: that there are so many rows, and which is the last

A row is sealed (common/crypto/record_box.py) for its table, number, name and the row before it, the head for the number
of rows and the last one. So a row that is altered, exchanged, copied, moved or removed, or comes from another file,
does not open, and then the whole file is refused and left as it is. The file shows how many rows there are and when it
was written.

What no file can notice of itself: that it is removed, or put back as a whole as it was before. The audit log has the
same charges, and an agent compares the two (client/agent/spending.py); it has been shown to the coordinator
(common/audit).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.crypto.record_box import TAG_BYTES, RecordBox
from common.errors import ErrorCode, PrivacyError
from common.system.database import transaction

# 1 and 2 were in the clear.
FORMAT = 3

_NUMBER_BYTES = 8
_SCHEMA = (
    "CREATE TABLE rows (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, content BLOB NOT NULL) STRICT",
    "CREATE TABLE head (number INTEGER PRIMARY KEY CHECK (number = 1), content BLOB NOT NULL) STRICT",
)


class Rows:
    """The rows while the file is locked: what is read cannot change before what is appended is on disk."""

    def __init__(self, database: sqlite3.Connection, safe: RecordBox) -> None:
        """Read and check all rows; a file without tables is begun.

        Raises:
            ValueError: the file is not as this site left it.
        """
        self._database, self._safe = database, safe
        self._count, self._last = 0, b""
        self.contents: list[bytes] = []  # oldest first
        if _is_new(database):
            self._begin()
        else:
            self._read()

    def append(self, name: bytes, content: bytes) -> None:
        """Add a row; on disk when the transaction ends.

        Args:
            name: as `RecordBox.name` makes it, of what there may be only one.
            content: what is sealed; its length shows.
        """
        self._count += 1
        sealed = self._safe.seal(content, _place("rows", self._count, name, self._last))
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?)", (self._count, name, sealed))
        self._last = sealed[-TAG_BYTES:]
        self._write_head()
        self.contents.append(content)

    def _begin(self) -> None:
        for statement in _SCHEMA:
            self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version = {FORMAT}")
        self._write_head()

    def _write_head(self) -> None:
        sealed = self._safe.seal(b"", _place("head", self._count, b"", self._last))
        self._database.execute("REPLACE INTO head VALUES (1, ?)", (sealed,))

    def _read(self) -> None:
        for number, name, sealed in self._database.execute("SELECT * FROM rows ORDER BY number"):
            self._count += 1
            self.contents.append(self._safe.unseal(sealed, _place("rows", number, name, self._last)))
            self._last = sealed[-TAG_BYTES:]
        heads = self._database.execute("SELECT content FROM head").fetchall()
        if len(heads) != 1:
            raise ValueError("the head is missing")
        self._safe.unseal(heads[0][0], _place("head", self._count, b"", self._last))


class Journal:
    """The rows in a file, made on first use with mode 0600. Any number of processes and threads may use it at once."""

    def __init__(self, path: Path, safe: RecordBox) -> None:
        """Remember where the file is; nothing is opened yet."""
        self._path, self._safe = path, safe

    @contextmanager
    def transaction(self) -> Iterator[Rows]:
        """Lock the file; what the body appends is on disk on return, all of it, or none if the body raises.

        Raises:
            PrivacyError: the file cannot be read or written, or is not as this site left it.
        """
        with transaction(self._path, _unusable) as database:
            yield self._rows(database)

    def _rows(self, database: sqlite3.Connection) -> Rows:
        try:
            return Rows(database, self._safe)
        except (ValueError, TypeError) as error:
            raise _altered(self._path.name) from error


def _is_new(database: sqlite3.Connection) -> bool:
    """Whether nothing was ever written to it; otherwise it has our format and our tables, and no trigger or view."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    # What SQLite adds itself, as an index for UNIQUE, has no text.
    schema = tuple(text for (text,) in database.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL"))
    if version == 0 and not schema:
        return True
    if version != FORMAT:
        raise _other_format(version)
    if schema != _SCHEMA:
        raise ValueError("the tables are not ours")
    return False


def _place(table: str, number: int, name: bytes, before: bytes) -> bytes:
    """Where bytes belong; all parts but the first have a length of their own."""
    return b"|".join((table.encode(), number.to_bytes(_NUMBER_BYTES, "big"), name, before))


def _altered(name: str) -> PrivacyError:
    return PrivacyError(
        f"the privacy ledger {name} does not open: it was made under another site key, or something in it was altered "
        "or removed. Nothing is trained with privacy, and the file is left as it is. Restore site.key, or the file "
        "from a backup. Do not delete it: what was spent would be forgotten.",
        ErrorCode.INTERNAL,
    )


def _other_format(version: int) -> PrivacyError:
    what = "in the clear, by an earlier version of Wardround" if version < FORMAT else "by a newer version of Wardround"
    return PrivacyError(
        f"the privacy ledger has format {version}, written {what}; this program knows {FORMAT}. Use the version that "
        "wrote it. Do not delete the file: what was spent would be forgotten.",
        ErrorCode.INTERNAL,
    )


def _unusable(name: str, error: sqlite3.Error | OSError, code: ErrorCode) -> PrivacyError:
    said = error.strerror if isinstance(error, OSError) else error  # a path can name more than the file
    return PrivacyError(
        f"the privacy ledger {name} cannot be used ({said}); without it nothing is trained with privacy. Free disk "
        "space, give this user the right to write the file and its folder, or restore the file from a backup. Do not "
        "delete it: what was spent would be forgotten.",
        code,
    )


__all__ = ["FORMAT", "Journal", "Rows"]
