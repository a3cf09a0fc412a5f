"""Whether a run's ServerApp lives: it holds a lock in the run's folder, which the kernel drops the moment it dies.

Flower itself notices by missing heartbeats, after a minute. The lock also keeps two ServerApps of one run apart: one
that has lost its SuperLink needs a few seconds to end.

Before it takes its lock a ServerApp loads torch, which takes seconds. Flower tells nobody which process is on its way
to which run, so these are counted: where there is none any more, none will come.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from common.errors import FederationError
from common.flower.processes import SERVER_APP
from common.system.locks import is_locked, left_behind, locked

_NAME = "serverapp.lock"
# Longer than a ServerApp takes to end after its SuperExec: see server/app.py.
_PATIENCE_S = 20.0


@contextmanager
def alive(folder: Path, run_id: int) -> Iterator[None]:
    """While the body runs, this process is the run's ServerApp.

    Args:
        folder: of the run.
        run_id: Flower's.

    Raises:
        FederationError: another one does not end.
    """
    busy = FederationError("another ServerApp of this run does not end; it is tried again later")
    with locked(folder / _NAME, busy, patience_s=_PATIENCE_S) as lock:
        lock.truncate(0)
        lock.write(str(run_id))
        lock.flush()
        yield


def has_died(folder: Path, run_id: int) -> bool:
    """Whether the ServerApp of this run id was there and is no more; False also before it has begun."""
    return left_behind(folder / _NAME) == str(run_id)


def has_begun(folder: Path, run_id: int) -> bool:
    """Whether the ServerApp of this run id has taken the lock, whatever became of it."""
    path = folder / _NAME
    return path.exists() and path.read_text(encoding="utf-8") == str(run_id)


def on_their_way(superexec: int, folders: Iterable[Path]) -> int:
    """How many ServerApps there are that hold no lock: they are being loaded, wait for another, or are about to end.

    Args:
        superexec: process id of Flower's SuperExec, which starts them.
        folders: of the runs.
    """
    try:
        children = psutil.Process(superexec).children()
    except psutil.NoSuchProcess:
        return 0
    return sum(map(_is_server_app, children)) - sum(is_locked(folder / _NAME) for folder in folders)


def _is_server_app(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and any(SERVER_APP in word for word in process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


__all__ = ["alive", "has_begun", "has_died", "on_their_way"]
