"""What happened in a run, one JSON object per line, and the summary that follows from it.

`metrics.jsonl` is the only record: the summary, the report and a live view are functions of its events, so a run
that was killed and resumed tells the same story as one that was not. Events, each with `event` and `time` (Unix s):

    run-started   name, run-hash, rounds, quorum, seed, resumed-from
    asked         round, sites: whom a round asks, where it does not ask all; once more where it needs further ones
    waiting       round, for, sites {site: away ...}, since {site: Unix s}, until: who is gone and waited for; {}:
                  nobody now. for: quorum, before the round can begin; updates, of the round; scores, after it
    train         round, site, patients, train-loss, steps, seconds, epsilon, delta ... (what the site reported), and
                  statistics of its training patients (common/config/statistics.py), which are the same each time
    round         round, sites, refused {site: code}, refused-by-coordinator: of these the sites whose answer the
                  coordinator refused, where the others refused what they were asked; missing,
                  why-missing {site: away ...}, seconds, bytes-down, bytes-up, model-sha256,
                  not-there {site: away ...}: sites that take part, and were gone as the round asked
                  not-asked: sites that could have been asked and were not drawn, where a round does not ask all
                  capped: sites that weighed less than their count of patients says
                  (server/federation/strategies/weighing.py),
                  suspicious {site: [what]}: updates that entered and look wrong (server/federation/suspicion.py)
                  steps-made {site: steps}: of a run whose sites stop by time (training.local-seconds)
                  moves {site: {length, with-others, own-way}}: how they lie to each other (server/federation/drift.py)
    evaluate      round, phase, site, patients, and the scores of the run's task (common/tasks)
                  scores that a site has noised: also score-noise, class-score-noise (standard deviations, of the
                  headline score and of each class's), scores-epsilon, scores-delta
                  site "overall": the mean of the sites' scores, with its noise; under "mean-of-patients" the mean
                  weighted by patients, where the sites gave counts; refused, refused-by-coordinator, missing,
                  seconds, bytes-down
    stopped-early round, best-round, patience, the best validation score: see server/federation/selection.py
    run-finished  seconds, model-sha256, model-round: whose model is kept
    run-failed    reason: why it ended
    run-interrupted  reason: what stopped it before it ended; it can go on
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.config.statistics import is_statistic
from common.errors import ConfigError
from common.privacy.guarantee import UNIT, guarantee, why_void
from common.privacy.scores import CLASS_NOISE, NOISE_NAMES, SCORE_NOISE
from common.system.files import append, write_atomically
from common.tasks import Task

JOURNAL_NAME = "metrics.jsonl"
# Before the run's start: the weights that [initial] names.
INITIAL_NAME = "initial.safetensors"
SUMMARY_NAME = "summary.json"
OVERALL = "overall"
BY_COORDINATOR = "refused-by-coordinator"
ASKED, NOT_ASKED, NOT_THERE = "asked", "not-asked", "not-there"
WAITING, STOPPED = "waiting", "stopped-early"
FOR, QUORUM, UPDATES, SCORES = "for", "quorum", "updates", "scores"
SUSPICIOUS, MOVES, STEPS_MADE = "suspicious", "moves", "steps-made"
LENGTH, WITH_OTHERS, OWN_WAY = "length", "with-others", "own-way"  # of each: see server/federation/drift.py

Event: TypeAlias = dict[str, Any]
Observe: TypeAlias = Callable[[Event], None]
# A summary on disk is of a run that completed or failed; the others are made when somebody asks.
Status: TypeAlias = Literal["completed", "failed", "running", "stopped", "proposed"]

# By how a member is (server/federation/members.py).
_WHY_MISSING = {
    **{"here": "did not answer", "away": "is away", "left": "left", "revoked": "was revoked"},
    **{"at work": "was still at work", "hangs": "hangs: its worker was asked and uses no processor"},
}

_ABOUT = frozenset({"event", "time", "round", "phase", "site", "patients"})
_ABOUT_OVERALL = _ABOUT | {
    *("mean-of-patients", "refused", BY_COORDINATOR, "missing", "why-missing", "seconds", "bytes-down")
}
# What an event says beside what a site states: no metric may bear such a name. A site tells its own seconds.
ENTRIES = (
    _ABOUT_OVERALL | {"bytes-up", "sites", "weights", "capped", NOT_ASKED, NOT_THERE, SUSPICIOUS, MOVES, STEPS_MADE}
) - {"seconds"}


@dataclass(frozen=True)
class Summary:
    """A run in one page; `summary.json` holds it with kebab-case keys."""

    name: str
    run_hash: str
    settings: dict[str, Any]  # of the run, with its defaults
    status: Status
    reason: str | None
    code: str | None  # of why it failed, an ErrorCode
    seed: int
    rounds: int  # completed
    # Per round: sites whose update entered, refused {site: code} (by site or coordinator), missing; how many not asked.
    sites_by_round: tuple[dict[str, Any], ...]
    # phase -> {"round", "sites": {site: scores}, "mean-of-sites": scores, "mean-of-patients": scores | None}
    scores: dict[str, Any]
    # None without differential privacy.
    guarantee: dict[str, Any] | None
    seconds: float
    bytes_down: int
    bytes_up: int
    model_sha256: str | None
    # Of a run that has completed: the round of the model that it keeps.
    model_round: int | None = None
    # Of a run that ended before its last round, as its scores grew no better: the journal's event. None: it did not.
    stopped_early: dict[str, Any] | None = None


@dataclass
class Journal:
    """The events of one run, in memory and in `metrics.jsonl`."""

    path: Path
    observe: Observe | None = None
    events: list[Event] = field(default_factory=list)

    def record(self, event: str, values: Mapping[str, Any], *, durable: bool = True) -> None:
        """Append an event.

        Args:
            event: its name.
            values: what it says.
            durable: it is on disk when this returns, and all before it. What one site says need not be, since the event
                of its round follows before a checkpoint does: until then a resumed run asks the sites again.
        """
        entry: Event = {**values, "event": event, "time": time.time()}
        self.events.append(entry)
        append(self.path, _line(entry).encode(), durable=durable)
        if self.observe is not None:
            self.observe(entry)


def open_journal(folder: Path, *, last_round: int, run_hash: str = "", observe: Observe | None = None) -> Journal:
    """Open the run's journal, without what happened after the checkpoint of `last_round`, and without another run's.

    That work is done again by a resumed run, with the sites that were asked for it: a round cut short, a line cut off
    in the middle, and the scores of the last round.
    """
    path = folder / JOURNAL_NAME
    folder.mkdir(parents=True, exist_ok=True)
    kept = [event for event in read_events(path) if _is_before(event, last_round, run_hash)]
    write_atomically(path, "".join(_line(event) for event in kept).encode())
    return Journal(path, observe, kept)


def read_events(path: Path) -> list[Event]:
    """The events of a journal, in order, up to a line that was cut off, or that a power failure took.

    Such a line is followed by none that was on disk before more was done: see `Journal.record`.

    Raises:
        ConfigError: another line is not JSON.
    """
    if not path.exists():
        return []
    events: list[Event] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if (event := _read(line)) is not None:
            events.append(event)
        elif any((later := _read(one)) is not None and not _is_of_a_site(later) for one in lines[number:]):
            raise ConfigError(f"{path} line {number} is not JSON. The file was changed; restore it.")
        else:
            break
    return events


def summarise(
    document: RunDocument,
    events: Sequence[Event],
    *,
    status: Status,
    reason: str | None = None,
    code: str | None = None,
    model_sha256: str | None = None,
    model_round: int | None = None,
) -> Summary:
    """What the events amount to; of a model that is kept the validation scores are its own round's."""
    run = document.config
    rounds = [event for event in events if event["event"] == "round"]
    return Summary(
        name=run.name,
        run_hash=document.hash,
        settings=run.model_dump(mode="json", by_alias=True),
        status=status,
        reason=reason,
        code=code,
        seed=run.seed,
        rounds=len(rounds),
        sites_by_round=tuple(
            {key: event.get(key, []) for key in ("round", "sites", "refused", BY_COORDINATOR, "missing")}
            | ({NOT_ASKED: len(event[NOT_ASKED])} if NOT_ASKED in event else {})
            for event in rounds
        ),
        scores=latest_scores(events if model_round is None else up_to(events, model_round)),
        guarantee=guarantee_of(run, events),
        seconds=sum(event["seconds"] for event in events if _is_exchange(event)),
        bytes_down=sum(event["bytes-down"] for event in events if _is_exchange(event)),
        bytes_up=sum(event.get("bytes-up", 0) for event in events if _is_exchange(event)),
        model_sha256=model_sha256,
        model_round=model_round,
        stopped_early=next((_only_values(event) for event in events if event["event"] == STOPPED), None),
    )


