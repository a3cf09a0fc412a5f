"""One run as people are shown it: what the report, the live view and the dashboard render, each in its own form.

Made from the run's summary and the events of `metrics.jsonl`, and nothing else.
"""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import TRAIN_LOSS, RunConfig
from common.pages.chart import Points, colours_of, line_chart
from common.pages.html import Markup
from common.tasks import Task, task_of
from common.text import counted, sized
from server.federation.events import (
    OVERALL,
    Event,
    not_scored,
    worst_site,
)
from server.federation.selection import in_words
from server.views.cross_site import CrossSite, cross_site_of
from server.views.heterogeneity import COLUMNS, heterogeneity_of
from server.views.measures import TRAIN, Measure, measures_of, moments_of
from server.views.sentences import (
    joined_of,
    lost_of,
    made_of,
    missing_of,
    noise_of,
    not_asked_of,
    odd_of,
    refused_of,
    score_with_noise,
)

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
class Scored:
    """The scores of one phase, as they are shown."""

    phase: str
    round: int
    columns: tuple[str, ...]
    rows: list[list[object]]
    noise: str | None  # what it means, where the sites have added some
    warnings: tuple[str, ...]
    lacking: str | None  # what is said of sites that gave none of a class
    lost: tuple[str, ...]  # whose scores did not come, each with why


@dataclass(frozen=True)
class Guarantee:
    """What is said of a private run."""

    void: str | None = None  # why there is no guarantee
    unit: str = ""
    target: str = ""  # epsilon
    rows: Sequence[Sequence[object]] = ()
    facts: Sequence[str] = ()
    columns: tuple[str, ...] = ("site", *_STATED)


