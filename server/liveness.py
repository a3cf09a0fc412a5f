"""Whether a run's ServerApp lives: it holds a lock in the run's folder, which the kernel drops the moment it dies.

Flower itself notices by missing heartbeats, after a minute. The lock also keeps two ServerApps of one run apart: one
that has lost its SuperLink needs a few seconds to end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import FederationError
from common.locks import left_behind, locked

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


__all__ = ["alive", "has_died"]
