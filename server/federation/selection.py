"""Which round's model a run keeps, and when it has seen enough: [federation] keep and patience.

Both follow from the scores of the validation patients that the sites let go, the mean of the sites' headline scores
after each round that is scored, and from nothing else: so they see what leaves by each hospital's policy, with its
noise, and cost no more than is charged for it. Two rounds are compared over the sites that scored both, since a round
that misses a site of hard patients has a higher mean and no better model. Such comparisons need not make one order of
all rounds, so each round is compared with the best one before it, in turn: the best so far is never an earlier round
than it was, and no other model has to be kept. Both are functions of the journal's events: a run that is resumed scores
its last round again, gets the same answers, and decides the same. Imports no torch: views read it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import RunConfig
from common.tasks import Task, task_of
from common.text import counted
from server.federation.events import OVERALL, Event


@dataclass(frozen=True)
class _Scored:
    """A round's headline score: of each site that told it, and the mean."""

    round: int
    mean: float
    sites: Mapping[str, float]


def best_round(events: Sequence[Event], task: Task) -> int | None:
    """The round that was better than the best one before it; None while there is no score."""
    best: _Scored | None = None
    for one in _scored(events, task).values():
        if best is None or _is_better(one, best):
            best = one
    return None if best is None else best.round


def has_seen_enough(run: RunConfig, events: Sequence[Event]) -> Mapping[str, Any] | None:
    """What is told when a run stops early: its last scores were no better than one before, as often as it bears."""
    patience, scored = run.federation.patience, _scored(events, run.task)
    best = best_round(events, run.task)
    if patience is None or best is None or sum(round_ > best for round_ in scored) < patience:
        return None
    return {"round": max(scored), "best-round": best, "patience": patience, run.task.headline: scored[best].mean}


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """What a summary tells of it, in sentences; nothing of a run that went to its end and keeps its last model."""
    settings, told = summary.get("settings") or {}, []
    rounds = settings.get("federation", {}).get("rounds")
    if (stopped := summary.get("stopped-early")) is not None:
        headline = task_of(settings).headline
        told.append(
            f"stopped early after round {stopped['round']} of {rounds}: no better {headline} in "
            f"{counted(stopped['patience'], 'evaluation')} since round {stopped['best-round']} "
            f"({stopped[headline]:.3f})"
        )
    kept, federation = summary.get("model-round"), settings.get("federation", {})
    if kept is None:
        return told
    scored = summary["scores"].get("validation", {})
    # Those of the round that is kept: a best one has a score.
    is_scored = task_of(settings).headline in scored.get("mean-of-sites", {})
    if federation.get("keep") == "best":
        told.append(
            f"the model is that of round {kept}, the best by its validation scores"
            if is_scored
            else f"no site let a validation score go, by which keep = 'best' chooses: the model is that of round "
            f"{kept}, the last"
        )
    if federation.get("patience") is not None and stopped is None and not is_scored:
        told.append(
            f"no site let a validation score of round {scored.get('round', kept)} go, and patience counts by them: "
            "without any a run goes to its end"
        )
    return told


def costs_of(events: Sequence[Event], task: Task) -> dict[int, dict[str, float]]:
    """Round -> site -> 1 - its headline score of the validation patients, as far as the sites let it go."""
    return {
        round_: {site: 1 - score for site, score in one.sites.items()} for round_, one in _scored(events, task).items()
    }


def _is_better(one: _Scored, other: _Scored) -> bool:
    """Over the sites that scored both; by their means, where none did."""
    both = one.sites.keys() & other.sites.keys()
    if not both:
        return one.mean > other.mean
    return math.fsum(one.sites[site] for site in both) > math.fsum(other.sites[site] for site in both)


def _scored(events: Sequence[Event], task: Task) -> dict[int, _Scored]:
    """The rounds whose validation patients were scored, in order."""
    found: dict[int, _Scored] = {}
    sites: dict[str, float] = {}
    for event in events:
        if event["event"] != "evaluate" or event["phase"] != "validation":
            continue
        if event["site"] != OVERALL:  # the sites come before their mean
            sites |= {event["site"]: event[task.headline]} if task.headline in event else {}
            continue
        if task.headline in event:
            found[event["round"]] = _Scored(event["round"], event[task.headline], sites)
        sites = {}
    return dict(sorted(found.items()))


__all__ = ["best_round", "costs_of", "has_seen_enough", "in_words"]
