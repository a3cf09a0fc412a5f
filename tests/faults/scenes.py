"""Faults that end a run, or would if what is seen were believed: each has an outcome of its own, which is asked for.

Lines that lose packets all the time; a hospital that is away for longer than a round waits; a quorum that does without
it; a home put back from an old backup, at a hospital and at the coordinator; a clock that jumps. They are played in
this order, and the last one leaves a federation that has to enrol anew.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import trial
from tests.faults.line import why_lossless
from tests.faults.stage import Stage
from tests.faults.trial import Verdict
from tests.patience import eventually
from tests.system.play import LONG_S, SITES, Run, run_text

# Debian's package faketime; found where its wrapper looks for it.
_FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
_AWAY = SITES[1]
_TIMEOUT_S = 20.0
_LOSS_PERCENT = 10

Scene = Callable[[Stage, str, tuple[int, int], str], Verdict]


def scenes() -> tuple[dict[str, Scene], dict[str, str]]:
    """Those that can be played here, by name, in their order; and why others cannot.

    Each is given the stage, a name for its run, the rounds of it and the steps of a round, and the SHA-256 of the model
    that these lead to.
    """
    found: dict[str, Scene] = {
        "a line that loses one packet in ten": _lossy,
        "a site away for longer than a round": _away_too_long,
        "a quorum that does without": _without,
        "a clock that jumps": _clock_jumps,
        "a site of an old backup": _old_site,
        "a coordinator of an old backup": _old_coordinator,
    }
    lacking = {}
    if (why := why_lossless()) is not None:
        del found["a line that loses one packet in ten"]
        lacking["a line that loses one packet in ten"] = why
    if not _FAKETIME:
        del found["a clock that jumps"]
        lacking["a clock that jumps"] = "libfaketime is not installed (Debian: faketime)"
    return found, lacking


def _lossy(stage: Stage, name: str, size: tuple[int, int], expected: str) -> Verdict:
    began = time.monotonic()
    with stage.lines[SITES[0]].lossy(_LOSS_PERCENT), stage.lines[SITES[1]].lossy(_LOSS_PERCENT):
        verdict = trial.judged(_proposed(stage, name, size), began, [], expected)
    if verdict.failures:
        verdict.wrong.append(f"it failed: {verdict.failures}")
    verdict.wrong += [f"the line of {site} lost no packet" for site in SITES if not stage.lines[site].lost]
    return verdict


def _away_too_long(stage: Stage, name: str, size: tuple[int, int], expected: str) -> Verdict:
    run = _proposed(stage, name, size, _TIMEOUT_S)
    began = time.monotonic()
    eventually(lambda: run.events("round"), "a first round")
    with stage.lines[_AWAY].cut():
        eventually(lambda: run.row()["state"] == "failed", "its failure")
    verdict = trial.judged(run, began, [], expected)
    if not verdict.failures or _AWAY not in verdict.failures[0]:
        verdict.wrong.append(f"its failure does not name {_AWAY}: {verdict.failures}")
    return verdict


def _without(stage: Stage, name: str, size: tuple[int, int], _expected: str) -> Verdict:
    run = stage.begin(name, run_text(name, *size, _TIMEOUT_S).replace("quorum = 2", "quorum = 1"))
    began = time.monotonic()
    eventually(lambda: run.events("round"), "a first round")
    with stage.lines[_AWAY].cut():
        eventually(lambda: any(_AWAY not in one["sites"] for one in run.events("round")), "a round without it")
    verdict = trial.judged(run, began, [], None)
    for event in run.events("round"):
        if _AWAY not in event["sites"] and _AWAY not in event["missing"] and event["why-missing"].get(_AWAY) is None:
            verdict.wrong.append(f"round {event['round']} was without {_AWAY} and does not say so")
    if verdict.state != "completed":
        verdict.wrong.append("it did not go on")
    return verdict


def _clock_jumps(stage: Stage, name: str, size: tuple[int, int], expected: str) -> Verdict:
    """Two hours ahead and two hours behind, at a hospital and at the coordinator, while they work."""
    clock = stage.folder / "clock"
    clock.write_text("+0")
    stage.variables = {
        "LD_PRELOAD": str(_FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    try:
        with stage.down(_AWAY):
            pass
        run = _proposed(stage, name, size)
        began = time.monotonic()
        for jump in ("+2h", "+0", "-30m", "+0"):
            rounds = len(run.events("round"))
            clock.write_text(jump)
            eventually(lambda: len(run.events("round")) > rounds or run.events("run-finished"), "a further round")  # noqa: B023
        return trial.judged(run, began, [], expected)
    finally:
        stage.variables = {}
        with stage.down(_AWAY):
            pass


def _old_site(stage: Stage, name: str, size: tuple[int, int], expected: str) -> Verdict:
    with stage.down(_AWAY):
        old = _copy(stage.home(_AWAY), stage.folder / "old-site")
    trial.uninterrupted(_proposed(stage, f"{name}-before", size))
    with _put_back(stage, _AWAY, old):
        run = _proposed(stage, name, size)
        began = time.monotonic()
        eventually(lambda: run.row()["state"] not in ("proposed", "running"), "its end")
        said = json.loads((stage.home(_AWAY) / "status.json").read_text())["audit"]
    verdict = trial.judged(run, began, [], expected)
    if "CONFLICT" not in said:
        verdict.wrong.append(f"the site's status says of its audit log: {said}")
    if not any(_AWAY in one for one in verdict.failures):
        verdict.wrong.append(f"its failure does not name {_AWAY}: {verdict.failures}")
    return verdict


def _old_coordinator(stage: Stage, name: str, size: tuple[int, int], _expected: str) -> Verdict:
    with stage.down("coordinator"):
        old = _copy(stage.coordinator, stage.folder / "old-coordinator")
    trial.uninterrupted(_proposed(stage, f"{name}-before", size))
    with _put_back(stage, "coordinator", old):
        run = _proposed(stage, name, size)
        began = time.monotonic()
        eventually(lambda: run.row()["state"] not in ("proposed", "running"), "its end")
        row = run.row()
    wrong = [] if row["state"] == "failed" and "audit" in row["reason"] else [f"it is {row['state']}: {row['reason']}"]
    for site in SITES:
        if "CONFLICT" not in (said := json.loads((stage.home(site) / "status.json").read_text())["audit"]):
            wrong.append(f"the status of {site} says of its audit log: {said}")
    return Verdict(name, str(row["state"]), time.monotonic() - began, 0, [str(row["reason"])], wrong)


def _proposed(stage: Stage, name: str, size: tuple[int, int], timeout_s: float = LONG_S) -> Run:
    rounds, steps = size
    return stage.propose(name, rounds=rounds, steps=steps, timeout_s=timeout_s)


def _copy(home: Path, target: Path) -> Path:
    """A backup of a home whose processes are stopped."""

    def sockets(folder: str, names: list[str]) -> list[str]:
        return [one for one in names if (Path(folder) / one).is_socket()]

    return Path(shutil.copytree(home, target, symlinks=True, ignore=sockets, dirs_exist_ok=True))


@contextmanager
def _put_back(stage: Stage, owner: str, old: Path) -> Iterator[None]:
    """For the body, a machine works with an old copy of its home."""
    home = stage.home(owner)

    def replace(by: Path) -> None:
        for path in home.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _copy(by, home)

    with stage.down(owner):
        new = _copy(home, stage.folder / f"new-{owner}")
        replace(old)
    try:
        yield
    finally:
        with stage.down(owner):
            replace(new)
