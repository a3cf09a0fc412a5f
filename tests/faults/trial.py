"""One run under fire, and what is asked of it.

It ends by itself: with the model of a run that nothing disturbed, or failed for a reason that it says, and then an
operator's `resume` ends it with that model. No round names a site whose own audit log has no receipt for it. With
privacy, no site's ledger holds fewer rounds than updates left it, nor more beyond them than there were kills there.
"""

import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from client.site import open_site
from common.system.locks import is_locked
from tests.faults.kinds import Fault
from tests.faults.stage import Stage
from tests.system.play import SITES, Run

# After the last fault; a run that nothing disturbs takes seconds.
DEADLINE_S = 420.0
RESUMPTIONS = 2
# Of what happens in a run, that which is the work of its rounds.
PROGRESS = ("train", "round", "evaluate", "run-finished", "run-failed")
_LOOK_S = 0.1
# `runs` is a command that takes a second of a core; the folder of the run says most of it.
_ASK_EVERY_S = 10.0
# A fault strikes so long after the run has gone on; one in four does not wait for that, and strikes what recovers.
_PHASE_S, _HASTY_S, _HASTY = 2.0, 8.0, 0.25


@dataclass
class Struck:
    """One fault that was."""

    kind: str
    name: str
    run: str
    phase: str
    lasted_s: float  # until it was mended; a kill is not
    patience_s: float  # so long it was watched, at most
    kills: tuple[str, ...]  # sites whose attempt at a round it may have cost
    replaced_s: float | None = None  # until the process that was killed was there again
    progress_s: float | None = None  # from its end until the run had gone on


@dataclass
class Verdict:
    """How a run ended."""

    run: str
    state: str
    seconds: float
    rounds: int
    failures: list[str]  # reasons, before it was resumed
    wrong: list[str]  # what it may not do
    sha256: str = ""
    ledger: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # site -> rounds that left, charged, kills

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def uninterrupted(run: Run) -> Verdict:
    """The run that the others are compared with; it was just proposed."""
    return judged(run, time.monotonic(), [], None)


def under_fire(
    run: Run, faults: Iterator[Fault], draw: random.Random, expected: Callable[[], str | None], *, most: int
) -> tuple[list[Struck], Verdict]:
    """Strike until the run has ended, or so many faults were.

    Args:
        run: was just proposed.
        faults: to draw from.
        draw: of the moments.
        expected: SHA-256 of its model, None where noise decides; asked after the faults, since a run does not wait.
        most: no more faults than this.
    """
    began, struck = time.monotonic(), list[Struck]()
    time.sleep(draw.uniform(0.0, _HASTY_S))
    while len(struck) < most and not _is_over(run):
        one = _strike(run, next(faults), draw)
        struck.append(one)
        if one.patience_s == DEADLINE_S and one.progress_s is None and not _is_over(run):
            break  # it hangs, unless the end of the deadline proves otherwise
        time.sleep(draw.uniform(0.0, _PHASE_S))
    return struck, judged(run, began, struck, expected())


def judged(run: Run, began: float, struck: Sequence[Struck], expected: str | None) -> Verdict:
    """Wait for the end, and ask everything of it."""
    failures: list[str] = []
    wrong: list[str] = []
    while True:
        row = _ended(run)
        if row is None:
            wrong.append(f"it did not end within {DEADLINE_S:g} s of the last fault")
            break
        if row["state"] == "completed":
            break
        if row["state"] != "failed" or not row["reason"]:
            wrong.append(f"it is {row['state']} without a reason")
            break
        failures.append(str(row["reason"]))
        if len(failures) > RESUMPTIONS:
            wrong.append("it failed again after it was resumed")
            break
        run.play.server("resume", run.name)
    state = "did not end" if row is None else str(row["state"])
    verdict = Verdict(run.name, state, time.monotonic() - began, len(run.events("round")), failures, wrong)
    if state == "completed":
        verdict.sha256 = run.model()
        if expected is not None and verdict.sha256 != expected:
            wrong.append(f"its model is {verdict.sha256[:12]}, that of an undisturbed run {expected[:12]}")
    wrong += _claims(run)
    if run.config.privacy is not None:
        kills = Counter(site for one in struck for site in one.kills)
        verdict.ledger = {site: (*_charged(run, site), kills[site]) for site in SITES}
        wrong += [
            f"the ledger of {site} holds {charged} rounds, {left} updates left, and it was killed {times} times"
            for site, (left, charged, times) in verdict.ledger.items()
            if not left <= charged <= left + times
        ]
    return verdict


