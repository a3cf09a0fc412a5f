"""The process that the workers are forked from: it has loaded what they need, and has never started a thread.

torch, MONAI and the rest take four seconds of a core and 300 MB to load. A worker that is forked has them at once and
shares that memory. To fork is safe only from a process of one thread: the child has none of its parent's threads, and
what these held (a lock, OpenMP's pool) stays as it was for ever. So the nursery does nothing but fork. It is itself
forked from the simulation while that has one thread, and else started anew. The threads that numpy's and scipy's
OpenBLAS start when they are loaded do not count: OpenBLAS ends them before a fork, and starts them when it needs them.
Nor does the one of the jemalloc in pyarrow, which monai loads where it is there: jemalloc takes its own locks around a
fork, and in the child it has no thread.

Whoever asks speaks to it by a socket, five bytes a question and eight an answer:

    "+" and a socket    start a worker that serves this socket: its process id
    "-" and a process id    kill that worker, if it lives: how it ended, as `os.waitpid` says

It and its workers are in a session of their own, where no Ctrl-C comes. They end when the socket is closed, and on
Linux as soon as their parent is gone, however it ended.
"""

import argparse
import contextlib
import gc
import importlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from common.console.logs import log_to
from common.errors import FederationError
from common.system.environment import PACKAGES, flower_variables, for_child
from common.system.sandbox import die_with_parent

_QUESTION, _ANSWER = struct.Struct("!ci"), struct.Struct("!q")
_START, _END = b"+", b"-"
_TASKS = Path("/proc/self/task")
_JEMALLOC = "jemalloc_bg_thd"
_NAME = "simulations.backends.nursery"
_BUFFER_BYTES = 1 << 20
_ENDED_S = 0.5
_LIMIT_S = 180.0  # to load everything takes 4 s, on a busy machine a minute


class Nursery:
    """Starts and ends workers. For any thread."""

    def __init__(self) -> None:
        """Start it; it lives until `close`, or until this process ends."""
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_LIMIT_S)
        self._lock = threading.Lock()
        level = logging.getLogger().getEffectiveLevel()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = _forked(theirs, level) if _may_fork() else None
        if self._pid is None:
            self._process = _spawned(theirs, level)
        theirs.close()

    def start(self) -> tuple[int, socket.socket]:
        """A new worker: its process id, and the socket by which it is asked.

        Raises:
            FederationError: there is no nursery any more.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            for one in (ours, theirs):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            try:
                return self._ask(_START, 0, theirs.fileno()), ours
            except OSError as error:
                ours.close()
                raise FederationError(
                    "no worker could be started: the process that starts them is gone, or has no memory left. Run the "
                    "command again with fewer --workers, or with --backend in-process."
                ) from error

    def end(self, pid: int) -> int:
        """Kill a worker; how it ended, or had ended before: negative the signal, else the exit code."""
        try:
            return os.waitstatus_to_exitcode(self._ask(_END, pid))
        except OSError:
            return -signal.SIGKILL  # it ended with the nursery

    def close(self) -> None:
        """End it and all workers."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # another thread may wait for an answer
        self._control.close()
        if self._process is not None:
            self._process.wait()
        elif self._pid is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)

    def _ask(self, what: bytes, number: int, *descriptors: int) -> int:
        with self._lock:
            try:
                socket.send_fds(self._control, [_QUESTION.pack(what, number)], descriptors)
                answer = _whole(self._control, _ANSWER.size)
            except TimeoutError:
                # An answer that comes after all would be taken for that to the next question.
                self._control.shutdown(socket.SHUT_RDWR)
                raise
        if len(answer) < _ANSWER.size:
            raise ConnectionError("the process that starts workers has ended")
        (said,) = _ANSWER.unpack(answer)
        return int(said)


def _forked(control: socket.socket, level: int) -> int:
    from simulations.backends import worker  # noqa: F401, PLC0415 - loaded here, it is there in the child

    for stream in (sys.stdout, sys.stderr):
        stream.flush()

    def begin() -> None:
        gc.freeze()  # what the parent has open it closes itself
        os.setsid()
        _keep_only(control.fileno())
        logging.getLogger().handlers.clear()
        _tend(control.fileno(), level)

    return _fork(begin)


