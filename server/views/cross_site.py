"""What each hospital gains: the model before, the model now, and the one that it trained alone, on its own patients.

Of a run with [federation] cross-site. The global model's scores are those that the coordinator was told at each
evaluation, the model before among them, so that nothing is scored twice for it; the local model's come beside them
(client/train/alone.py). A gain is the global model's score less the local one's, of the same patients after as many
steps at that hospital.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.privacy.scores import SCORE_NOISE
from common.strategies import of_personal
from common.tasks import Task, of_local, task_of
from server.federation.events import OVERALL, Event, worst_site

_PHASES = ("test", "validation")


@dataclass(frozen=True)
class Gain:
    """The headline scores of one hospital, exact or as it noised them. None: none was told."""

    site: str
    previous: float | None  # of the global model that was evaluated before
    shared: float | None
    local: float | None
    personal: float | None  # of a model of the site's own that the strategy makes
    noise: float | None  # standard deviation on `shared`

    @property
    def gain(self) -> float | None:
        """What the global model scores more than the local one."""
        return None if self.shared is None or self.local is None else self.shared - self.local


@dataclass(frozen=True)
class CrossSite:
    """One phase: a row for each hospital."""

    phase: str
    score: str  # its name
    round: int
    previous: int | None  # the round evaluated before
    gains: tuple[Gain, ...]
    worst: str | None  # whose score of the global model is the lowest
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table for people."""
        before = () if self.previous is None else (f"global, round {self.previous}",)
        personal = ("personal",) if self._personal else ()
        return ("site", *before, f"global, round {self.round}", *personal, "own, trained alone", "gain")

    @property
    def rows(self) -> list[list[object]]:
        """A hospital each, then the mean of the sites and the worst one."""
        rows = [self._row(one.site, one) for one in self.gains]
        rows.append(self._row("mean of sites", self._mean()))
        for one in self.gains:
            if one.site == self.worst:
                rows.append(self._row(f"worst site: {one.site}", one))
        return rows

    @property
    def _personal(self) -> bool:
        return any(one.personal is not None for one in self.gains)

    def _mean(self) -> Gain:
        def mean(values: Sequence[float | None]) -> float | None:
            told = [one for one in values if one is not None]
            return statistics.fmean(told) if told else None

        return Gain(
            site="",
            previous=mean([one.previous for one in self.gains]),
            shared=mean([one.shared for one in self.gains]),
            local=mean([one.local for one in self.gains]),
            personal=mean([one.personal for one in self.gains]),
            noise=None,
        )

    def _row(self, name: str, one: Gain) -> list[object]:
        told = [one.gain for one in self.gains if one.gain is not None]
        # Of sites that told both: the difference of two means would be of different sites.
        gain = one.gain if one.site else statistics.fmean(told) if told else None
        before = [] if self.previous is None else [one.previous]
        personal = [one.personal] if self._personal else []
        shared = f"{one.shared:.3f} ± {one.noise:.3f}" if one.shared is not None and one.noise else one.shared
        return [name, *before, shared, *personal, one.local, None if gain is None else f"{gain:+.3f}"]


def cross_site_of(summary: Mapping[str, Any], events: Sequence[Event]) -> tuple[CrossSite, ...]:
    """What each hospital gains, the test first; nothing where the run does not ask for it, or no score was told.

    Args:
        summary: as `summary.json` has it, or of a run that goes on.
        events: of its journal.
    """
    settings = summary.get("settings") or {}
    if not settings.get("federation", {}).get("cross-site"):
        return ()
    return tuple(
        _phase(phase, summary["scores"][phase], summary, events)
        for phase in _PHASES
        if summary["scores"].get(phase, {}).get("sites")
    )


def as_columns(phases: Sequence[CrossSite]) -> dict[str, dict[str, float | None]]:
    """Column -> site -> value, of all phases: what a program reads beside a run's scores."""
    found: dict[str, dict[str, float | None]] = {}
    for one in phases:
        if one.previous is not None:
            found[f"{one.phase}-previous"] = {gain.site: gain.previous for gain in one.gains}
        found[one.phase] = {gain.site: gain.shared for gain in one.gains}
        found[f"{one.phase}-local"] = {gain.site: gain.local for gain in one.gains}
        found[f"{one.phase}-gain"] = {gain.site: gain.gain for gain in one.gains}
    return found


def _phase(phase: str, scores: Mapping[str, Any], summary: Mapping[str, Any], events: Sequence[Event]) -> CrossSite:
    task = task_of(summary.get("settings"))
    before = _before(events, scores["round"], task) if phase == "validation" else None
    earlier = {} if before is None else before[1]
    gains = tuple(
        Gain(
            site=site,
            previous=earlier.get(site),
            shared=values.get(task.headline),
            local=values.get(of_local(task.headline)),
            personal=values.get(of_personal(task.headline)),
            noise=values.get(SCORE_NOISE),
        )
        for site, values in sorted(scores["sites"].items())
    )
    return CrossSite(
        phase=phase,
        score=task.headline,
        round=scores["round"],
        previous=None if before is None else before[0],
        gains=gains,
        worst=worst_site(scores["sites"], task),
        notes=tuple(_notes(gains, phase, scores["round"], summary)),
    )


def _before(events: Sequence[Event], round_: int, task: Task) -> tuple[int, dict[str, float]] | None:
    """The last evaluation before that of a round: its round, and each site's score."""
    earlier = [
        one for one in events if one["event"] == "evaluate" and one["phase"] == "validation" and one["round"] < round_
    ]
    if not earlier:
        return None
    last = max(one["round"] for one in earlier)
    of_last = [one for one in earlier if one["round"] == last and one["site"] != OVERALL]
    return last, {one["site"]: one[task.headline] for one in of_last if task.headline in one}


def _notes(gains: Sequence[Gain], phase: str, round_: int, summary: Mapping[str, Any]) -> Iterator[str]:
    if (summary.get("settings") or {}).get("privacy"):
        yield (
            "This run is private: no score of a model that a hospital trained alone leaves it. There "
            "`wardround-client show` has both."
        )
        return
    better = [f"{one.site} ({one.gain:+.3f})" for one in gains if one.gain is not None and one.gain > 0]
    others = [f"{one.site} ({one.gain:+.3f})" for one in gains if one.gain is not None and one.gain <= 0]
    silent = [one.site for one in gains if one.gain is None]
    parts = [("Gain from the run", better), ("Do not", others), ("Told no score of both", silent)]
    yield f"{'. '.join(f'{said}: ' + ', '.join(sites) for said, sites in parts if sites)}."
    if phase == "test" and round_ < summary["rounds"]:
        yield f"The global model is that of round {round_}, the models trained alone are those of the last round."
    yield (
        "One run with one split: of few held-out patients a difference of this kind is mostly chance. "
        "`wardround-sim compare` repeats it with several seeds."
    )


__all__ = ["CrossSite", "Gain", "as_columns", "cross_site_of"]
