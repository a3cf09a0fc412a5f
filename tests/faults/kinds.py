"""What may break, a function each: it breaks something, for as long as its draw says, and mends it.

A kill is not mended here: whoever looks after the process has to. How long the others last is drawn from the bounds
that stand with them, which reach from what nobody notices to what outlasts the patience of a call, and end long before
the deadline of a round.
"""

import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tests.faults.line import why_lossless
from tests.faults.stage import PROCESSES, Stage
from tests.system.play import SITES

# How long to wait for a process that is to be struck and is not there, as it is being started again.
_THERE_S = 20.0
# SQLite files that another program may hold: a backup, a person with sqlite3.
DATABASES = {
    "registry": ("coordinator", "registry.sqlite"),
    "audit log of the coordinator": ("coordinator", "audit.sqlite"),
    "Flower's messages": ("coordinator", "flower/mailbox.sqlite"),
    **{f"audit log of {site}": (site, "audit.sqlite") for site in SITES},
    **{f"ledger of {site}": (site, "state/ledger.sqlite") for site in SITES},
}


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    strike: breaks it, and mends it again where that is not for the programs to do. It returns the process that has to
    come back, with the id of the one that was killed, or None.
    kind: under which it is counted.
    kills: the sites whose work it may cost an attempt that was paid for.
    """

    kind: str
    name: str
    strike: Callable[[Stage, random.Random], tuple[str, int] | None]
    kills: tuple[str, ...] = ()


def faults(stage: Stage) -> tuple[dict[str, list[Fault]], dict[str, str]]:
    """Those that can be had here, by kind.

    Returns:
        The faults; and for each kind that there is not, why.
    """
    found = [*_kills(), *_pauses(), *_lines(), *_locks(), *_losses()]
    lacking = {}
    if stage.disks:
        found += [
            Fault("disk full", f"disk of {owner} full", partial(_fill, owner=owner)) for owner in sorted(stage.disks)
        ]
    else:
        lacking["disk full"] = "small disks cannot be mounted here; it takes root"
    if (why := why_lossless()) is None:
        found += [Fault("network lossy", f"line of {site} lossy", partial(_lossy, site=site)) for site in SITES]
    else:
        lacking["network lossy"] = why
    by_kind: dict[str, list[Fault]] = {}
    for one in found:
        by_kind.setdefault(one.kind, []).append(one)
    return by_kind, lacking


def _kills() -> Iterator[Fault]:
    for process in PROCESSES:
        site = process.rpartition(" of ")[2]
        kills = (site,) if site in SITES else ()
        kind = "kill " + process.partition(" of ")[0]
        yield Fault(kind, f"{process} killed", partial(_kill, process=process), kills)
    for owner, process in {"coordinator": "launcher", **{site: f"agent of {site}" for site in SITES}}.items():
        kills = (owner,) if owner in SITES else ()
        yield Fault("kill machine", f"all of {owner} killed", partial(_power_off, owner=owner, process=process), kills)


def _kill(stage: Stage, _draw: random.Random, process: str) -> tuple[str, int] | None:
    pid = stage.wait_for(process, timeout_s=_THERE_S)
    if pid is None:
        return None
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()
    return process, pid


def _power_off(stage: Stage, _draw: random.Random, owner: str, process: str) -> tuple[str, int] | None:
    pid = stage.wait_for(process, timeout_s=_THERE_S)
    if pid is None:
        return None
    stage.power_off(owner)
    return process, pid


def _pauses() -> Iterator[Fault]:
    for process in PROCESSES:
        yield Fault("pause " + process.partition(" of ")[0], f"{process} stopped", partial(_pause, process=process))


def _pause(stage: Stage, draw: random.Random, process: str) -> None:
    pid = stage.wait_for(process, timeout_s=_THERE_S)
    with suppress(psutil.NoSuchProcess):
        one = psutil.Process(pid)
        one.suspend()
        time.sleep(draw.uniform(0.5, 15.0))
        one.resume()


def _lines() -> Iterator[Fault]:
    for site in SITES:
        yield Fault("network cut", f"line of {site} cut", partial(_cut, site=site))
        yield Fault("network silent", f"line of {site} silent", partial(_silent, site=site))
        yield Fault("network flaky", f"line of {site} flaky", partial(_flaky, site=site))


def _cut(stage: Stage, draw: random.Random, site: str) -> None:
    with stage.lines[site].cut():
        time.sleep(draw.uniform(0.5, 20.0))


def _silent(stage: Stage, draw: random.Random, site: str) -> None:
    with stage.lines[site].silent():
        time.sleep(draw.uniform(1.0, 25.0))


def _flaky(stage: Stage, draw: random.Random, site: str) -> None:
    stage.lines[site].flaky(draw.uniform(3.0, 10.0), draw)


def _lossy(stage: Stage, draw: random.Random, site: str) -> None:
    with stage.lines[site].lossy(draw.randint(2, 30)):
        time.sleep(draw.uniform(3.0, 30.0))


def _locks() -> Iterator[Fault]:
    for name, (owner, path) in DATABASES.items():
        yield Fault("database locked", f"{name} locked", partial(_lock, owner=owner, path=path))


def _lock(stage: Stage, draw: random.Random, owner: str, path: str) -> None:
    file = stage.home(owner) / path
    if file.exists():
        with held(file):
            time.sleep(draw.uniform(0.5, 15.0))


@contextmanager
def held(path: Path) -> Iterator[None]:
    """No other program can read or write the file meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30.0)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            holder.execute("ROLLBACK")


def _fill(stage: Stage, draw: random.Random, owner: str) -> None:
    with full(stage.home(owner)):
        time.sleep(draw.uniform(1.0, 15.0))


@contextmanager
def full(home: Path) -> Iterator[None]:
    """The disk that a folder is on has no byte left."""
    filler = home / "filler"
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 20)):
                pass
        yield
    finally:
        filler.unlink()


def _losses() -> Iterator[Fault]:
    yield Fault("Flower's state lost", "SuperLink killed and its folder gone", _lose_flower)


def _lose_flower(stage: Stage, draw: random.Random) -> tuple[str, int] | None:
    killed = _kill(stage, draw, "SuperLink")
    shutil.rmtree(stage.coordinator / "flower", ignore_errors=True)
    (stage.coordinator / "nodes.json").unlink(missing_ok=True)
    return killed


def drawn(by_kind: Mapping[str, list[Fault]], draw: random.Random) -> Fault:
    """One of the faults: first the kind, each as likely as the other."""
    return draw.choice(by_kind[draw.choice(sorted(by_kind))])
