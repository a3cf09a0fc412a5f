"""One HTML file that tells a run: who took part, how good the model is, what privacy it cost.

Self-contained (server/views/report.html): curves (SVG) and pictures (PNG) are inside, no script, no network, so that it
can be mailed and archived. It is made from `metrics.jsonl` and `summary.json` alone, plus `overlays/*.png` where a
simulation drew some.
"""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import TRAIN_LOSS
from common.errors import ConfigError
from common.pages.chart import Points, colours_of, line_chart
from common.pages.html import Markup, picture, render
from common.privacy.scores import CLASS_NOISE, SCORE_NOISE
from common.system.files import write_atomically
from common.tasks import Task, task_of
from common.text import counted
from server.federation.events import (
    JOURNAL_NAME,
    OVERALL,
    SUMMARY_NAME,
    Event,
    missing_of,
    not_scored,
    odd_of,
    read_events,
    refused_of,
    worst_site,
)
from server.federation.selection import in_words

REPORT_NAME = "report.html"
OVERLAYS = "overlays"

# Of a site's guarantee, in this order.
_STATED = (
    "epsilon",
    "delta",
    "steps",
    "noise-multiplier",
    "gradient-noise-multiplier",
    "clipping-norm",
    "sampling-rate",
    "cohort-size-class",
)


@dataclass(frozen=True)
class _Scored:
    """The scores of one phase, as they are shown."""

    phase: str
    round: int
    columns: tuple[str, ...]
    rows: list[list[object]]
    noised: bool
    warnings: tuple[str, ...]
    lacking: str | None  # what is said of sites that gave none


@dataclass(frozen=True)
class _Guarantee:
    """What is said of a private run."""

    void: str | None = None  # why there is no guarantee
    unit: str = ""
    target: str = ""  # epsilon
    rows: Sequence[Sequence[object]] = ()
    facts: Sequence[str] = ()
    columns: tuple[str, ...] = ("site", *_STATED)


