"""Whether a run's ServerApp lives: it holds a lock in the run's folder, which the kernel drops the moment it dies.

Flower itself notices by missing heartbeats, after a minute. The lock also keeps two ServerApps of one run apart: one
that has lost its SuperLink needs a few seconds to end.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import FederationError

_NAME = "serverapp.lock"
# Longer than a ServerApp takes to end after its SuperExec: see server/app.py.
_PATIENCE_S = 20.0
_LOOK_EVERY_S = 0.1


@contextmanager
def alive(folder: Path, run_id: int) -> Iterator[None]:
    """While the body runs, this process is the run's ServerApp.

    Args:
        folder: of the run.
        run_id: Flower's.

    Raises:
        FederationError: another one does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _PATIENCE_S
    with (folder / _NAME).open("a+") as lock:
        while not _locked(lock.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise FederationError("another ServerApp of this run does not end; it is tried again later")
            time.sleep(_LOOK_EVERY_S)
        lock.truncate(0)
        lock.write(str(run_id))
        lock.flush()
        yield


def has_died(folder: Path, run_id: int) -> bool:
    """Whether the ServerApp of this run id was there and is no more; False also before it has begun."""
    path = folder / _NAME
    if not path.exists():
        return False
    with path.open() as lock:
        # The lock before the name: one that has just begun writes its name after it took the lock.
        return _locked(lock.fileno(), fcntl.LOCK_SH) and lock.read() == str(run_id)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


__all__ = ["alive", "has_died"]
