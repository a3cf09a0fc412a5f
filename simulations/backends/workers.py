"""The workers of a backend: who does what, and what happens when one dies.

Each worker has a thread here that waits for it, so that a free worker is given its next site at once. The site that
took longest when it was asked for the same last time goes first (Graham, SIAM J. Appl. Math. 1969: this ends at most a
third later than the best order); of sites that take about as long a worker takes one that it has worked for, whose
studies it may have in memory. A site is with one worker at a time, as its ledger and files are.

Where a worker dies its site is asked again under a new attempt, by whoever is free first. In a private run the first
attempt's charge pays for it, as at a hospital (client/agent/spending.py): nothing of it has left, and the worker that
could have sent it is gone. What a worker is, and how it starts and dies, is the backend's.
"""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from client.data.deidentify.pseudonym import cohort_id
from client.site import Site
from common.config.rundocument import RunDocument
from common.errors import ErrorCode
from common.text import counted
from common.wire.messages import Refusal, Reply, Request, TrainRequest
from simulations.backends.worker import Place

# A site is asked so often in all while its worker dies.
ATTEMPTS = 3
# Of the jobs that wait only those are begun that come so soon after the first of them: replies are taken in the order
# in which the sites were asked, and those that are ready before their turn are in memory.
AHEAD = 64

# Sites whose times differ by less take about as long.
_ABOUT = 0.8

_log = logging.getLogger(__name__)


class DiedError(Exception):
    """A worker has died while it worked, and is buried; the text is how, as in "its worker ended with exit code 1"."""


@dataclass(frozen=True, eq=False)
class Job:
    """One request to one site. attempt: names it in the site's ledger, with ".1" for the second time and so on."""

    site: Site
    run: RunDocument
    request: Request
    attempt: str
    place: Place
    reply: "Future[Reply]" = field(default_factory=Future)
    number: int = field(default_factory=itertools.count().__next__)  # in the order in which jobs were made

    @property
    def kind(self) -> tuple[Path, type[Request]]:
        """Jobs of one kind take about as long each time."""
        return self.site.home, type(self.request)


class Worker(Protocol):
    """One that answers for sites, one at a time. For one thread, but for `give_up`."""

    @property
    def sites(self) -> Mapping[Path, object]:
        """Homes of the sites that it has worked for since it was started."""

    def is_there(self) -> bool:
        """Start it, if it is not there. False: it is not yet, as there is no room; to be asked again.

        Raises:
            FederationError: it cannot be started, now or later.
        """

    def work(self, job: Job, attempt: str) -> Reply:
        """The site's reply.

        Raises:
            DiedError: it has died. It can be started anew.
        """

    def give_up(self) -> None:
        """End what is under way, by its death. For any thread."""

    def close(self) -> None:
        """End it."""


class Workers:
    """Some workers, and the threads that wait for them."""

    def __init__(self, count: int, make: Callable[[], Worker]) -> None:
        """No worker is there before there is work.

        Args:
            count: of workers, at most.
            make: a worker, not started.
        """
        self.count, self._make = count, make
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._at_work: dict[Job, Worker] = {}
        self._dropped: set[Job] = set()  # of those at work
        self._deaths: Counter[Job] = Counter()
        self._seconds: dict[tuple[Path, type[Request]], float] = {}  # that a kind of job took last
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def stop(self) -> None:
        """Do nothing more: what is at work is given up, with its worker. Returns at once."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._give_up(list(self._at_work))
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until all threads and workers have ended."""
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
            self._give_up(under_way)
            while any(job in self._at_work for job in under_way):
                self._changed.wait()

    def _give_up(self, jobs: Sequence[Job]) -> None:
        self._dropped.update(jobs)
        for job in jobs:
            self._at_work[job].give_up()

    def _serve(self) -> None:
        worker = self._make()
        while self._has_work():
            try:
                if not worker.is_there():
                    continue
            except Exception as error:  # noqa: BLE001 - it is raised where a reply is looked for
                self._fail(error)
                continue
            if (job := self._take(worker)) is not None:
                self._do(job, worker)
        worker.close()

    def _do(self, job: Job, worker: Worker) -> None:
        started = time.monotonic()
        again = False
        try:
            deaths = self._deaths[job]
            if deaths:
                _carry(job, _attempt(job, deaths))
            job.reply.set_result(worker.work(job, _attempt(job, deaths)))
        except DiedError as error:
            again = self._bury(job, error)
        except BaseException as error:  # noqa: BLE001 - it is raised where the reply is looked for
            job.reply.set_exception(error)
        with self._changed:
            del self._at_work[job]
            if again and job not in self._dropped:
                self._waiting.insert(0, job)
            else:
                del self._deaths[job]
                self._dropped.discard(job)
                self._seconds[job.kind] = time.monotonic() - started
            self._changed.notify_all()

    def _bury(self, job: Job, error: DiedError) -> bool:
        """Whether a job whose worker has died is to be done again."""
        if job in self._dropped:
            return False
        self._deaths[job] += 1
        again = self._deaths[job] < ATTEMPTS
        _log.warning(
            "%s of site %s: its worker %s%s",
            _words(job.request),
            job.site.config.name,
            error,
            "; it is asked again" if again else f", {counted(ATTEMPTS, 'time')} in a row",
        )
        if not again:
            job.reply.set_result(Refusal(job.run.hash, job.request.round, ErrorCode.WORKER_FAILED))
        return again

    def _has_work(self) -> bool:
        """Wait until some job can be done. False: it is over."""
        with self._changed:
            while not self._stopped and not self._free():
                self._changed.wait()
            return not self._stopped

    def _take(self, worker: Worker) -> Job | None:
        """The next job of a worker; None: others have taken all."""
        with self._changed:
            if self._stopped or not (free := self._free()):
                return None
            job = chosen(free, self._seconds, worker.sites)
            self._waiting.remove(job)
            self._at_work[job] = worker
            return job

    def _free(self) -> list[Job]:
        busy = {job.site.home for job in self._at_work}
        near = self._waiting[:AHEAD]
        last = min((job.number for job in near), default=0) + AHEAD
        return [job for job in near if job.number < last and job.site.home not in busy]

    def _fail(self, error: Exception) -> None:
        """No job that waits can be done."""
        with self._changed:
            for job in self._waiting:
                job.reply.set_exception(error)
            self._waiting.clear()


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


def _attempt(job: Job, deaths: int) -> str:
    return f"{job.attempt}.{deaths}" if deaths else job.attempt


def _carry(job: Job, attempt: str) -> None:
    """Let the charge of the attempts before pay for this one, if there was one."""
    if job.run.config.privacy is not None and isinstance(job.request, TrainRequest):
        cohort = cohort_id(job.site.key)
        job.site.ledger.carry(cohort, job.run.hash, job.request.round, attempt, of=job.attempt)


def _words(request: Request) -> str:
    return f"round {request.round}, {'training' if isinstance(request, TrainRequest) else 'scores'}"


__all__ = ["AHEAD", "ATTEMPTS", "DiedError", "Job", "Worker", "Workers", "chosen"]
