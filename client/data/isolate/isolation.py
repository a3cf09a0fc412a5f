"""Untrusted files are parsed in child processes: a bomb, a crash or a hang takes the child down and nothing else.

A child (`client.data.isolate.reader`) has no network, no secret, no file it can write, a limit of memory, and a limit
of time for each FILE: it beats at every file, and one that is silent too long is killed. Only the study at fault is
refused; the next one finds a new child. Nothing that comes from a child is trusted: types, shapes, sizes and numbers
are checked before they are used, and a child that breaks the rules is treated as one that crashed.

Children are started when there is work for them, so what comes from the cache alone starts none.
"""

import hashlib
import json
import logging
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.data.isolate import answering
from client.data.isolate.answering import Job, Reading
from client.data.isolate.child import Child, LateError, ReaderError
from client.data.quality import quality
from client.data.read import dicom_header, sources
from client.data.study.as_json import (
    problem_from_json,
    problem_to_json,
    reference_from_json,
    reference_to_json,
    text_of,
)
from client.data.study.listing import list_folder
from client.data.study.study import Found, Labelling, Reference, Study
from common.config import SourceConfig, canonical
from common.errors import ConfigError, DataError, ErrorCode
from common.wire.frames import FrameError

FILE_LIMIT_S = 10.0  # for one file, to be opened or decoded
MEMORY_LIMIT = 4 << 30  # bytes of address space of a child; a decoded study may take half of it

# Starting a child costs half a CPU second, so that a second one is started only for work that lasts.
_WORTH_STARTING_S = 1.0
_HEADERS_AT_ONCE = 64
# A file is opened and decoded, a label may be opened twice, and each may beat; a child that beats on does not work.
_BEATS_PER_FILE = 4
_MOST_THUMBNAIL = 1 << 20  # bytes

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Memory(Protocol):
    """What earlier looks at files told, see `client.data.keep.index`."""

    def recall(self, key: str, stamp: Sequence[Any]) -> Any | None:
        """What was learned under a key, if the stamp is still the same."""

    def learn(self, key: str, stamp: Sequence[Any], value: Any) -> None:
        """Keep a plain value."""


@dataclass(frozen=True)
class _Task(Generic[_T]):
    """question: for a child. here: does the same in this process. decode: what the child's answer means."""

    question: dict[str, Any]
    here: Callable[[], _T]
    decode: Callable[[Mapping[str, Any], Sequence[NDArray[Any]]], _T]
    most_beats: int = _BEATS_PER_FILE


class _Beat:
    """A child is alive."""


