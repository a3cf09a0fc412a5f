"""One SQLite file that several processes and threads read and write: every operation is one transaction.

What is asked again and again is answered from memory until somebody writes, in whichever process: see `version`.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from common.errors import FederationError
from common.system.files import create_private
from server.registry.acts import PATIENCE_S, Acts

ValueType = TypeVar("ValueType")


class StoreError(FederationError):
    """The registry cannot be read or written now: another program holds it, the disk is full, or it is damaged."""


class Store:
    """The file, with the signed acts that its rows are held against."""

    schema: str  # what is made in a new file

    def __init__(self, path: Path) -> None:
        self._path = path
        self._acts = Acts(path.parent)
        self._threads = threading.local()
        create_private(path, b"")  # SQLite gives its journal the same mode
        with self._reading() as database:
            database.executescript(self.schema)
        # Nothing is ever written through it, so that it sees each write.
        with self._usable():
            self._observer = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False)
        self._observing = threading.Lock()
        self._memory: dict[str, tuple[tuple[int, int], Any]] = {}

    def version(self) -> tuple[int, int]:
        """Another one than before as soon as anybody has written here, or entered an act; takes 20 us.

        Raises:
            StoreError: the file cannot be used now.
            AuditError: the audit log cannot.
        """
        with self._observing, self._usable():
            # Exact, where a file's time has a grain: https://sqlite.org/pragma.html#pragma_data_version
            return int(self._observer.execute("PRAGMA data_version").fetchone()[0]), self._acts.version()

    def _remembered(self, name: str, read: Callable[[sqlite3.Connection, Acts], ValueType]) -> ValueType:
        """What `read` finds now; from memory if nobody has written since it was read, nor entered an act."""
        # The version comes first: whatever is written later than that makes the next caller read again.
        version = self.version()
        known = self._memory.get(name)
        if known is not None and known[0] == version:
            value: ValueType = known[1]
            return value
        with self._reading() as database:
            value = read(database, self._acts)
        self._memory[name] = (version, value)
        return value

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        # One connection per thread: opening one costs ten times what a look at a row does.
        database: sqlite3.Connection | None = getattr(self._threads, "database", None)
        with self._usable():
            if database is None:
                # Autocommit: our transactions begin where we say so.
                database = sqlite3.connect(self._path, timeout=PATIENCE_S, isolation_level=None)
                database.row_factory = sqlite3.Row
                self._threads.database = database
            yield database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database:
            # Takes the write lock first, so that what is read inside still holds when it is written.
            database.execute("BEGIN IMMEDIATE")
            with database:
                yield database

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"the registry {self._path.name} cannot be used: {error}. If another program holds it, end that one, "
                "and try again; if the disk is full, make room."
            ) from error


__all__ = ["Store", "StoreError"]
