"""One reader process as its parent sees it: started scrubbed, given work, heard, killed.

Its environment holds only what Python needs: no proxy, no token, no home. Its code comes from where this file lies,
whatever the current folder.
"""

import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from client.data.isolate import frames
from common.errors import ErrorCode, WardroundError
from common.system.environment import PACKAGES, for_confined
from common.wire.frames import FrameError, widen

# -P: the current folder is no place to import from.
_COMMAND = (sys.executable, "-P", "-m", "client.data.isolate.reader")
_START_LIMIT_S = 120.0  # imports take 0.4 s; on a machine that thrashes, much longer
_TAKING_LIMIT_S = 10.0  # for questions to be taken by a child that waits for them
_DYING_S = 0.5  # between the end of a pipe and the end of its process
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")

_log = logging.getLogger(__name__)


class ReaderError(WardroundError):
    """No reader could be started: without one nothing is parsed."""

    code = ErrorCode.WORKER_FAILED


class LateError(Exception):
    """A reader has been silent too long."""


class Child:
    """A reader process.

    at: the tasks it has, the first of them in progress. beats: since that began. since: `time.monotonic` when it last
    said something.
    """

    def __init__(self, memory: int) -> None:
        """Start it, and wait until it is ready.

        Args:
            memory: bytes of address space.

        Raises:
            ReaderError: it did not start.
        """
        self.at = range(0)
        self.beats = 0
        self.since = time.monotonic()
        self.dead = False
        self._status: int | None = None
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*_COMMAND, str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # parsers print what they read, and that can be a name
                bufsize=0,
                env=_environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children itself
            )
        except OSError as error:
            raise _not_started(error.strerror or type(error).__name__) from error
        if self._process.stdin is None or self._process.stdout is None:
            raise _not_started("it has no pipe")
        self._questions, self.answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        for fd in (self._questions, self.answers):
            os.set_blocking(fd, False)
            widen(fd)
        try:
            header, _ = self.receive(arrays_limit=0, patience_s=_START_LIMIT_S)
        except (FrameError, LateError) as error:
            raise _not_started(f"{error}; its status is {self.kill()}") from error
        if header.get("kind") != "ready":
            self.kill()
            raise _not_started("it does not speak our frames")
        _log.debug("reader %d started, network %s", self._process.pid, header.get("network"))

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def hand(self, at: range, questions: Sequence[Mapping[str, Any]]) -> None:
        """Give it work. A child that is dead by now, or does not listen, is found dead when it is heard."""
        self.at, self.beats, self.since = at, 0, time.monotonic()
        try:
            frames.send(self._questions, {"questions": questions}, deadline=self.since + _TAKING_LIMIT_S)
        except FrameError:
            self._process.kill()

    def receive(self, *, arrays_limit: int, patience_s: float) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Its next frame.

        Raises:
            LateError: it has been silent for longer than patience_s.
            FrameError: it ended, or does not speak our frames.
        """
        rest_s = max(0.0, self.since + patience_s - time.monotonic())
        if not select.select([self.answers], [], [], rest_s)[0]:
            raise LateError("it is silent")
        frame = frames.receive(self.answers, arrays_limit=arrays_limit, deadline=time.monotonic() + patience_s)
        if frame is None:
            raise FrameError("it ended")
        self.since = time.monotonic()
        self.beats = self.beats + 1 if frame[0].get("kind") == "beat" else 0
        return frame

    def kill(self) -> int | None:
        """End it. Its status, negative for a signal, where it had ended by itself; None where we ended it."""
        if not self.dead:
            self.dead = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                # Where its pipe has ended it is about to end, and its own status tells more than our signal.
                self._status = self._process.wait(_DYING_S if self._hung_up() else 0)
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
        return self._status

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self.answers, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poll.poll(0))


def _environment() -> dict[str, str]:
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    return for_confined(
        *_KEPT_VARIABLES,
        **threads,
        PYTHONPATH=str(PACKAGES),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONNOUSERSITE="1",
        HOME="/nonexistent",
    )


def _not_started(why: str) -> ReaderError:
    return ReaderError(
        f"the process that reads images could not be started ({why}). Without it no image is opened. Free memory and "
        "processes, and check that this Python runs `python -m client.data.isolate.reader`."
    )


__all__ = ["Child", "LateError", "ReaderError"]