class Readers:
    """Some child processes that parse. A context: they end with it."""

    def __init__(self, count: int, *, memory: int = MEMORY_LIMIT, file_limit_s: float = FILE_LIMIT_S) -> None:
        """Nothing is started yet.

        Args:
            count: most children at a time; 0: parse in this process, without protection, for tests and measurements.
            memory: of each child, bytes of address space.
            file_limit_s: for one file.
        """
        self._count, self._memory, self._file_limit_s = count, memory, file_limit_s
        self._idle: list[Child] = []
        self.started = 0  # children, so far
        self.deaths = 0  # of children, over a file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._idle:
            child.kill()
        self._idle.clear()

    def find(self, source: SourceConfig, root: Path, *, memory: Memory | None = None) -> Found:
        """See `sources.find`; foreign headers and tables are parsed by the children.

        Args:
            source: where and how to look.
            root: folder that a relative path starts from.
            memory: spares the files that are known the opening.
        """
        folder = sources.folder_of(source, root)
        kind = source.kind or sources.kind_of(source, folder)
        source = source if kind is None else source.model_copy(update={"kind": kind})
        table = sources.table_of(source, folder)
        if table is None or not table.is_file():
            return sources.find(source, root, partial(self._look, memory=memory))
        question = {"do": "find", "source": canonical(source), "root": str(root)}
        task = _Task(question, lambda: sources.find(source, root), _found)
        key = f"{question['source']} {table}"
        stamp = [*_stamp(table), _names_digest(folder)]
        if memory is not None and (known := memory.recall(key, stamp)) is not None:
            return _found(known, ())
        (found,) = self._run([task], batch=1, ahead=1)
        if isinstance(found, DataError):
            raise ConfigError(f"the table of the source {source.path!r} cannot be read: {found}")
        # Of files elsewhere the names in the folder tell nothing: they may come and go.
        paths = [path for reference in found.references for path in (*reference.images, *reference.labels)]
        if memory is not None and all(path.is_relative_to(folder) for path in paths):
            references = [reference_to_json(reference) for reference in found.references]
            told = {"references": references, "left-out": dict(found.left_out), "assumed": dict(found.assumed)}
            memory.learn(key, stamp, told)
        return found

    def find_images(self, path: Path, among: Sequence[Path] | None = None) -> tuple[Reference, ...]:
        """See `sources.find_images`; foreign headers are parsed by the children."""
        return sources.find_images(path, among, partial(self._look, memory=None))

    def read(self, jobs: Sequence[Job]) -> Iterator[Reading | DataError]:
        """Read studies, in the order of the jobs. Not more than the children and one are in memory at a time.

        Raises:
            ConfigError: a label map does not fit.
            ReaderError: no child could be started.
        """
        tasks = [
            _Task(
                _question("read", job),
                partial(answering.read_study, job),
                partial(_reading, job),
                _most_beats(job),
            )
            for job in jobs
        ]
        return self._run(tasks, batch=1, ahead=self._count + 1)

    def check(self, jobs: Sequence[Job]) -> Iterator[quality.Checked | DataError]:
        """Look at studies as `data check` does; no voxel crosses the pipe.

        Raises:
            ConfigError: a label map does not fit.
            ReaderError: no child could be started.
        """
        tasks = [
            _Task(
                _question("check", job),
                partial(_inspect, job),
                _checked,
                _most_beats(job),
            )
            for job in jobs
        ]
        return self._run(tasks, batch=1, ahead=4 * self._count + 1)

    def _look(self, paths: Sequence[Path], *, memory: Memory | None) -> Iterator[dicom_header.Entry | DataError | None]:
        """Headers of files, in order; None for those that are no DICOM."""
        stamps = [_stamp(path) for path in paths]
        known: dict[int, Any] = {}
        if memory is not None:
            for index, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
                if (value := memory.recall(str(path), stamp)) is not None:
                    known[index] = value
        tasks = [
            _Task({"do": "look", "path": str(path)}, partial(dicom_header.look, path), partial(_entry, path))
            for index, path in enumerate(paths)
            if index not in known
        ]
        told = self._run(tasks, batch=_HEADERS_AT_ONCE, ahead=len(tasks))
        for index, path in enumerate(paths):
            if index in known:
                yield problem_from_json(known[index].get("problem")) or _entry(path, known[index], ())
                continue
            entry = next(told)
            if memory is not None and not (isinstance(entry, DataError) and entry.code != ErrorCode.UNREADABLE):
                memory.learn(str(path), stamps[index], _look_to_json(entry))
            yield entry

    def _run(self, tasks: Sequence[_Task[_T]], *, batch: int, ahead: int) -> Iterator[_T | DataError]:
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
        tasks: Sequence[_Task[_T]],
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

    def _outcome(self, child: Child, task: _Task[_T]) -> "_T | DataError | ConfigError | _Beat":
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


def _most_beats(job: Job) -> int:
    return _BEATS_PER_FILE * (len(job.reference.images) + len(job.reference.labels))


def _question(what: str, job: Job) -> dict[str, Any]:
    return {
        "do": what,
        "reference": reference_to_json(job.reference),
        "wanted": None if job.wanted is None else job.wanted.to_json(),
        "empty-is-negative": job.empty_is_negative,
    }


def _do_here(task: _Task[_T]) -> _T | DataError:
    try:
        return task.here()
    except DataError as error:
        return error


def _inspect(job: Job) -> quality.Checked:
    return quality.inspect(job.reference, job.wanted, empty_is_negative=job.empty_is_negative)


