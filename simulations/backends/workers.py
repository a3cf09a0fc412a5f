"""The workers of the backend `processes`: who does what, and what happens when one dies.

Each worker has a thread here that waits for it, so that a free worker is given its next site at once. The site that
took longest when it was asked for the same last time goes first (Graham, SIAM J. Appl. Math. 1969: this ends at most a
third later than the best order); of sites that take about as long a worker takes one that it has worked for, whose
studies it may have in memory. A site is with one worker at a time, as its ledger and files are.

A worker that dies, or uses no processor for minutes, is replaced, and its site is asked again under a new attempt. In a
private run the first attempt's charge pays for it, as at a hospital (client/agent/spending.py): nothing of it has left,
and the worker that could have sent it is gone.
"""

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from client.agent.pulse import STALLED_S, Pulse
from client.data.deidentify.pseudonym import cohort_id
from client.site import Site
from client.worker import protocol
from client.worker.protocol import PipeError, Work
from common.config.rundocument import RunDocument
from common.errors import ErrorCode
from common.text import counted
from common.wire.messages import EvaluateReply, Refusal, Reply, Request, TrainReply, TrainRequest
from simulations.backends.nursery import Nursery
from simulations.backends.worker import Place, question_to_frame

# A site is asked so often in all while its worker dies.
ATTEMPTS = 3

_LOOK_EVERY_S = 5.0
# Sites whose times differ by less take about as long.
_ABOUT = 0.8

_log = logging.getLogger(__name__)


class _StalledError(PipeError):
    """The worker hangs."""


@dataclass(frozen=True, eq=False)
class Job:
    """One request to one site. attempt: names it in the site's ledger, with ".1" for the second time and so on."""

    site: Site
    run: RunDocument
    request: Request
    attempt: str
    place: Place
    reply: "Future[Reply]" = field(default_factory=Future)

    @property
    def kind(self) -> tuple[Path, type[Request]]:
        """Jobs of one kind take about as long each time."""
        return self.site.home, type(self.request)