def _spawned(control: socket.socket, level: int) -> "subprocess.Popen[bytes]":
    # Not by -m, which warns of a module that its own package has loaded already.
    command = [sys.executable, "-P", "-c", f"import sys; from {_NAME} import main; sys.exit(main())"]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [*command, "--control", str(control.fileno()), "--level", str(level)],
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=[control.fileno()],
        env=for_child(PYTHONPATH=str(PACKAGES), **flower_variables()),
        start_new_session=True,
    )


def _may_fork() -> bool:
    """Whether this process has one thread, or none beside it that matters; elsewhere than on Linux nobody knows.

    One without standard output or error may not, as the next file that is opened is taken for it.
    """
    if not _TASKS.is_dir() or None in (sys.stdout, sys.stderr) or threading.active_count() > 1:
        return False
    if _threads() > 1:
        os.waitpid(_fork(lambda: None), 0)
        # One that has ended is counted until the kernel has put it away, which takes a moment on a busy machine.
        end = time.monotonic() + _ENDED_S
        while _threads() > 1 and time.monotonic() < end:
            time.sleep(0.005)
    return _threads() == 1


def _threads() -> int:
    """Of this process, those that a fork is not safe from."""
    found = 0
    for task in _TASKS.iterdir():
        with contextlib.suppress(OSError):  # it has ended since
            found += (task / "comm").read_text().strip() != _JEMALLOC
    return found


def _fork(do: Callable[[], None]) -> int:
    """Fork a process that does this and ends, whatever happens; its id."""
    # A Ctrl-C that comes now would be raised in the child too, before anything there ends it: a second command went on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the threads that are named above
            pid = os.fork()
        if not pid:
            _forked_does(do, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _forked_does(do: Callable[[], None], heeded: Iterable[int]) -> NoReturn:
    status = 1
    try:
        _heed_no_interrupt()
        signal.pthread_sigmask(signal.SIG_SETMASK, heeded)
        do()
        status = 0
    except BaseException:
        logging.getLogger(__name__).exception("a process of the workers fails")
    finally:
        os._exit(status)  # nothing of what the parent has open is closed here a second time


def _heed_no_interrupt() -> None:
    # Ctrl-C does not come here, but a handler of the parent's may have.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tend(control: int, level: int) -> None:
    """Start and end workers until the socket is closed."""
    die_with_parent()
    _heed_no_interrupt()
    log_to(level)
    from simulations.backends import worker  # noqa: PLC0415 - heavy, and loaded before the first fork

    with contextlib.suppress(ImportError):
        importlib.import_module("torch._dynamo")  # an optimiser loads it at its first step: a second of a core
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, what the workers share
    asked = socket.socket(fileno=control)
    alive: set[int] = set()
    while True:
        question, descriptors, _, _ = socket.recv_fds(asked, _QUESTION.size, 1)
        if len(question) < _QUESTION.size:
            break
        what, number = _QUESTION.unpack(question)
        if what == _END:
            alive.remove(number)
            _answer(asked, _ended(number))
            continue

        def work(theirs: int = descriptors[0]) -> None:
            asked.close()
            die_with_parent()
            worker.serve(theirs)

        pid = _fork(work)
        os.close(descriptors[0])
        alive.add(pid)
        _answer(asked, pid)
    for pid in alive:
        _ended(pid)


def _answer(asked: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody waits for it any more; the end is read next
        asked.sendall(_ANSWER.pack(number))


def _ended(pid: int) -> int:
    """Kill a child that has not been waited for, and wait."""
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _keep_only(control: int) -> None:
    """Let go of the parent's files, locks and sockets; what is printed goes to stderr.

    Their numbers stay taken: an object of the parent's that is still here may close its own some time.
    """
    nothing = os.open(os.devnull, os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not files
        if int(name) not in (1, 2, control, nothing):
            with contextlib.suppress(OSError):  # the one by which the folder was read
                os.fstat(int(name))
                os.dup2(nothing, int(name))
    os.dup2(2, 1)


def _whole(source: socket.socket, size: int) -> bytes:
    """So many bytes; fewer where the other end is gone."""
    found = b""
    while len(found) < size and (more := source.recv(size - len(found))):
        found += more
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The nursery, started anew."""
    parser = argparse.ArgumentParser(prog=_NAME)
    parser.add_argument("--control", type=int, required=True, help="file descriptor of the socket")
    parser.add_argument("--level", type=int, required=True, help="of the log")
    said = parser.parse_args(arguments)
    _tend(said.control, said.level)
    return 0


__all__ = ["Nursery"]
