"""From start to stop: the socket, the token, the private folder, the web server's thread, the work.

The work is in the main thread, where signals arrive; the web server has a thread. At a stop no job is taken any more,
the one in hand is finished, those that wait are failed, and the folder goes. A process that is killed leaves it to the
sweeper; where that is killed too, the next start removes what nobody holds the lock of.
"""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from client.predict.latency import Latency
from client.predict.prediction import load_predictor
from client.serve import sweeper
from client.serve.app import made
from client.serve.jobs import Jobs
from client.serve.upload import Limits
from client.serve.work import Figures, work
from common.errors import ConfigError
from common.system.locks import is_locked, locked
from common.web.guard import Guard
from common.web.listening import LOOPBACK, answering, hosts_of, listening
from common.web.token import Token

OPEN = ("/health",)

_PREFIX = "wardround-serve-"
_LOCK_NAME = "lock"
_YOUNG_S = 60.0  # a folder may be so young that its lock is not taken yet


@dataclass(frozen=True)
class Started:
    """Where the server listens. token: the file that holds it."""

    addresses: tuple[str, ...]
    token: Path


@dataclass(frozen=True)
class Served:
    """What was done until the stop."""

    done: int
    failed: int
    latency: tuple[Latency, ...]


def serve(
    model: Path,
    *,
    port: int,
    both: bool,
    folder: Path | None,
    device: str,
    places: int,
    keep_s: float,
    limits: Limits,
    stopped: Callable[[], bool],
    started: Callable[[Started], None],
    told: Callable[[str], None],
) -> Served:
    """Serve a model until told to stop.

    Args:
        model: as for `predict_study`.
        port: 0: a free one.
        both: also listen on ::1.
        folder: where uploads and the token lie, in a private folder of their own; None: the system's temporary folder.
        device: as for `predict_study`.
        places: jobs received, waiting and worked on at a time.
        keep_s: how long a result is kept that nobody fetches.
        limits: of uploads.
        stopped: asked before a job is taken and between jobs.
        started: called once, when the server is ready.
        told: receives a line for each study.

    Raises:
        ConfigError: the model cannot be loaded, the port is taken, or the folder cannot be written.
    """
    segmenter = load_predictor(model, device)
    figures = Figures()
    with listening(port, both=both) as sockets, _private(folder) as place:
        token = Token.made(place / "token")
        (place / "jobs").mkdir(mode=0o700)
        jobs = Jobs(place / "jobs", places, keep_s, stopped)
        number = sockets[0].getsockname()[1]
        app = Guard(
            made(jobs, figures, limits, segmenter.sha256), token, hosts_of(number, both=both), limits.upload, free=OPEN
        )
        addresses = tuple(f"http://{f'[{host}]' if ':' in host else host}:{number}" for host in LOOPBACK[: 1 + both])

        with answering(app, sockets):
            started(Started(addresses, token.path))
            work(segmenter, jobs, figures, stopped=stopped, told=told)
    return Served(figures.done, figures.failed, figures.latency)


@contextlib.contextmanager
def _private(folder: Path | None) -> Iterator[Path]:
    """A folder of our own that goes with us, and with which those go that others left."""
    parent = Path(tempfile.gettempdir()) if folder is None else folder
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_left_behind(parent)
        place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)).resolve()  # mode 0700
    except OSError as error:
        raise ConfigError(f"--folder cannot be written ({error.strerror}). Give another folder.") from error
    with locked(place / _LOCK_NAME), _swept(place):
        yield place


@contextlib.contextmanager
def _swept(place: Path) -> Iterator[None]:
    """Have the folder removed at the end, whatever the end is."""
    command = [sys.executable, "-I", "-S", str(Path(sweeper.__file__).resolve()), str(place)]
    watching = subprocess.Popen(  # noqa: S603 - our own interpreter and file
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    )
    try:
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if watching.stdin is not None:
            watching.stdin.close()
        watching.wait()


def _remove_left_behind(parent: Path) -> None:
    for place in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = place.lstat()
            # In a folder of all users another's is not even looked into: to open a pipe there would wait for ever.
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if ours and time.time() - found.st_mtime > _YOUNG_S and not is_locked(place / _LOCK_NAME):
                shutil.rmtree(place, ignore_errors=True)


__all__ = ["Served", "Started", "serve"]