def _reading(job: Job, header: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> Reading:
    """A study as a child told it. Whose it is, we know ourselves."""
    image, *labels = arrays
    label = labels[0] if labels else None
    axes = image.ndim - 1
    classes = tuple(map(text_of, header["classes"]))
    spacing = None if header["spacing-mm"] is None else tuple(map(float, header["spacing-mm"]))
    affine = None if header["affine"] is None else np.array(header["affine"], np.float64)
    order = header["order"]
    labelling = None if header["labelling"] is None else Labelling(**header["labelling"])
    sound = (
        image.dtype == np.float32
        and axes in (2, 3)
        and image.size
        and (label is None) == (job.wanted is None)
        and (label is None or (label.dtype == np.uint8 and label.shape == image.shape[1:]))
        and (label is None or int(label.max()) <= len(classes))
        and (job.wanted is None or job.wanted.classes is None or job.wanted.classes == classes)
        and (labelling is None or all(type(number) in (int, float) for number in vars(labelling).values()))
        and (spacing is None or (len(spacing) == axes and np.isfinite(spacing).all()))
        and (affine is None or (affine.shape == (4, 4) and axes == 3 and np.isfinite(affine).all()))
        and all(type(index) is int and 0 <= index < len(job.reference.images) for index in order)
        and len(order) <= image.shape[1]
    )
    if not sound:
        raise ValueError("not a study")
    study = Study(
        image,
        label,
        spacing,
        affine,
        text_of(header["modality"]),
        job.reference.patient,
        job.reference.key,
        tuple(job.reference.images[index] for index in order),
        classes,
        labelling,
    )
    return Reading(study, text_of(header["digest"]))


def _checked(header: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> quality.Checked:
    (thumbnail,) = arrays
    values = header["facts"]
    facts = quality.facts_from_json(values)
    numbers = [*facts.shape, *(facts.spacing_mm or ()), *facts.intensities, *facts.voxels.values(), facts.channels]
    numbers += [facts.labels, facts.resampled, facts.by_place, facts.lost, facts.holes]
    texts = [facts.modality, facts.digest, *facts.voxels]
    sound = (
        all(type(number) in (int, float) for number in numbers)
        and all(isinstance(text, str) and text.isprintable() for text in texts)
        and thumbnail.dtype == np.uint8
        and thumbnail.nbytes <= _MOST_THUMBNAIL
    )
    if not sound:
        raise ValueError("not facts")
    return quality.Checked(facts, thumbnail.tobytes())


def _found(header: Mapping[str, Any], _arrays: Sequence[NDArray[Any]]) -> Found:
    left_out, assumed = (
        {text_of(why): int(count) for why, count in header[kind].items()} for kind in ("left-out", "assumed")
    )
    return Found(tuple(map(reference_from_json, header["references"])), left_out, assumed)


def _entry(path: Path, header: Mapping[str, Any], _arrays: Sequence[NDArray[Any]]) -> dicom_header.Entry | None:
    values = header["entry"]
    return None if values is None else dicom_header.entry_from_json(path, values)


def _look_to_json(outcome: dicom_header.Entry | DataError | None) -> dict[str, Any]:
    """As a child would tell it; see `_entry`."""
    if isinstance(outcome, DataError):
        return {"problem": problem_to_json(outcome)}
    return {"entry": None if outcome is None else dicom_header.entry_to_json(outcome)}


def _stamp(path: Path) -> list[int]:
    """Size and times of a file; the time of change is set by the kernel alone."""
    try:
        file = path.stat()
    except OSError:
        return []
    return [file.st_size, file.st_mtime_ns, file.st_ctime_ns]


def _names_digest(folder: Path) -> str:
    """SHA-256 (hex) of the names in a folder and below."""
    listing = list_folder(folder)
    names = json.dumps([[str(path) for path in listing.files], dict(listing.unseen)], sort_keys=True)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def _no_memory() -> DataError:
    return DataError(
        "there is not enough memory to decode this study. Split it, or take it out.", ErrorCode.OUT_OF_MEMORY
    )


__all__ = ["FILE_LIMIT_S", "MEMORY_LIMIT", "Job", "Memory", "ReaderError", "Readers", "Reading"]
