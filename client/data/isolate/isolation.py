"""Untrusted files are parsed in child processes: a bomb, a crash or a hang takes the child down and nothing else.

A child (`client.data.isolate.reader`) has no network, no secret, no file it can write, a limit of memory, and a limit
of time for each FILE: it beats at every file, and one that is silent too long is killed. Only the study at fault is
refused; the next one finds a new child. Nothing that comes from a child is trusted: types, shapes, sizes and numbers
are checked before they are used, and a child that breaks the rules is treated as one that crashed.

Children are started when there is work for them, so what comes from the cache alone starts none.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from numpy.typing import NDArray

from client.data.isolate import answer_checks, answering
from client.data.isolate.answering import Job, Reading
from client.data.isolate.child import ReaderError
from client.data.isolate.pool import BEATS_PER_FILE, Pool, Task
from client.data.quality import quality
from client.data.read import dicom_header, sources
from client.data.study.as_json import problem_from_json, reference_to_json
from client.data.study.listing import list_folder
from client.data.study.study import Found, Reference
from common.config import SourceConfig, canonical
from common.errors import ConfigError, DataError, ErrorCode

FILE_LIMIT_S = 10.0  # for one file, to be opened or decoded
MEMORY_LIMIT = 4 << 30  # bytes of address space of a child; a decoded study may take half of it

_HEADERS_AT_ONCE = 64

_T = TypeVar("_T")


class Memory(Protocol):
    """What earlier looks at files told, see `client.data.keep.index`."""

    def recall(self, key: str, stamp: Sequence[Any]) -> Any | None:
        """What was learned under a key, if the stamp is still the same."""

    def learn(self, key: str, stamp: Sequence[Any], value: Any) -> None:
        """Keep a plain value."""


class Readers:
    """Some child processes that parse. A context: they end with it."""

    def __init__(self, count: int, *, memory: int = MEMORY_LIMIT, file_limit_s: float = FILE_LIMIT_S) -> None:
        """Nothing is started yet.

        Args:
            count: most children at a time; 0: parse in this process, without protection, for tests and measurements.
            memory: of each child, bytes of address space.
            file_limit_s: for one file.
        """
        self._count = count
        self._pool = Pool(count, memory=memory, file_limit_s=file_limit_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    @property
    def started(self) -> int:
        """Children, so far."""
        return self._pool.started

    @property
    def deaths(self) -> int:
        """Of children, over a file."""
        return self._pool.deaths

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
        task = Task(question, lambda: sources.find(source, root), answer_checks.found)
        key = f"{question['source']} {table}"
        stamp = [*_stamp(table), _names_digest(folder)]
        if memory is not None and (known := memory.recall(key, stamp)) is not None:
            return answer_checks.found(known, ())
        (found,) = self._pool.run([task], batch=1, ahead=1)
        if isinstance(found, DataError):
            raise ConfigError(f"the table of the source {source.path!r} cannot be read: {found}")
        # Of files elsewhere the names in the folder tell nothing: they may come and go.
        paths = [path for reference in found.references for path in reference.files]
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
        tasks = _tasks("read", jobs, answering.read_study, answer_checks.reading)
        return self._pool.run(tasks, batch=1, ahead=self._count + 1)

    def check(self, jobs: Sequence[Job]) -> Iterator[quality.Checked | DataError]:
        """Look at studies as `data check` does; no voxel crosses the pipe.

        Raises:
            ConfigError: a label map does not fit.
            ReaderError: no child could be started.
        """
        tasks = _tasks("check", jobs, answering.check_study, answer_checks.checked)
        return self._pool.run(tasks, batch=1, ahead=4 * self._count + 1)

    def _look(self, paths: Sequence[Path], *, memory: Memory | None) -> Iterator[dicom_header.Entry | DataError | None]:
        """Headers of files, in order; None for those that are no DICOM."""
        stamps = [_stamp(path) for path in paths]
        known: dict[int, Any] = {}
        if memory is not None:
            for index, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
                if (value := memory.recall(str(path), stamp)) is not None:
                    known[index] = value
        tasks = [
            Task(
                {"do": "look", "path": str(path)}, partial(dicom_header.look, path), partial(answer_checks.entry, path)
            )
            for index, path in enumerate(paths)
            if index not in known
        ]
        told = self._pool.run(tasks, batch=_HEADERS_AT_ONCE, ahead=len(tasks))
        for index, path in enumerate(paths):
            if index in known:
                yield problem_from_json(known[index].get("problem")) or answer_checks.entry(path, known[index], ())
                continue
            entry = next(told)
            if memory is not None and not (isinstance(entry, DataError) and entry.code != ErrorCode.UNREADABLE):
                memory.learn(str(path), stamps[index], answer_checks.look_to_json(entry))
            yield entry


def _tasks(
    what: str,
    jobs: Sequence[Job],
    here: Callable[[Job], _T],
    decode: Callable[[Job, Mapping[str, Any], Sequence[NDArray[Any]]], _T],
) -> list[Task[_T]]:
    """A task for each study."""
    files = [len(job.reference.files) for job in jobs]
    return [
        Task(_question(what, job), partial(here, job), partial(decode, job), BEATS_PER_FILE * count)
        for job, count in zip(jobs, files, strict=True)
    ]


def _question(what: str, job: Job) -> dict[str, Any]:
    return {
        "do": what,
        "reference": reference_to_json(job.reference),
        "wanted": None if job.wanted is None else job.wanted.to_json(),
        "empty-is-negative": job.empty_is_negative,
        "most-missing": job.most_missing,
    }


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


__all__ = ["FILE_LIMIT_S", "MEMORY_LIMIT", "Job", "Memory", "ReaderError", "Readers", "Reading"]