def _strike(run: Run, fault: Fault, draw: random.Random) -> Struck:
    """Strike, and watch what recovers; or, one time in four, only for a moment."""
    phase, began = _phase(run), time.monotonic()
    killed = fault.strike(_stage(run), draw)
    ended, seen = time.monotonic(), _seen(run)
    patience_s = draw.uniform(0.0, _HASTY_S) if draw.random() < _HASTY else DEADLINE_S
    struck = Struck(fault.kind, fault.name, run.name, phase, ended - began, patience_s, fault.kills)
    while (now := time.monotonic()) < ended + patience_s and not _is_over(run):
        if killed and struck.replaced_s is None and _stage(run).find(killed[0]) not in (None, killed[1]):
            struck.replaced_s = now - ended
        if struck.progress_s is None and _seen(run) - seen:
            struck.progress_s = now - ended
        if struck.progress_s is not None and (killed is None or struck.replaced_s is not None):
            break
        time.sleep(_LOOK_S)
    return struck


def _stage(run: Run) -> Stage:
    assert isinstance(run.play, Stage)
    return run.play


def _seen(run: Run) -> set[tuple[Any, ...]]:
    """The events of its rounds that are on disk."""
    keys = ("event", "time", "round", "site")
    return {tuple(event.get(key) for key in keys) for event in _journal(run) if event["event"] in PROGRESS}


def _journal(run: Run) -> list[dict[str, Any]]:
    """Its events, but for one of which only half is written."""
    found = []
    with suppress(FileNotFoundError, ValueError):
        for line in (run.folder / "metrics.jsonl").read_text().splitlines():
            found.append(json.loads(line))
    return found


def _phase(run: Run) -> str:
    """What the run is about, as far as its folder says."""
    if not is_locked(run.folder / "serverapp.lock"):
        return "ServerApp loading"
    last = (_journal(run) or [{"event": "run-started"}])[-1]
    match last["event"]:
        case "train":
            return "one update in"
        case "round":
            return "scoring"
        case "evaluate" if last["site"] != "overall":
            return "one score in"
    return "training"


def _is_over(run: Run) -> bool:
    """Whether its ServerApp has said how it ended."""
    path = run.folder / "summary.json"
    return path.exists() and not is_locked(run.folder / "serverapp.lock")


def _ended(run: Run) -> dict[str, Any] | None:
    """Its row once it is closed; None when it is not in time."""
    until, ask = time.monotonic() + DEADLINE_S, 0.0
    while time.monotonic() < until:
        if _is_over(run) or time.monotonic() > ask:
            ask = time.monotonic() + _ASK_EVERY_S
            row = run.row()
            if row["state"] not in ("proposed", "running"):
                return row
        time.sleep(1.0)
    return None


def _claims(run: Run) -> list[str]:
    """Sites that a round names, and whose own log knows nothing of it."""
    left = {site: set(_left(run, site)) for site in SITES}
    return [
        f"round {event['round']} names {site}, whose log has no receipt for it"
        for event in run.events("round")
        for site in event["sites"]
        if event["round"] not in left[site]
    ]


def _left(run: Run, site: str) -> list[int]:
    """The rounds of the run that a site has signed a receipt for, by its own audit log."""
    path = run.play.folder / site / "audit.sqlite"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=60.0, uri=True)) as database:
        entries = [json.loads(row[0]) for row in database.execute("SELECT entry FROM entries")]
    receipts = [entry["receipt"] for entry in entries if entry["kind"] == "round"]
    return [int(receipt["round"]) for receipt in receipts if receipt["run"] == run.hash]


def _charged(run: Run, site: str) -> tuple[int, int]:
    """Rounds whose updates left a site, and those that its ledger holds for the run; scores are charged by phase."""
    charges = open_site(run.play.folder / site).ledger.entries()
    rounds = [one for one in charges if one.run_hash == run.hash and one.attempt not in ("validation", "test")]
    return len(set(_left(run, site))), len(rounds)
