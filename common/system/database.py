"""A transaction on a SQLite file that must not lose what it acknowledged: the audit log, the privacy ledger.

The file is locked before anything is read, and on disk when the transaction returns; then it is complete by itself (a
rollback journal, no WAL beside it). From its first moment only its owner can read it. Any number of threads and
processes may use it at once, as long as no program opens such a file by other means than SQLite while it uses it:
closing one descriptor of a file drops every lock that the process has on it (POSIX; section 2.2 of
https://sqlite.org/howtocorrupt.html).
"""

import errno
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from common.errors import ErrorCode
from common.system.files import create_private

Unusable = Callable[[str, sqlite3.Error | OSError, ErrorCode], Exception]

# A charge to the ledger holds the lock while it is decided, which takes the accountant seconds at worst.
_LOCK_TIMEOUT_S = 60.0
# What a disk says that has no room, or whose user has used up theirs.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_JOURNAL_BYTES = 16 * 1024


@contextmanager
def transaction(path: Path, unusable: Unusable) -> Iterator[sqlite3.Connection]:
    """Lock the file; what the body writes is on disk on return, all of it, or none if the body raises.

    Args:
        path: of the file; made with mode 0600.
        unusable: makes the error that is raised if SQLite or the file system refuses, of the file's name, what was
            said, and the code for it.
    """
    try:
        # SQLite gives its journal the same mode. Not by opening the file itself: to close it again could drop the
        # lock of a thread that found it just then.
        create_private(path, b"")
    except OSError as error:
        raise unusable(path.name, error, _code(error, path)) from error
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)) as database:
            # EXTRA also syncs the folder after the rollback journal is deleted; with FULL a power cut could bring the
            # journal back, and with it undo what was acknowledged.
            database.execute("PRAGMA synchronous = EXTRA")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise unusable(path.name, error, _code(error, path)) from error


def _code(error: sqlite3.Error | OSError, path: Path) -> ErrorCode:
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in _FULL
    # Where not even the journal can be made, SQLite says that it cannot open or write.
    if not full and isinstance(error, sqlite3.OperationalError):
        with suppress(OSError):
            full = shutil.disk_usage(path.parent).free < _JOURNAL_BYTES
    return ErrorCode.DISK_FULL if full else ErrorCode.INTERNAL


__all__ = ["Unusable", "transaction"]
