"""Child processes at work: tasks are handed out, outcomes come in order, and a child that was lost is replaced.

A child that is silent too long is killed, and one that breaks the rules of the frames is treated as one that crashed:
only the task at fault is refused, its other tasks wait for another child. Children are started when there is work for
them.
"""

import logging
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from client.data.isolate.child import Child, LateError
from client.data.study.as_json import problem_from_json
from common.errors import ConfigError, DataError, ErrorCode
from common.wire.frames import FrameError

# A file is opened and decoded, a label may be opened twice, and each may beat; a child that beats on does not work.
BEATS_PER_FILE = 4

# Starting a child costs half a CPU second, so that a second one is started only for work that lasts.
_WORTH_STARTING_S = 1.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task(Generic[_T]):
    """question: for a child. here: does the same in this process. decode: what the child's answer means."""

    question: dict[str, Any]
    here: Callable[[], _T]
    decode: Callable[[Mapping[str, Any], Sequence[NDArray[Any]]], _T]
    most_beats: int = BEATS_PER_FILE


class _Beat:
    """A child is alive."""


class Pool:
    """Some child processes.

    started: children, so far. deaths: of children, over a file.
    """

    def __init__(self, count: int, *, memory: int, file_limit_s: float) -> None:
        """Nothing is started yet.

        Args:
            count: most children at a time; 0: tasks are done in this process, without protection.
            memory: of each child, bytes of address space.
            file_limit_s: for one file.
        """
        self._count, self._memory, self._file_limit_s = count, memory, file_limit_s
        self._idle: list[Child] = []
        self.started = 0
        self.deaths = 0

    def close(self) -> None:
        """End the children that wait for work; one that is at work ends with its `run`."""
        for child in self._idle:
            child.kill()
        self._idle.clear()

    def run(self, tasks: Sequence[Task[_T]], *, batch: int, ahead: int) -> Iterator[_T | DataError]:
        """Outcomes in the order of the tasks.

        Args:
            tasks: what to do.
            batch: tasks handed to a child at once.
            ahead: tasks that may be begun before the first of them has been taken.
        """
        if not self._count:
            yield from map(_do_here, tasks)
            return
        outcomes: dict[int, _T | DataError | ConfigError] = {}
        todo = deque(range(start, min(start + batch, len(tasks))) for start in range(0, len(tasks), batch))
        busy: list[Child] = []
        began = time.monotonic()
        try:
            for wanted in range(len(tasks)):
                while True:
                    while todo and todo[0].start < wanted + ahead and self._may_begin(busy, began):
                        child = self._idle.pop() if self._idle else self._start()
                        busy.append(child)
                        child.hand(todo[0], [tasks[index].question for index in todo.popleft()])
                    if wanted in outcomes:
                        break
                    for child in self._wait(busy):
                        self._hear(child, tasks, outcomes, todo)
                        if child.dead or not child.at:
                            busy.remove(child)
                            if not child.dead:
                                self._idle.append(child)
                outcome = outcomes.pop(wanted)
                if isinstance(outcome, ConfigError):
                    raise outcome
                yield outcome
        finally:
            for child in busy:  # an error, or nobody wants the rest
                child.kill()

    def _may_begin(self, busy: Sequence[Child], began: float) -> bool:
        if self._idle or not busy:
            return True
        return len(busy) < self._count and time.monotonic() - began > _WORTH_STARTING_S

    def _start(self) -> Child:
        self.started += 1
        return Child(self._memory)

    def _wait(self, busy: Sequence[Child]) -> list[Child]:
        """The children that have something to tell, or that have been silent too long."""
        poll = select.poll()
        for child in busy:
            poll.register(child.answers, select.POLLIN)
        now = time.monotonic()
        patience_s = max(0.0, min(child.since for child in busy) + self._file_limit_s - now)
        ready = {fd for fd, _ in poll.poll(patience_s * 1000 + 1)}
        now = time.monotonic()
        return [child for child in busy if child.answers in ready or now - child.since >= self._file_limit_s]

    def _hear(
        self,
        child: Child,
        tasks: Sequence[Task[_T]],
        outcomes: dict[int, _T | DataError | ConfigError],
        todo: deque[range],
    ) -> None:
        """Take one frame from a child, or find it dead; its other tasks then wait for another child."""
        index = child.at[0]
        try:
            outcome = self._outcome(child, tasks[index])
            if isinstance(outcome, _Beat):
                return
        except LateError:
            why = f"took longer than {self._file_limit_s:g} s for one file"
            outcome = DataError(f"reading it {why}. Export it again, or take it out.", ErrorCode.UNREADABLE)
            self._bury(child, why)
        except MemoryError:
            outcome = _no_memory()
            self._bury(child, "its answer does not fit into memory")
        except FrameError as error:
            crashed = DataError("its reader crashed. Export it again, or take it out.", ErrorCode.UNREADABLE)
            # Killed, and not by us: the machine ran out of memory, and the kernel chose the child.
            outcome = _no_memory() if child.kill() == -signal.SIGKILL else crashed
            self._bury(child, str(error))
        outcomes[index] = outcome
        child.at = child.at[1:]
        if child.dead and child.at:
            todo.appendleft(child.at)

    def _outcome(self, child: Child, task: Task[_T]) -> "_T | DataError | ConfigError | _Beat":
        """What the next frame of a child means.

        Raises:
            LateError: it is silent.
            FrameError: it ended, or said what makes no sense.
        """
        header, arrays = child.receive(arrays_limit=self._memory // 2, patience_s=self._file_limit_s)
        try:
            match header["kind"]:
                case "beat" if child.beats <= task.most_beats:
                    return _Beat()
                case "answer":
                    return task.decode(header, arrays)
                case "problem":
                    return problem_from_json(header["problem"]) or _no_memory()
                case "misconfigured":
                    return ConfigError(str(problem_from_json(header["problem"])))
                case _:
                    raise FrameError("an answer of an unknown kind, or beats without end")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise FrameError("an answer that makes no sense") from error

    def _bury(self, child: Child, why: str) -> None:
        status = child.kill()
        self.deaths += 1
        _log.warning("a reader was lost over a file (%s; status %s); another takes its place", why, status)


def _do_here(task: Task[_T]) -> _T | DataError:
    try:
        return task.here()
    except DataError as error:
        return error


def _no_memory() -> DataError:
    return DataError(
        "there is not enough memory to decode this study. Split it, or take it out.", ErrorCode.OUT_OF_MEMORY
    )


__all__ = ["BEATS_PER_FILE", "Pool", "Task"]
