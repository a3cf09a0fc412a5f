"""The queue: what was asked for, how far it is, and what came of it, until it is fetched or its time is over.

A job has an unguessable name and a folder of its own. Places are counted from the first byte of an upload to the end of
the work: who comes when all are taken is told so. What is finished is kept for a while, the newest few, and no longer
than until all of its results were fetched. Safe to call from the web server's thread and the worker's.
"""

import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.errors import ErrorCode, WardroundError

_NAME_BYTES = 16
_MOST_FINISHED = 32


class State(StrEnum):
    """How far a job is."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    WORKING = "working"
    DONE = "done"
    FAILED = "failed"


class BusyError(WardroundError):
    """No place is free."""

    code = ErrorCode.RATE_LIMITED


class StoppingError(WardroundError):
    """The server is about to stop."""

    code = ErrorCode.DEADLINE


@dataclass(eq=False)
class Job:
    """One upload and what came of it. Changed by `Jobs` and the one who works on it.

    wanted: names of the files to make; None: all. done, total: studies of the upload. answer: the result as JSON.
    problem: code and sentence of a failure. files: of results that can still be fetched, by name. ended: set with the
    result.
    """

    name: str
    folder: Path
    wanted: frozenset[str] | None = None
    state: State = State.RECEIVING
    done: int = 0
    total: int = 0
    answer: Mapping[str, Any] | None = None
    problem: tuple[ErrorCode, str] | None = None
    files: dict[str, Path] = field(default_factory=dict)
    until: float = 0.0
    ended: "Future[None]" = field(default_factory=Future)

    @property
    def studies(self) -> Path:
        """Where its files lie."""
        return self.folder / "studies"

    @property
    def results(self) -> Path:
        """Where its results lie."""
        return self.folder / "results"


class Jobs:
    """All jobs."""

    def __init__(
        self,
        folder: Path,
        places: int,
        keep_s: float,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """None yet.

        Args:
            folder: of their folders; private.
            places: jobs that are received, wait or are worked on at a time.
            keep_s: how long a finished one is kept.
            stopped: whether no job is taken any more; asked from any thread.
            clock: seconds that only grow.
        """
        self._folder, self._places, self._keep_s, self._stopped, self._clock = folder, places, keep_s, stopped, clock
        self._lock = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()

    @property
    def stopping(self) -> bool:
        """Whether no job is taken any more."""
        return self._stopped()

    def reserve(self, wanted: frozenset[str] | None = None) -> Job:
        """A place for a job, whose upload is to come. wanted: names of the files to make; None: all.

        Raises:
            BusyError: all are taken.
            StoppingError: the server stops.
        """
        if self.stopping:
            raise _stopping()
        with self._lock:
            self._expire()
            if sum(job.state not in (State.DONE, State.FAILED) for job in self._jobs.values()) >= self._places:
                raise BusyError(f"all {self._places} places are taken. Send it again later.")
            name = secrets.token_urlsafe(_NAME_BYTES)
            job = Job(name, self._folder / name, wanted)
            job.folder.mkdir(mode=0o700)
            self._jobs[name] = job
            return job

    def enqueue(self, job: Job) -> None:
        """The upload of a job is whole.

        Raises:
            StoppingError: the server stops, and nobody would work on it.
        """
        with self._lock:
            if self.stopping:
                raise _stopping()
            job.state = State.QUEUED
            self._waiting.append(job)
            self._lock.notify()

    def take(self, patience_s: float) -> Job | None:
        """The next job to work on; None: there was none for so long."""
        with self._lock:
            self._expire()
            if not self._waiting:
                self._lock.wait(patience_s)
            if not self._waiting:
                return None
            job = self._waiting.popleft()
            job.state = State.WORKING
            return job

    def finish(
        self, job: Job, answer: Mapping[str, Any] | None = None, problem: tuple[ErrorCode, str] | None = None
    ) -> None:
        """A job is done, or has failed; its studies are removed."""
        shutil.rmtree(job.studies, ignore_errors=True)
        with self._lock:
            if job.name not in self._jobs:  # nobody wants it any more
                shutil.rmtree(job.folder, ignore_errors=True)
            job.answer, job.problem = answer, problem
            job.state = State.DONE if problem is None else State.FAILED
            job.until = self._clock() + self._keep_s
            self._expire()
        if not job.ended.done():
            job.ended.set_result(None)

    def find(self, name: str) -> Job | None:
        """A job by its name; None: there is none, or none any more."""
        with self._lock:
            self._expire()
            return self._jobs.get(name)

    def position(self, job: Job) -> int:
        """How many jobs are to be worked on before this one."""
        with self._lock:
            return self._waiting.index(job) if job in self._waiting else 0

    def fetch(self, job: Job, name: str) -> bytes | None:
        """A result, once; with the last one the job is forgotten. None: there is none of this name."""
        with self._lock:
            path = job.files.pop(name, None)
        if path is None:
            return None
        data = path.read_bytes()
        path.unlink()
        if not job.files:
            self.forget(job)
        return data

    def forget(self, job: Job) -> None:
        """Remove a job and all that it holds; one that is worked on is removed when that ends."""
        with self._lock:
            self._jobs.pop(job.name, None)
            if job in self._waiting:
                self._waiting.remove(job)
        if job.state is not State.WORKING:
            shutil.rmtree(job.folder, ignore_errors=True)
        if not job.ended.done() and job.state is not State.WORKING:
            job.ended.set_result(None)

    def abandon(self) -> None:
        """Fail all that waits, for the server stops."""
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for job in waiting:
            self.finish(job, problem=(ErrorCode.DEADLINE, "the server was stopped. Send it again."))

    def _expire(self) -> None:
        """Under the lock: remove what is finished and too old, or beyond the number that is kept."""
        finished = [job for job in self._jobs.values() if job.state in (State.DONE, State.FAILED)]
        surplus = sorted(finished, key=lambda job: job.until)[: max(0, len(finished) - _MOST_FINISHED)]
        now = self._clock()
        for job in finished:
            if job.until <= now or job in surplus:
                self._jobs.pop(job.name, None)
                shutil.rmtree(job.folder, ignore_errors=True)


def _stopping() -> StoppingError:
    return StoppingError("the server is about to stop. Ask again when it has been started.")


__all__ = ["BusyError", "Job", "Jobs", "State", "StoppingError"]
