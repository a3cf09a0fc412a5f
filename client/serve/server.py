"""From start to stop: the socket, the token, the private folder, the web server's thread, the work.

The work is in the main thread, where signals arrive; the web server has a thread. At a stop no job is taken any more,
the one in hand is finished, those that wait are failed, and the folder goes. A process that is killed leaves it to the
sweeper; where that is killed too, the next start removes what nobody holds the lock of.
"""

import contextlib
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from client.predict.latency import Latency
from client.predict.prediction import load_predictor
from client.serve import sweeper
from client.serve.app import made
from client.serve.connection import Connection
from client.serve.guard import Guard
from client.serve.jobs import Jobs
from client.serve.token import Token
from client.serve.upload import Limits
from client.serve.work import Figures, work
from common.errors import ConfigError
from common.system.locks import is_locked, locked

LOOPBACK = ("127.0.0.1", "::1")

_PREFIX = "wardround-serve-"
_LOCK_NAME = "lock"
_YOUNG_S = 60.0  # a folder may be so young that its lock is not taken yet
_GRACE_S = 5  # for answers that are under way when the server stops
_STARTING_S = 30.0
_MOST_CONNECTIONS = 64


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
    with _listening(port, both) as sockets, _private(folder) as place:
        token = Token.made(place / "token")
        (place / "jobs").mkdir(mode=0o700)
        jobs = Jobs(place / "jobs", places, keep_s, stopped)
        number = sockets[0].getsockname()[1]
        app = Guard(made(jobs, figures, limits, segmenter.sha256), token, _hosts(number, both), limits.upload)
        addresses = tuple(f"http://{f'[{host}]' if ':' in host else host}:{number}" for host in LOOPBACK[: 1 + both])

        with _answering(app, sockets):
            started(Started(addresses, token.path))
            work(segmenter, jobs, figures, stopped=stopped, told=told)
    return Served(figures.done, figures.failed, figures.latency)


def _hosts(port: int, both: bool) -> Sequence[bytes]:
    names = ["127.0.0.1", "localhost", *(["[::1]"] if both else [])]
    return [f"{name}:{port}".encode() for name in names]


@contextlib.contextmanager
def _listening(port: int, both: bool) -> Iterator[list[socket.socket]]:
    """Sockets on the loopback addresses, on one port."""
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for host in LOOPBACK[: 1 + both]:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            one = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, sockets[0].getsockname()[1] if sockets else port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} of {host} cannot be taken ({error.strerror}). Give another --port, or 0 for a free "
                    "one."
                ) from error
            sockets.append(one)
        yield sockets


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


@contextlib.contextmanager
def _answering(app: Guard, sockets: list[socket.socket]) -> Iterator[None]:
    """The web server, in a thread."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_GRACE_S,
    )
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it quotes requests
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, name="web", daemon=True)
    thread.start()
    deadline = time.monotonic() + _STARTING_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ConfigError("the web server did not start. Give another --port.")
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


__all__ = ["LOOPBACK", "Served", "Started", "serve"]
