"""A worker that is a process of this machine, forked by the nursery, and replaced when it dies or hangs.

It hangs where it uses no processor for minutes (client/agent/pulse.py).
"""

import contextlib
import select
import socket
from pathlib import Path

from client.agent.pulse import STALLED_S, Pulse
from client.worker import protocol
from client.worker.protocol import PipeError, Work
from common.wire.messages import EvaluateReply, Refusal, Reply, TrainReply
from simulations.backends.nursery import Nursery
from simulations.backends.worker import question_to_frame
from simulations.backends.workers import DiedError, Job

_LOOK_EVERY_S = 5.0


class _StalledError(PipeError):
    """The worker hangs."""


class ForkedWorker:
    """One process at a time; see `simulations.backends.workers.Worker`."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._pid = 0
        self._socket: socket.socket | None = None
        self._parts = ""  # hash of those that the process has
        self.sites: dict[Path, None] = {}

    def is_there(self) -> bool:
        """It always is, once it has been started."""
        if self._socket is None:
            self._pid, self._socket = self._nursery.start()
        return True

    def work(self, job: Job, attempt: str) -> Reply:
        """The site's reply."""
        try:
            return self._ask(job, attempt)
        except PipeError as error:
            raise DiedError(self._bury(error)) from error

    def give_up(self) -> None:
        """End what is under way. For any thread."""
        if (asked := self._socket) is not None:
            with contextlib.suppress(OSError):  # it is gone already
                asked.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the process."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._nursery.end(self._pid)

    def _ask(self, job: Job, attempt: str) -> Reply:
        assert self._socket is not None  # noqa: S101 - for the type checker: it is there
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


__all__ = ["ForkedWorker"]
