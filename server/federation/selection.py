"""Which round's model a run keeps, and when it has seen enough: [federation] keep and patience.

Both follow from the scores of the validation patients that the sites let go, the mean of the sites' headline scores
after each round that is scored, and from nothing else: so they see what leaves by each hospital's policy, with its
noise, and cost no more than is charged for it. Both are functions of the journal's events: a run that is resumed
scores its last round again, gets the same answers, and decides the same. Imports no torch: views read it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common.config import RunConfig
from common.tasks import Task, task_of
from common.text import counted
from server.federation.events import OVERALL, Event


def best_round(events: Sequence[Event], task: Task) -> int | None:
    """The round with the best score, the first of those that are alike; None while there is no score."""
    scored = _scored(events, task)
    return max(scored, key=lambda round_: (scored[round_], -round_), default=None)


def has_seen_enough(run: RunConfig, events: Sequence[Event]) -> Mapping[str, Any] | None:
    """What is told when a run stops early: its last scores were no better than one before, as often as it bears."""
    patience, scored = run.federation.patience, _scored(events, run.task)
    best = best_round(events, run.task)
    if patience is None or best is None or sum(round_ > best for round_ in scored) < patience:
        return None
    return {"round": max(scored), "best-round": best, "patience": patience, run.task.headline: scored[best]}


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
    kept = summary.get("model-round")
    if kept is not None and settings.get("federation", {}).get("keep") == "best":
        told.append(f"the model is that of round {kept}, the best by its validation scores")
    return told


def _scored(events: Sequence[Event], task: Task) -> dict[int, float]:
    """Round -> mean of the sites' headline scores on validation patients."""
    return {
        event["round"]: event[task.headline]
        for event in events
        if event["event"] == "evaluate"
        and (event["phase"], event["site"]) == ("validation", OVERALL)
        and task.headline in event
    }


__all__ = ["best_round", "has_seen_enough", "in_words"]