def write_summary(folder: Path, summary: Summary) -> None:
    """Write `summary.json`."""
    text = json.dumps(summary_as_dict(summary), indent=2, allow_nan=False)
    write_atomically(folder / SUMMARY_NAME, f"{text}\n".encode())


def read_summary(folder: Path) -> dict[str, Any] | None:
    """A run's result, or None while there is none."""
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return summary


def rounds_done(folder: Path) -> int:
    """How many rounds of a run are done."""
    return max((event["round"] for event in read_events(folder / JOURNAL_NAME) if event["event"] == "round"), default=0)


def summary_as_dict(summary: Summary) -> dict[str, Any]:
    """As `summary.json` holds it."""
    return {name.replace("_", "-"): value for name, value in vars(summary).items()}


def mean_of_sites(scores: Mapping[str, Mapping[str, float]], task: Task) -> dict[str, float]:
    """Unweighted mean of each metric over the sites that report it: each hospital counts the same.

    Where sites have noised theirs, with the standard deviation of the noise on the mean.
    """
    exact = {
        site: {name: value for name, value in one.items() if name not in NOISE_NAMES} for site, one in scores.items()
    }
    scored = [one for one in scores.values() if task.headline in one]
    noise = {
        name: math.hypot(*(one.get(name, 0.0) for one in scored)) / len(scored)
        for name in (SCORE_NOISE, CLASS_NOISE)
        if any(name in one for one in scored)
    }
    return _weighted(exact, dict.fromkeys(scores, 1)) | noise


