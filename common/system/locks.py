"""A lock file: who holds it is alone, of all threads and processes. The kernel lets go when the process ends.

`flock` on a descriptor of our own, so two threads of one process keep each other out too, and a crash leaves no lock
behind. Over NFS Linux makes of it a lock of the server's, for which the file must be open for writing: it is. The file
itself stays, for to remove it would part those who wait from those who come.

The package filelock would do the same in more lines of ours: it cannot ask whether a lock is held without taking it
from whoever comes just then, nor read what the last holder wrote under the lock. And where a file system knows no
`flock`, it takes the mere presence of a file for a lock, which a crash leaves held; here that is an error.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# So long somebody who only looks may hold a lock, at the very most.
A_LOOK_S = 0.5

_LOOK_EVERY_S = 0.02


@contextmanager
def locked(path: Path, busy: Exception | None = None, *, patience_s: float = A_LOOK_S) -> Iterator[TextIO]:
    """Hold a lock while the body runs.

    Args:
        path: of the lock's file; made, its owner's alone, and its folder too.
        busy: raised if another holds the lock for longer than the patience; None: it is waited for as long as it takes.
        patience_s: how long to wait before `busy` is raised.

    Returns:
        The file, for what others may read while or after it is held.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8", opener=_private) as file:
        deadline = time.monotonic() + patience_s
        while not _take(file, fcntl.LOCK_EX, wait=busy is None):
            if busy is not None and time.monotonic() > deadline:
                raise busy
            time.sleep(_LOOK_EVERY_S)
        yield file


def left_behind(path: Path) -> str | None:
    """What the last holder wrote into the lock's file; None while somebody holds it, or if nobody ever did."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        return file.read() if _take(file, fcntl.LOCK_SH, wait=False) else None


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock. Those who look do not disturb each other."""
    return path.exists() and left_behind(path) is None


def _take(file: TextIO, kind: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


__all__ = ["A_LOOK_S", "is_locked", "left_behind", "locked"]
