"""What a simulation costs by the number of its sites: seconds a round, and the memory of all its processes.

Each number of sites is a run of its own, made by `wardround-sim run` as a person makes it: site homes with keys, rules
and ledgers, generated CT series with DICOM SEG, rounds, checks, checkpoints, report. The images are tiny, and several
sites read the same folder: what is measured is what a site costs, not what its images cost. Memory is the largest
proportional set of all processes together (a page that several share counts once), looked at twice a second.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from common.errors import FederationError
from common.system.environment import PACKAGES, for_child
from common.system.files import write_atomically
from server.federation.events import JOURNAL_NAME, read_events
from simulations.generators.phantoms import SCANNERS, write_hospital

_FOLDERS, _PATIENTS, _SLICES, _ROWS = 10, 4, 2, 32
_LOOK_EVERY_S = 0.5
_SCENARIO = "sites.toml"
_RUN = """
[run]
format = 2
name = "scaling"
[run.model]
channels = {channels}
residual-units = 0
[run.data]
modality = "CT"
classes = ["lesion"]
validation-fraction = 0.2
test-fraction = 0.2
[run.preprocessing]
rows = {rows}
intensity = "window"
window = [-100, 250]
[run.training]
local-steps = 1
batch-size = 2
patch-size = [{rows}, {rows}]
[run.federation]
rounds = {rounds}
evaluate-every = {rounds}
{sampled}
"""
_SITE = """
[[sites]]
name = "site-{number:05d}"
data = [{{ path = "{images}", kind = "dicom", empty-labels-are-negative = true }}]
"""


@dataclass(frozen=True)
class Figure:
    """One number of sites.

    asked: sites in a round; opening_s: until the first round began, with all images read; seconds: of each round;
    scoring_s: of all sites' validation patients, once; memory: bytes.
    """

    sites: int
    asked: int
    opening_s: float
    seconds: tuple[float, ...]
    scoring_s: float
    memory: int

    @property
    def round_s(self) -> float:
        """Median of the rounds, but for the first, in which things are loaded."""
        return statistics.median(self.seconds[1:])


def measure(
    folder: Path,
    sizes: Sequence[tuple[int, int | None]],
    *,
    rounds: int,
    backend: str | None = None,
    channels: Sequence[int] = (4, 8),
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> tuple[Figure, ...]:
    """Make a run for each of these sizes.

    Args:
        folder: empty; receives images and runs.
        sizes: how many sites, and how many of them are asked in a round; None: all.
        rounds: of each run; the first does not count.
        backend: where the sites work; None: as `wardround-sim run` chooses.
        channels: of the U-Net, level by level.
        progress: called with (runs done, what is next).

    Raises:
        FederationError: a run failed.
    """
    scanners = list(SCANNERS.values())
    for number in range(min(_FOLDERS, max(sites for sites, _ in sizes))):
        scanner, images = scanners[number % len(scanners)], folder / "images" / f"{number}"
        write_hospital(images, scanner=scanner, patients=_PATIENTS, seed=number, slices=_SLICES, rows=_ROWS)
    figures = []
    for done, (sites, asked) in enumerate(sizes):
        progress(done, f"{sites} sites")
        figures.append(_measured(folder, sites, asked, rounds=rounds, backend=backend, channels=channels))
    progress(len(sizes), "done")
    return tuple(figures)


def _measured(
    folder: Path, sites: int, asked: int | None, *, rounds: int, backend: str | None, channels: Sequence[int]
) -> Figure:
    home = folder / f"{sites}"
    scenario = _scenario(sites, asked, rounds=rounds, channels=channels)
    write_atomically(home / _SCENARIO, scenario.encode())
    out = home / "out"
    command = [sys.executable, "-P", "-m", "simulations.commands.main", "run", str(home / _SCENARIO), "--out", str(out)]
    command += ["--data", str(folder / "images"), "--threads", "1", "--device", "cpu"]
    command += [] if backend is None else ["--backend", backend]
    environment = for_child(PYTHONPATH=str(PACKAGES), OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    began, most = time.time(), 0
    with (home / "run.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)  # noqa: S603 - our own interpreter and module
        try:
            while process.poll() is None:
                most = max(most, _held(process.pid))
                time.sleep(_LOOK_EVERY_S)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise FederationError(f"the run of {sites} sites failed: {(home / 'run.log').read_text()[-500:]}")
    events = read_events(out / JOURNAL_NAME)
    made = [event for event in events if event["event"] == "round"]
    return Figure(
        sites,
        min(sites, asked or sites),
        opening_s=_first(events, "run-started")["time"] - began,
        seconds=tuple(round(event["seconds"], 3) for event in made),
        scoring_s=next(one["seconds"] for one in events if one["event"] == "evaluate" and one["site"] == "overall"),
        memory=most,
    )


def _scenario(sites: int, asked: int | None, *, rounds: int, channels: Sequence[int]) -> str:
    sampled = "" if asked is None else f"sites-per-round = {asked}"
    run = _RUN.format(rounds=rounds, channels=list(channels), rows=_ROWS, sampled=sampled)
    return run + "".join(_SITE.format(number=number, images=number % _FOLDERS) for number in range(sites))


def _first(events: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(event for event in events if event["event"] == kind)


def _held(pid: int) -> int:
    """Bytes of a process and all below it."""
    total = 0
    try:
        top = psutil.Process(pid)
        for one in (top, *top.children(recursive=True)):
            try:
                total += one.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    except psutil.NoSuchProcess:
        pass
    return total


__all__ = ["Figure", "measure"]