def mean_of_patients(scores: Mapping[str, Mapping[str, float]], patients: Mapping[str, int]) -> dict[str, float] | None:
    """Mean of each metric over the sites that report it, weighted by their patients. None where a count is missing."""
    return _weighted(scores, patients) if scores and all(patients[site] for site in scores) else None


def worst_site(scores: Mapping[str, Mapping[str, float]], task: Task) -> str | None:
    """The site with the lowest headline score, which a mean hides; None where no two sites have one."""
    scored = [(values[task.headline], site) for site, values in scores.items() if task.headline in values]
    return min(scored)[1] if len(scored) > 1 else None


def worst_told(scores: Mapping[str, Mapping[str, float]], task: Task) -> str | None:
    """The worst site and its headline score, for a person."""
    worst = worst_site(scores, task)
    if worst is None:
        return None
    noise = f" ± {deviation:.3f}" if (deviation := scores[worst].get(SCORE_NOISE)) else ""
    return f"worst site: {worst}, {task.headline} {scores[worst][task.headline]:.3f}{noise}"


def latest_scores(events: Sequence[Event]) -> dict[str, Any]:
    """The scores of the last evaluation of each phase, by site and overall."""
    found: dict[str, Any] = {}
    for event in events:
        if event["event"] != "evaluate":
            continue
        phase = found.get(event["phase"])
        if phase is None or phase["round"] != event["round"]:
            phase = {"round": event["round"], "sites": {}, "mean-of-sites": {}, "mean-of-patients": None}
            found[event["phase"]] = phase
        if event["site"] == OVERALL:
            phase["mean-of-sites"] = scores_of(event)
            phase["mean-of-patients"] = event["mean-of-patients"]
        else:
            phase["sites"][event["site"]] = scores_of(event)
    return found


def up_to(events: Sequence[Event], round_: int) -> list[Event]:
    """The events without scores of later rounds."""
    return [event for event in events if event["event"] != "evaluate" or event["round"] <= round_]