@dataclass(frozen=True)
class Curve:
    """A score, or a loss, or a price, over the rounds."""

    title: str
    series: Mapping[str, Points]  # by site; (round, value)
    colours: Mapping[str, str]
    emphasis: str = ""

    @property
    def chart(self) -> Markup:
        """As a drawing."""
        return line_chart(self.title, self.series, colours=self.colours, emphasis=self.emphasis)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table that says the same."""
        return ("round", *sorted(self.series))

    @property
    def rows(self) -> list[list[object]]:
        """A round each, the latest first."""
        by_site = {site: dict(points) for site, points in self.series.items()}
        rounds = sorted({round_ for points in by_site.values() for round_ in points}, reverse=True)
        return [[round(one), *(by_site[site].get(one) for site in sorted(by_site))] for one in rounds]


@dataclass(frozen=True)
class Round:
    """One exchange of models, as it went."""

    number: int
    sites: tuple[str, ...]  # whose update entered
    refused: tuple[str, ...]  # each with why
    missing: tuple[str, ...]
    not_asked: tuple[str, ...]  # who was gone; how many more, where a round asks some of the sites
    odd: tuple[str, ...]
    steps: tuple[str, ...]  # of each site, where sites stop by time
    lost: tuple[str, ...]  # of the scoring after it, a phase each: whose scores did not come, and why
    seconds: float
    size: str  # of all that went, both ways


@dataclass(frozen=True)
class RunView:
    """A run."""

    name: str
    status: str
    reason: str | None
    facts: Sequence[tuple[str, str | None]]  # sentence, and a hash that belongs to it
    scores: Sequence[Scored]
    cross_site: Sequence[CrossSite]  # nothing where the run does not ask for it
    unlike: Sequence[Sequence[object]]  # how unlike the sites are, in the columns of server/views/heterogeneity.py
    curves: Sequence[Curve]
    guarantee: Guarantee | None
    rounds: Sequence[Round]
    joined: Sequence[str]  # who came into the run later, as sentences
    settings: Sequence[tuple[str, str]]
    measures: Sequence[Measure]  # every number, by round and site
    moments: Mapping[int, float]  # when each round ended; Unix s
    unlike_columns: Sequence[str] = COLUMNS


def view_of(summary: Mapping[str, Any], events: Sequence[Event]) -> RunView:
    """A run as it is shown.

    Args:
        summary: as `summary.json` has it, or of a run that goes on (server/views/progress.py).
        events: of its journal.
    """
    guarantee = summary["guarantee"]
    measures = measures_of(events, priced=guarantee is not None and "void" not in guarantee)
    lost = _lost(events)
    return RunView(
        name=summary["name"],
        status=summary["status"],
        reason=summary["reason"],
        facts=_facts(summary, events),
        scores=list(_scores(summary, lost)),
        cross_site=cross_site_of(summary, events),
        unlike=[one.row for one in heterogeneity_of(summary, events)],
        curves=_curves(measures, task_of(summary.get("settings")).headline),
        guarantee=_guarantee(guarantee),
        rounds=[_round(event, lost) for event in events if event["event"] == "round"],
        joined=joined_of([event for event in events if event["event"] == "round"]),
        settings=list(_settings(summary.get("settings") or {}, "")),
        measures=measures,
        moments=moments_of(events),
    )


def _facts(summary: Mapping[str, Any], events: Sequence[Event]) -> list[tuple[str, str | None]]:
    """What is said below the name; some of it with a hash."""
    times = [event["time"] for event in events if "time" in event]
    facts: list[tuple[str, str | None]] = [(f"{_moment(times[0])} to {_moment(times[-1])}", None)] if times else []
    facts += [
        (f"{counted(summary['rounds'], 'round')} in {summary['seconds']:.0f} s", None),
        (f"{sized(summary['bytes-down'])} to the sites, {sized(summary['bytes-up'])} from them", None),
        *((sentence, None) for sentence in in_words(summary)),
        (f"seed {summary['seed']}", None),
        ("run", summary["run-hash"]),
    ]
    return [*facts, ("model", summary["model-sha256"])] if summary["model-sha256"] else facts


def _lost(events: Sequence[Event]) -> dict[tuple[int, str], tuple[str, ...]]:
    """Whose scores did not come, by round and phase, where any did not."""
    scorings = [event for event in events if event["event"] == "evaluate" and event["site"] == OVERALL]
    return {(one["round"], one["phase"]): tuple(said) for one in scorings if (said := lost_of(one))}


def _scores(summary: Mapping[str, Any], lost: Mapping[tuple[int, str], tuple[str, ...]]) -> Iterator[Scored]:
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
        noise = noise_of([scores["mean-of-sites"]])
        yield Scored(
            phase=phase,
            round=scores["round"],
            columns=("site", *names),
            rows=rows,
            noise=noise,
            warnings=() if noise else tuple(_found_nothing(scores["sites"], task)),
            lacking=not_scored(scores["sites"], task),
            lost=lost.get((scores["round"], phase), ()),
        )


def _found_nothing(sites: Mapping[str, Mapping[str, float]], task: Task) -> Iterator[str]:
    """Sites, and classes there, of which the model finds nothing: scores such as specificity look well all the same."""
    for site, scores in sorted(sites.items()):
        if (missed := task.missed(scores)) is None:
            continue
        yield f"The model finds nothing of {missed} at {site}; its other scores there say little."


def _curves(measures: Sequence[Measure], headline: str) -> list[Curve]:
    by_name = {(one.phase, one.name): one.series for one in measures}
    colours = colours_of(site for series in by_name.values() for site in series if site != OVERALL)
    curves = [
        Curve(
            f"{headline.capitalize()} on validation patients, by round",
            by_name.get(("validation", headline), {}),
            colours,
            emphasis=OVERALL,
        ),
        Curve("Training loss, by round", by_name.get((TRAIN, TRAIN_LOSS), {}), colours),
        Curve("Epsilon spent, by round", by_name.get((TRAIN, "epsilon"), {}), colours),
    ]
    return [curve for curve in curves if curve.series]


def _guarantee(guarantee: dict[str, Any] | None) -> Guarantee | None:
    if guarantee is None:
        return None
    if "void" in guarantee:
        return Guarantee(void=guarantee["void"])
    rows = [[site, *(stated[column] for column in _STATED)] for site, stated in guarantee["sites"].items()]
    some: dict[str, Any] = next(iter(guarantee["sites"].values()), {})
    target = f"{guarantee['target-epsilon']:g}"
    return Guarantee(unit=guarantee["unit"], target=target, rows=rows, facts=_rests_on(some))


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


def _round(event: Event, lost: Mapping[tuple[int, str], tuple[str, ...]]) -> Round:
    return Round(
        number=event["round"],
        sites=tuple(event["sites"]),
        refused=tuple(refused_of(event)),
        missing=tuple(missing_of(event)),
        not_asked=tuple(not_asked_of(event)),
        odd=tuple(odd_of(event)),
        steps=tuple(made_of(event)),
        lost=tuple(
            f"{phase} scores: {', '.join(said)}" for (round_, phase), said in lost.items() if round_ == event["round"]
        ),
        seconds=event["seconds"],
        size=sized(event["bytes-down"] + event["bytes-up"]),
    )


def _settings(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    """All that defined the run, under its dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(value, ensure_ascii=False)


def settings_of(run: RunConfig) -> list[tuple[str, str]]:
    """Every setting of a run under its dotted key, with the defaults."""
    return list(_settings(run.model_dump(mode="json", by_alias=True), ""))


def _moment(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


__all__ = ["Curve", "Guarantee", "Round", "RunView", "Scored", "settings_of", "view_of"]
