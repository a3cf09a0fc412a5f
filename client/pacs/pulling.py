"""Studies from a PACS into a folder: each whole or not at all, in allowed hours, and going on where it was interrupted.

    OUT/<study>/<series>/<object>.dcm    finished studies; a folder that is there is not asked for again
    OUT/.pulling/                        the study in progress; hidden, so that nobody reads it as a study

A study comes into .pulling by a process that may write there alone. Only when all that the PACS lists of it has come,
lies there and is flushed to the disk, is its folder moved to its place, in one step. What a killed pull leaves
in .pulling is removed by the next one.
"""

import datetime
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from client.pacs.caller import Caller
from client.pacs.problems import AwayError, PacsError, not_written
from client.pacs.query import LABELS, Answer, Query, Study
from common.config import validate
from common.errors import ConfigError
from common.system.files import move
from common.system.locks import locked
from common.text import counted

STAGING = ".pulling"

_T = TypeVar("_T")

_LOCK = "lock"
_SAMPLE = 3  # studies whose objects are listed for the estimate
_LOOK_S = 30.0  # how often the clock is looked at outside of the hours
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_HOURS = re.compile(r"([01]?\d|2[0-3])(?::([0-5]\d))?-([01]?\d|2[0-3])(?::([0-5]\d))?")


@dataclass(frozen=True)
class Hours:
    """A part of the day, local time; over midnight where its end comes before its begin."""

    begin: datetime.time
    end: datetime.time

    @classmethod
    def read(cls, text: str) -> "Hours":
        """Hours such as 19-06 or 19:30-06:00.

        Raises:
            ConfigError: it is none.
        """
        found = _HOURS.fullmatch(text)
        times = [datetime.time(int(found[at]), int(found[at + 1] or 0)) for at in (1, 3)] if found else []
        if len(set(times)) != 2:
            raise ConfigError(f"--hours {text!r} is no part of the day. Write it as 19-06 or 19:30-06:00.")
        return cls(*times)

    def hold(self, now: datetime.time) -> bool:
        """Whether a time of day is in them; the end is not."""
        return self.begin <= now < self.end if self.begin < self.end else now >= self.begin or now < self.end


@dataclass(frozen=True)
class Estimate:
    """What a pull would bring. studies: not here yet, in the order of their dates. objects, size: None: not told.

    left_out: studies and series, by reason. size: bytes of pixels unpacked, from some studies.
    """

    studies: tuple[Study, ...]
    here: int
    objects: int | None
    size: int | None
    left_out: Mapping[str, int]

    @property
    def patients(self) -> int:
        """Different ids."""
        return len({study.patient for study in self.studies})

    @property
    def labelled(self) -> int:
        """Studies with a label beside their images."""
        return sum(study.is_labelled for study in self.studies)

    @property
    def series(self) -> tuple[int, int]:
        """Of images, and of labels."""
        labels = [one.modality in LABELS for study in self.studies for one in study.series]
        return labels.count(False), labels.count(True)