def guarantee_of(run: RunConfig, events: Sequence[Event]) -> dict[str, Any] | None:
    """What the model guarantees to the patients of each site, as the sites' own ledgers state it; None without DP.

    Where it is void there are no sites in it, and `void` says why.
    """
    if run.privacy is None:
        return None
    if reason := why_void(run):
        return {"unit": UNIT, "void": reason, "sites": {}}
    trained = [event for event in events if event["event"] == "train"]
    scored = {event["site"]: scores_of(event) for event in events if event["event"] == "evaluate"}
    steps: dict[str, int] = {}
    for event in trained:
        steps[event["site"]] = steps.get(event["site"], 0) + int(event.get("steps", run.training.local_steps))
    sites: dict[str, dict[str, object]] = {}
    for site, event in {event["site"]: event for event in trained}.items():  # the last of each
        spent = {"epsilon": event["epsilon"], "delta": event["delta"]}
        sites[site] = guarantee(run, **spent, steps=steps[site], scores=scored.get(site)).as_dict()
    return {"unit": UNIT, "target-epsilon": run.privacy.target_epsilon, "sites": dict(sorted(sites.items()))}


def scores_of(event: Event) -> dict[str, float]:
    """The metrics of a train or evaluate event, without its other entries and without statistics of patients."""
    about = _ABOUT_OVERALL if event["site"] == OVERALL else _ABOUT
    return {name: value for name, value in event.items() if name not in about and not is_statistic(name)}


def statistics_of(events: Sequence[Event]) -> dict[str, dict[str, float]]:
    """What each site told of its training patients first, by site and name; nothing of a site that told nothing."""
    found: dict[str, dict[str, float]] = {}
    for event in events:
        if event["event"] == "train" and (told := {name: event[name] for name in event if is_statistic(name)}):
            found.setdefault(event["site"], told)
    return found


def not_scored(scores: Mapping[str, Mapping[str, float]], task: Task) -> str | None:
    """A sentence on the classes that some sites have scores of and others have not; None where all have the same."""
    names = sorted({name for values in scores.values() for name in values if name.startswith(task.of_class(""))})
    lacking = {site: [name for name in names if name not in values] for site, values in sorted(scores.items())}
    told = "; ".join(f"{site} {', '.join(absent)}" for site, absent in lacking.items() if absent)
    if not told:
        return None
    return (
        f"Not scored: {told}. None of the site's patients here has the class, or its policy keeps the score. Its own "
        "means are over the other classes, and a mean of sites is over the sites that have the score."
    )


def refusal(site: str, code: str, *, here: bool = False) -> str:
    """That a site refused, or that what it answered was refused here, as a sentence with the code."""
    return f"the coordinator refused {site}'s answer ({code})" if here else f"{site} refused ({code})"


def in_words(why: str) -> str:
    """Why a site is missing, to be read after its name."""
    return _WHY_MISSING.get(why, "did not answer")


def _weighted(scores: Mapping[str, Mapping[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """A site that lacks a metric, such as that of a class none of its patients has, takes no part in its mean."""
    found = {}
    for name in dict.fromkeys(name for values in scores.values() for name in values):
        sites = [site for site, values in scores.items() if name in values]
        total = sum(weights[site] for site in sites)
        found[name] = math.fsum(scores[site][name] * weights[site] for site in sites) / total
    return found


def _only_values(event: Event) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("event", "time")}


def _is_exchange(event: Event) -> bool:
    """Whether the event closes one exchange with all sites."""
    return bool(event["event"] == "round" or (event["event"] == "evaluate" and event["site"] == OVERALL))


def _is_before(event: Event, last_round: int, run_hash: str) -> bool:
    match event["event"]:
        case "run-started":
            return last_round > 0
        case "train" | "round":
            return bool(event["round"] <= last_round)
        case kind if kind == ASKED:  # a round that was cut short asks the same again
            return bool(event["round"] <= last_round + 1 and event.get("run-hash") == run_hash)
        case "evaluate":
            return bool(event["round"] < last_round)
        case _:
            return False


def _is_of_a_site(event: Event) -> bool:
    return bool(event["event"] == "train" or (event["event"] == "evaluate" and event["site"] != OVERALL))


def _read(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _line(event: Event) -> str:
    return json.dumps(event, allow_nan=False) + "\n"
