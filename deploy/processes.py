"""Processes that end with this one: each with its log, none left behind.

SIGINT, SIGTERM and SIGHUP are noted and raised at the next step, so that no process is started without being known.
Should this process be killed, the kernel asks the others to end (prctl(2), PR_SET_PDEATHSIG). Each has a session of
its own: Ctrl-C in the terminal reaches this process alone, which then stops the others in order.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Self

import psutil

from common.system.environment import for_child

ROOT = Path(__file__).resolve().parent.parent

LOOK_EVERY_S = 0.1
COMMAND_TIMEOUT_S = 120.0
# A supervisor stops its own children within this time.
GRACE_S = 20.0
PR_SET_PDEATHSIG = 1


class StepError(Exception):
    """A step failed; the text says which, and where to look."""


class StoppedError(Exception):
    """SIGINT, SIGTERM or SIGHUP came."""


class Processes:
    """The processes of one play, from their start to the end of all."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[subprocess.Popen[bytes], str] = {}
        self._signals: list[int] = []
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Only noted here: an exception from a handler could strike between a process' start and its entry.
            signal.signal(number, lambda received, _frame: self._signals.append(received))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self, name: str, *command: str | Path, visible: bool = False) -> subprocess.Popen[bytes]:
        """Start a process; what it prints goes to logs/NAME.log, or to the terminal."""
        with (self._logs / f"{name}.log").open("ab") as log:
            return self._spawn(name, command, None if visible else log, None if visible else log)

    def run(self, name: str, *command: str | Path, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a command to its end and return what it printed to stdout."""
        output = self._logs / f"{name}.out"
        with output.open("wb") as file, (self._logs / f"{name}.log").open("ab") as log:
            process = self._spawn(name, command, file, log)
        self.finish(name, process, timeout_s)
        return output.read_text(encoding="utf-8")

    def finish(self, name: str, process: subprocess.Popen[bytes], timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Wait for a process that ends by itself."""
        self.until(lambda: process.poll() is not None, name, timeout_s)
        del self._running[process]
        if process.returncode:
            raise self._failure(f"{name} failed", name)

    def printed(self, name: str, process: subprocess.Popen[bytes]) -> str:
        """What a process has printed so far; a failure if it has failed."""
        if process.poll():
            raise self._failure(f"{name} failed", name)
        return (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def until(self, ready: Callable[[], bool], name: str, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.rest(LOOK_EVERY_S)
            if time.monotonic() > deadline:
                raise self._failure(f"{name} took longer than {timeout_s:g} s", name)

    def tree(self, name: str) -> list[psutil.Process]:
        """A running process and all that it has started."""
        root = next(psutil.Process(process.pid) for process, known in self._running.items() if known == name)
        return [root, *root.children(recursive=True)]

    def rest(self, seconds: float) -> None:
        """Sleep, unless a signal came."""
        self._check()
        time.sleep(seconds)
        self._check()

    def stop_all(self) -> None:
        """End every process: ask, wait, and kill what does not go."""
        for process in self._running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in self._running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._running.clear()

    def _spawn(
        self, name: str, command: Sequence[str | Path], stdout: IO[bytes] | None, stderr: IO[bytes] | None
    ) -> subprocess.Popen[bytes]:
        self._check()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=for_child(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=self._die_with_parent() if self._libc else None,  # noqa: PLW1509 - one thread here
        )
        self._running[process] = name
        return process

    def _check(self) -> None:
        if self._signals:
            raise StoppedError(signal.Signals(self._signals[0]).name)

    def _failure(self, text: str, name: str) -> StepError:
        path = self._logs / f"{name}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return StepError("\n".join([f"{text}. The last lines of {shown(path)}:", *lines[-8:]]))

    def _die_with_parent(self) -> Callable[[], None]:
        libc, parent = self._libc, os.getpid()

        def before_exec() -> None:
            assert libc is not None  # noqa: S101 - asked before
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        return before_exec


def shown(path: Path) -> str:
    """A path as a person types it from the current folder."""
    return os.path.relpath(path)