@dataclass
class Pulled:
    """What has come. failed: studies that did not, by what was wrong."""

    studies: int = 0
    files: int = 0
    size: int = 0
    repeated: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def estimate(
    caller: Caller, query: Query, out: Path, forgotten: Callable[[str], bool] = lambda _patient: False
) -> Estimate:
    """Ask what is there, and how much; nothing is pulled.

    Args:
        caller: of the PACS.
        query: which studies.
        out: where those that are here lie.
        forgotten: whether a patient, by the id as the PACS has it, takes no part: their studies are left out.

    Raises:
        PacsError: the PACS does not answer.
    """
    found = validate(Answer, caller.ask("search", query=query.model_dump(mode="json", by_alias=True))["found"])
    known = [study for study in found.studies if not forgotten(study.patient)]
    left_out = dict(found.left_out)
    if gone := len(found.studies) - len(known):
        left_out["study of a patient who was forgotten"] = gone
    wanted = sorted(
        (study for study in known if not (out / study.uid).exists()), key=lambda study: (study.date, study.uid)
    )
    told = [series.instances for study in wanted for series in study.series]
    objects = None if None in told else sum(filter(None, told))
    sample = wanted[:: max(1, len(wanted) // _SAMPLE)][:_SAMPLE]
    sizes = [caller.ask("size", study=study.model_dump(mode="json")) for study in sample]
    size = None
    if objects and sizes and all(one["size"] for one in sizes):
        size = int(sum(one["size"] for one in sizes) / sum(one["objects"] for one in sizes) * objects)
    return Estimate(tuple(wanted), len(known) - len(wanted), objects, size, left_out)


def pull(
    caller: Caller,
    wanted: Estimate,
    out: Path,
    *,
    rate: float | None = None,
    hours: Hours | None = None,
    patience_s: float = 3600.0,
    advance: Callable[[int], None] = lambda _done: None,
    tell: Callable[[str], None] = lambda _message: None,
) -> Pulled:
    """Pull the studies one after the other.

    Args:
        caller: of the PACS, with OUT/.pulling to write into.
        wanted: the studies.
        out: the folder; see the module.
        rate: MiB a second at most; None: as fast as they come.
        hours: in which a study may be begun; None: always.
        patience_s: how long to try again where the PACS does not answer.
        advance: told of each study that is done with.
        tell: told in words of what is waited for.

    Raises:
        AwayError: the PACS did not come back; the finished studies are in their place.
        StoreError: what comes cannot be written.
        ConfigError: another pull is at work in this folder.
    """
    pulled = Pulled()
    busy = ConfigError(f"another pull is at work in {out}. Wait for its end, or give another --out.")
    with locked(out / STAGING / _LOCK, busy):
        for number, study in enumerate(wanted.studies, start=1):
            _await_hours(hours, tell)
            try:
                came = patiently(partial(_pulled, caller, study, out, rate), patience_s, tell)
            except AwayError:
                raise
            except PacsError as error:
                pulled.failed[str(error)] += 1
            else:
                pulled.studies += 1
                pulled.files += came["files"]
                pulled.size += came["size"]
                pulled.repeated += came["repeated"]
            advance(number)
    return pulled


def staging_of(out: Path) -> Path:
    """The folder that is written into; made, and its parents, for the eyes of their owner only.

    Raises:
        ConfigError: out is no folder.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is no folder. Give another --out.")
    for folder in (out, out / STAGING):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return out / STAGING


def _pulled(caller: Caller, study: Study, out: Path, rate: float | None) -> Mapping[str, int]:
    """Have a study sent, and put it into its place."""
    folder = out / STAGING / study.uid
    try:
        for left in (one for one in folder.parent.iterdir() if one.name != _LOCK):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise not_written(error) from error
    came = caller.ask("retrieve", study=study.model_dump(mode="json"), folder=str(folder.resolve()), rate=rate)
    there = sum(1 for path in folder.glob("*/*.dcm") if path.is_file())
    if there != came["files"]:
        raise PacsError(f"{came['files']} objects came, and {there} lie on the disk. Have the disk checked.")
    try:
        move(folder, out / study.uid)
    except OSError as error:
        raise not_written(error) from error
    return {key: int(came[key]) for key in ("files", "size", "repeated")}


def patiently(attempt: Callable[[], _T], patience_s: float, tell: Callable[[str], None]) -> _T:
    """Try again where the PACS is away, at growing intervals.

    Raises:
        AwayError: it did not come back in time.
    """
    deadline, wait_s = time.monotonic() + patience_s, _FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except AwayError as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            tell(f"{error} Trying again for {counted(max(1, round(left_s / 60)), 'more minute')}.")
        time.sleep(min(wait_s, max(0.0, left_s)))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _await_hours(hours: Hours | None, tell: Callable[[str], None]) -> None:
    told = False
    while hours is not None and not hours.hold(_now()):
        if not told:
            tell(f"It is outside of the hours. Going on at {hours.begin:%H:%M}.")
            told = True
        time.sleep(_LOOK_S)


def _now() -> datetime.time:
    """Local time of day."""
    return datetime.datetime.now().time()


__all__ = ["STAGING", "Estimate", "Hours", "Pulled", "estimate", "patiently", "pull", "staging_of"]