def write_report(folder: Path, summary: dict[str, Any] | None = None) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        folder: of a run's results.
        summary: of a run that has not ended (server/views/progress.py); None: what `summary.json` says.

    Raises:
        ConfigError: the folder holds no run.
    """
    if summary is None:
        summary_path = folder / SUMMARY_NAME
        if not summary_path.exists():
            raise ConfigError(f"{folder} holds no {SUMMARY_NAME}. Give the output folder of a run.")
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
    events = read_events(folder / JOURNAL_NAME)
    page = render(
        "server/views/report.html",
        title=f"Run {summary['name']}",
        name=summary["name"],
        status=summary["status"],
        reason=summary["reason"],
        facts=_facts(summary, events),
        scores=list(_scores(summary)),
        charts=_charts(events, summary["guarantee"], task_of(summary.get("settings")).headline),
        guarantee=_guarantee(summary["guarantee"]),
        examples=[picture(path) for path in sorted((folder / OVERLAYS).glob("*.png"))],
        rounds=_rounds(events),
        settings=list(_settings(summary.get("settings") or {}, "")),
    )
    path = folder / REPORT_NAME
    write_atomically(path, page.encode())
    return path


def score_with_noise(scores: Mapping[str, float], name: str, task: Task) -> object:
    """A score as it is shown: with the standard deviation of its noise, where the site has added some."""
    deviation = scores.get(SCORE_NOISE if name == task.headline else CLASS_NOISE)
    noised = deviation and (name == task.headline or name.startswith(task.of_class("")))
    return f"{scores[name]:.3f} ± {deviation:.3f}" if noised and name in scores else scores.get(name)


def _facts(summary: dict[str, Any], events: Sequence[Event]) -> list[tuple[str, str | None]]:
    """What is said below the name; some of it with a hash."""
    times = [event["time"] for event in events if "time" in event]
    facts: list[tuple[str, str | None]] = [(f"{_moment(times[0])} to {_moment(times[-1])}", None)] if times else []
    facts += [
        (f"{counted(summary['rounds'], 'round')} in {summary['seconds']:.0f} s", None),
        (f"{summary['bytes-down'] / 1e6:.1f} MB to the sites, {summary['bytes-up'] / 1e6:.1f} MB from them", None),
        *((sentence, None) for sentence in in_words(summary)),
        (f"seed {summary['seed']}", None),
        ("run", summary["run-hash"]),
    ]
    return [*facts, ("model", summary["model-sha256"])] if summary["model-sha256"] else facts


def _scores(summary: dict[str, Any]) -> Iterator[_Scored]:
    task = task_of(summary.get("settings"))
    for phase in ("test", "validation"):
        scores = summary["scores"].get(phase)
        if not scores or not scores["sites"]:
            continue
        names = [name for name in task.SHOWN if name in scores["mean-of-sites"]]
        names += sorted(name for name in scores["mean-of-sites"] if name.startswith(task.of_class("")))
        rows: list[list[object]] = [
            [site, *(score_with_noise(values, name, task) for name in names)]
            for site, values in [*sorted(scores["sites"].items()), ("mean of sites", scores["mean-of-sites"])]
        ]
        if (worst := worst_site(scores["sites"], task)) is not None:
            lowest = scores["sites"][worst]
            rows.append([f"worst site: {worst}", *(score_with_noise(lowest, name, task) for name in names)])
        if scores["mean-of-patients"]:
            # What a site says of its number is rounded, and never below ten.
            patients = scores["mean-of-patients"]
            rows.append(
                ["mean of patients, by counts in steps of 5 from 10 on", *(patients.get(name) for name in names)]
            )
        noised = SCORE_NOISE in scores["mean-of-sites"]
        yield _Scored(
            phase=phase,
            round=scores["round"],
            columns=("site", *names),
            rows=rows,
            noised=noised,
            warnings=tuple(_beyond(scores["sites"], names) if noised else _found_nothing(scores["sites"], task)),
            lacking=not_scored(scores["sites"], task),
        )


def _beyond(sites: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> Iterator[str]:
    """That a noised score may lie where no score lies."""
    if any(not 0 <= scores.get(name, 0) <= 1 for scores in sites.values() for name in names):
        yield (
            "A score below 0 or above 1 is no mistake: hospitals add noise to scores of a private run, and where it is "
            "larger than what is left to the score it leads beyond. Read it with its ±."
        )


def _found_nothing(sites: Mapping[str, Mapping[str, float]], task: Task) -> Iterator[str]:
    """Sites, and classes there, of which the model finds nothing: scores such as specificity look well all the same."""
    for site, scores in sorted(sites.items()):
        if (missed := task.missed(scores)) is None:
            continue
        yield f"The model finds nothing of {missed} at {site}; its other scores there say little."


def _charts(events: Sequence[Event], guarantee: dict[str, Any] | None, headline: str) -> list[Markup]:
    validation = [event for event in events if event["event"] == "evaluate" and event["phase"] == "validation"]
    trained = [event for event in events if event["event"] == "train"]
    void = "void" in (guarantee or {})
    colours = colours_of(str(event["site"]) for event in events if "site" in event and event["site"] != OVERALL)
    charts = [
        line_chart(
            f"{headline.capitalize()} on validation patients, by round",
            _series(validation, headline),
            colours=colours,
            emphasis=OVERALL,
        ),
        line_chart("Training loss, by round", _series(trained, TRAIN_LOSS), colours=colours),
        line_chart("Epsilon spent, by round", {} if void else _series(trained, "epsilon"), colours=colours),
    ]
    return [chart for chart in charts if chart]


def _series(events: Sequence[Event], metric: str) -> dict[str, Points]:
    lines: dict[str, dict[float, float]] = {}
    for event in events:
        if metric in event:
            lines.setdefault(event["site"], {})[event["round"]] = event[metric]
    return {site: sorted(points.items()) for site, points in lines.items()}


def _guarantee(guarantee: dict[str, Any] | None) -> _Guarantee | None:
    if guarantee is None:
        return None
    if "void" in guarantee:
        return _Guarantee(void=guarantee["void"])
    rows = [[site, *(stated[column] for column in _STATED)] for site, stated in guarantee["sites"].items()]
    some: dict[str, Any] = next(iter(guarantee["sites"].values()), {})
    target = f"{guarantee['target-epsilon']:g}"
    return _Guarantee(unit=guarantee["unit"], target=target, rows=rows, facts=_rests_on(some))


def _rests_on(stated: dict[str, Any]) -> list[str]:
    """What a site's guarantee rests on, in sentences; nothing where no site has trained."""
    if not stated:
        return []
    return [
        f"Sampling: {stated['sampling']}.",
        f"Clipping: {stated['clipping']}.",
        f"Noise: {stated['noise']}.",
        f"Accountant: {stated['accountant']}.",
        f"Held-out patients: {stated.get('held-out', 'not stated')}.",
        f"Public: {'; '.join(stated['public'])}.",
        f"Not covered: {'; '.join(stated['not-covered'])}.",
    ]


def _rounds(events: Sequence[Event]) -> list[list[object]]:
    return [
        [
            event["round"],
            ", ".join(event["sites"]),
            ", ".join(refused_of(event)) or "-",
            ", ".join(missing_of(event)) or "-",
            ", ".join(odd_of(event)) or "-",
            f"{event['seconds']:.1f}",
            f"{(event['bytes-down'] + event['bytes-up']) / 1e6:.1f}",
        ]
        for event in events
        if event["event"] == "round"
    ]


def _settings(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    """All that defined the run, under its dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(value, ensure_ascii=False)


def _moment(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
