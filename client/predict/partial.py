"""The folder in which a result is made before it is moved to its place, and what a process that was killed left of it.

Each holds a lock for as long as it is used (`common.system.locks`): the kernel lets go of it when the process ends,
however it ends. So a folder whose lock is free belongs to nobody, and the next result takes it away.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.system.locks import locked

_PREFIX = ".partial-"
_NAME = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")  # as tempfile ends it
_LOCK = ".lock"


class _InUseError(Exception):
    """Another process, or thread, is making a result there."""


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A folder of our own inside another while the body runs.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        with locked(path / _LOCK) as lock:
            # Somebody who tidied up may have come before the lock was held.
            if not _is_there(path / _LOCK, lock.fileno()):
                continue
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
            return


def remove_leftovers(folder: Path) -> None:
    """Take away what processes that ended left of results in a folder; those of living ones stay."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not _NAME.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(_InUseError, OSError), locked(path / _LOCK, _InUseError(), patience_s=0.0):
            shutil.rmtree(path, ignore_errors=True)


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether a path still names the file that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


__all__ = ["partial_folder", "remove_leftovers"]