class Workers:
    """Some processes, and the threads that wait for them."""

    def __init__(self, count: int, nursery: Nursery) -> None:
        """No process is there before there is work.

        Args:
            count: of processes, at most.
            nursery: starts and ends them.
        """
        self.count, self._nursery = count, nursery
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._at_work: dict[Job, _Worker] = {}
        self._seconds: dict[tuple[Path, type[Request]], float] = {}  # that a kind of job took last
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def stop(self) -> None:
        """Do nothing more: what is at work is given up, with its process. Returns at once."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            for worker in self._at_work.values():
                worker.give_up()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until all threads and processes have ended."""
        for thread in self._threads:
            thread.join()

    def give(self, jobs: Sequence[Job]) -> None:
        """Have these done; their replies come in any order."""
        with self._changed:
            self._waiting += jobs
            self._changed.notify_all()
            while len(self._threads) < min(self.count, len(self._waiting) + len(self._at_work)):
                thread = threading.Thread(target=self._serve, name=f"worker-{len(self._threads) + 1}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def drop(self, jobs: Sequence[Job]) -> None:
        """Nobody wants these any more: those at work are given up, with their workers."""
        with self._changed:
            self._waiting = [one for one in self._waiting if one not in jobs]
            under_way = [job for job in jobs if job in self._at_work]
            for job in under_way:
                self._at_work[job].give_up()
            while any(job in self._at_work for job in under_way):
                self._changed.wait()

    def _serve(self) -> None:
        worker = _Worker(self._nursery)
        while (job := self._take(worker)) is not None:
            started = time.monotonic()
            try:
                job.reply.set_result(worker.work(job))
            except BaseException as error:  # noqa: BLE001 - it is raised where the reply is looked for
                job.reply.set_exception(error)
            with self._changed:
                del self._at_work[job]
                self._seconds[job.kind] = time.monotonic() - started
                self._changed.notify_all()
        worker.close()

    def _take(self, worker: "_Worker") -> Job | None:
        """The next job of a worker, once there is one; None: it is over."""
        with self._changed:
            while not self._stopped:
                busy = {job.site.home for job in self._at_work}
                free = [job for job in self._waiting if job.site.home not in busy]
                if free:
                    job = chosen(free, self._seconds, worker.sites)
                    self._waiting.remove(job)
                    self._at_work[job] = worker
                    worker.begin()
                    return job
                self._changed.wait()
            return None


def chosen(
    jobs: Sequence[Job], seconds: Mapping[tuple[Path, type[Request]], float], known: Mapping[Path, object]
) -> Job:
    """Which of these a worker does next.

    Args:
        jobs: in the order in which they were given.
        seconds: that each kind took last; what is not there may take long.
        known: homes of the sites that the worker has worked for.
    """
    times = [seconds.get(job.kind, float("inf")) for job in jobs]
    long = [job for job, time_ in zip(jobs, times, strict=True) if time_ >= _ABOUT * max(times)]
    return next((job for job in long if job.site.home in known), long[0])


class _Worker:
    """One process at a time, replaced when it dies. For one thread, but for `give_up`."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._pid = 0
        self._socket: socket.socket | None = None
        self._parts = ""  # hash of those that the process has
        self._given_up = False
        self.sites: dict[Path, None] = {}  # for whom the process has worked

    def begin(self) -> None:
        """What was given up before does not count."""
        self._given_up = False

    def give_up(self) -> None:
        """End what is under way. For any thread."""
        self._given_up = True
        if (asked := self._socket) is not None:
            _shut(asked)

    def close(self) -> None:
        """End the process."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._nursery.end(self._pid)

    def work(self, job: Job) -> Reply:
        """The site's reply, if need be by another process.

        Raises:
            FederationError: no process can be started.
        """
        attempt = job.attempt
        for number in range(1, ATTEMPTS + 1):
            try:
                return self._ask(job, attempt)
            except PipeError as error:
                what = self._bury(error)
            if self._given_up:
                break
            _log.warning(
                "%s of site %s: its worker %s%s",
                _words(job.request),
                job.site.config.name,
                what,
                "; it is asked again" if number < ATTEMPTS else f", {counted(ATTEMPTS, 'time')} in a row",
            )
            attempt = f"{job.attempt}.{number}"
            _carry(job, attempt)
        return Refusal(job.run.hash, job.request.round, ErrorCode.WORKER_FAILED)

    def _ask(self, job: Job, attempt: str) -> Reply:
        if self._socket is None:
            self._pid, self._socket = self._nursery.start()
        if self._given_up:  # before there was a process that could have been ended
            raise PipeError("nobody waits for the answer")
        fd, digest = self._socket.fileno(), job.request.sha256
        work = Work(job.run, job.request, attempt)
        frame = question_to_frame(work, job.place, job.site.key, with_parts=digest != self._parts)
        protocol.send(fd, frame)
        self._parts = digest
        self.sites[job.site.home] = None
        self._await(fd)
        answer = protocol.receive(fd)
        if answer is None:
            raise PipeError("the worker ended while it worked")
        reply = protocol.answer_from_frame(answer)
        if not isinstance(reply, TrainReply | EvaluateReply | Refusal):
            raise PipeError("the worker gave no reply")
        return reply

    def _await(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        pulse: Pulse | None = None
        while not poll.poll(_LOOK_EVERY_S * 1000):
            pulse = pulse or Pulse(self._pid)
            if (still_s := pulse.still_s()) > STALLED_S:
                raise _StalledError(f"hung: it had used no processor for {still_s:.0f} s")

    def _bury(self, error: PipeError) -> str:
        """End the process, if it has not ended; how it did, in words."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._parts, self.sites = "", {}
        code = self._nursery.end(self._pid)
        if isinstance(error, _StalledError):
            return str(error)
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _carry(job: Job, attempt: str) -> None:
    """Let the charge of the attempts before pay for this one, if there was one."""
    if job.run.config.privacy is not None and isinstance(job.request, TrainRequest):
        cohort = cohort_id(job.site.key)
        job.site.ledger.carry(cohort, job.run.hash, job.request.round, attempt, of=job.attempt)


def _words(request: Request) -> str:
    return f"round {request.round}, {'training' if isinstance(request, TrainRequest) else 'scores'}"


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        one.shutdown(socket.SHUT_RDWR)


__all__ = ["ATTEMPTS", "Job", "Workers", "chosen"]
