"""The work: one job after the other, each study as `predict` does it.

Files are parsed by the reader child, which a job may kill; the next one finds a new child. Nothing of a job may stop
the rest: what is not expected is told by its kind, and logged so.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.data.study.study import Reference
from client.predict.dropfolder import Find
from client.predict.latency import Latency, Timed, latency_of
from client.predict.prediction import Read, Segmenter, predict_one, reading
from client.serve.jobs import Job, Jobs
from common.errors import ConfigError, DataError, ErrorCode, WardroundError, code_of
from common.system.files import write_private
from common.text import counted

_PATIENCE_S = 0.2
_REMEMBERED = 1000  # studies, for the latency

_log = logging.getLogger(__name__)


class Figures:
    """What was done since the start: counts, and how long the last studies took."""

    def __init__(self) -> None:
        """Nothing was done."""
        self.done = self.failed = 0
        self._last: deque[Timed] = deque(maxlen=_REMEMBERED)

    def add(self, result: Timed) -> None:
        """One study more."""
        self.done += 1
        self._last.append(result)

    @property
    def latency(self) -> tuple[Latency, ...]:
        """Milliseconds by volume and by slice, over the last studies."""
        return latency_of(tuple(self._last))


def work(
    segmenter: Segmenter,
    jobs: Jobs,
    figures: Figures,
    *,
    stopped: Callable[[], bool],
    told: Callable[[str], None],
) -> None:
    """Take jobs until told to stop; the one in hand is finished first.

    Args:
        segmenter: the model.
        jobs: where they come from.
        figures: receives what was done.
        stopped: asked between jobs.
        told: receives a line for each study.
    """
    with reading(segmenter.run) as (find, read):
        desk = _Desk(segmenter, find, read, figures, told)
        while not stopped():
            if (job := jobs.take(_PATIENCE_S)) is not None:
                _do(desk, job, jobs)
    jobs.abandon()


@dataclass(frozen=True, eq=False)
class _Desk:
    """What every job is worked on with."""

    segmenter: Segmenter
    find: Find
    read: Read
    figures: Figures
    told: Callable[[str], None]


def _do(desk: _Desk, job: Job, jobs: Jobs) -> None:
    try:
        jobs.finish(job, _answer(desk, job))
        return
    except WardroundError as error:
        code, reason = error.code, str(error)
    except Exception as error:  # noqa: BLE001 - see the module
        _log.error("a job met an unexpected %s", type(error).__name__)
        code, reason = code_of(error), f"the job met an unexpected {type(error).__name__}. Report that."
    desk.told(f"job {job.name[:6]}: {code}")
    jobs.finish(job, problem=(code, reason))


def _answer(desk: _Desk, job: Job) -> Mapping[str, Any]:
    """All studies of a job; one that cannot be used is told of, unless it is the only one."""
    references = desk.find(job.studies, None)
    job.total = len(references)
    done: list[Mapping[str, Any]] = []
    failures: list[Mapping[str, Any]] = []
    for number, reference in enumerate(references, start=1):
        try:
            done.append(_one(desk, job, reference, number))
        except DataError as error:
            desk.figures.failed += 1
            if len(references) == 1:
                raise
            failures.append({"study": number, "code": error.code, "reason": str(error)})
        job.done = number
    return {"model": desk.segmenter.sha256, "studies": done, "failures": failures}


def _one(desk: _Desk, job: Job, reference: Reference, number: int) -> Mapping[str, Any]:
    place = job.results / f"{number:03}"
    result = predict_one(
        *(desk.segmenter, desk.read, reference, place, ""),
        number=number,
        wanted=job.wanted,
        write=_write_for_a_while,
    )
    prefix = f"{number:03}-" if job.total > 1 else ""
    names = {f"{prefix}{path.name}": path for path in result.files}
    job.files |= names
    desk.figures.add(result)
    seconds = result.seconds
    desk.told(
        f"job {job.name[:6]}: {counted(result.slices, 'slice')}, {1000 * seconds.all:.1f} ms "
        f"({1000 * seconds.all / result.slices:.1f} ms a slice): read {1000 * seconds.reading:.1f}, "
        f"network {1000 * seconds.network:.1f}, write {1000 * seconds.writing:.1f}"
    )
    found = {"voxels": result.voxels} if result.told is None else asdict(result.told)
    about = {"files": list(names), "notes": list(result.notes), "seconds": asdict(seconds)}
    return {"study": number, "slices": result.slices, **found, **about}


def _write_for_a_while(folder: Path, contents: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write files that do not outlive the server: without the flush to the disk, which takes longer than a network."""
    try:
        for name, data in contents.items():
            write_private(folder / name, data, durable=False)
    except OSError as error:
        raise ConfigError(f"a result cannot be written ({error.strerror}).", ErrorCode.DISK_FULL) from error
    return tuple(folder / name for name in contents)


__all__ = ["Figures", "work"]
