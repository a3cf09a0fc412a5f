"""Where a run stands, at any time: its round, its score, how long it will take; and its summary before it has ended.

All of it is read from the registry and the run's `metrics.jsonl`, which a run that goes on writes line by line.
"""

import itertools
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from common.privacy.scores import SCORE_NOISE
from server.federation.events import (
    JOURNAL_NAME,
    OVERALL,
    Event,
    Status,
    read_events,
    read_summary,
    summarise,
    summary_as_dict,
)
from server.registry.proposals import Proposal
from server.views.sentences import NOISE_IN_SHORT, waiting_in, who_waits

# The time left follows from so many rounds before.
_ROUNDS_LOOKED_AT = 5
# A round that lasts so many times as long as the longest of those, and some seconds, is late: by how much nobody knows.
_LATE, _SLACK_S = 2.0, 10.0


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    round: int  # done
    rounds: int
    headline: str  # the score that stands for all
    score: float | None  # of the latest evaluation, mean of the sites
    score_noise: float | None  # its standard deviation, where the sites have added noise
    score_round: int | None  # after which it was made
    # About; None while no round is done, or is late, or waits, or a site of the last is away, and once it does not run.
    seconds_left: float | None
    waiting: Event | None = None  # for whom (server/views/sentences.py)

    def __str__(self) -> str:
        parts = [f"round {self.round} of {self.rounds} done" if self.round else f"no round of {self.rounds} done yet"]
        parts += [self.scored] if self.scored else []
        parts += [] if self.seconds_left is None else [f"about {duration(self.seconds_left)} left"]
        parts += [self.waits] if self.waits else []
        return ", ".join(parts)

    @property
    def scored(self) -> str | None:
        """The score with its name; None while there is none."""
        if self.score is None:
            return None
        noise = f" ± {self.score_noise:.3f}" if self.score_noise else ""
        # A run that goes on from a checkpoint has its score from before until it has scored anew.
        of_before = f" after round {self.score_round}" if self.score_round != self.round else ""
        return f"{self.headline} {self.score:.3f}{noise}{of_before}"

    @property
    def waiting_for(self) -> list[str]:
        """The sites that are gone and are waited for."""
        return [] if self.waiting is None else sorted(self.waiting["sites"])

    @property
    def waits(self) -> str | None:
        """For whom, since when and until when; None where nobody is waited for."""
        return None if self.waiting is None else who_waits(self.waiting, self.round)

    @property
    def noise(self) -> str | None:
        """What says more of the score's noise; None where it has none."""
        return NOISE_IN_SHORT if self.score_noise else None


def progress_of(folder: Path, proposal: Proposal, here: Collection[str] | None) -> Progress:
    """How far a run is.

    Args:
        folder: of its results.
        proposal: as the registry has it now.
        here: the sites that are connected; None: the coordinator is not running, so that no run goes on.
    """
    events = read_events(folder / JOURNAL_NAME)
    rounds = proposal.run.federation.rounds
    done = max((event["round"] for event in events if event["event"] == "round"), default=0)
    scores = [event for event in events if event["event"] == "evaluate" and event["site"] == OVERALL]
    headline = proposal.run.task.headline
    scored = next((event for event in reversed(scores) if headline in event), {})
    waiting = waiting_in(events) if proposal.state == "running" and here is not None else None
    # Of those in the last round: before a wait for one who has gone is written down, it may still be at work elsewhere.
    entered = next((event["sites"] for event in reversed(events) if event["event"] == "round"), ())
    goes_on = proposal.state == "running" and here is not None and waiting is None and set(entered) <= set(here)
    left = _seconds_left(events, rounds - done, time.time()) if goes_on else None
    score, noise, of_round = (scored.get(name) for name in (headline, SCORE_NOISE, "round"))
    return Progress(done, rounds, headline, score, noise, of_round, left, waiting)


def summary_of(folder: Path, proposal: Proposal) -> dict[str, Any]:
    """The summary of a run that has ended, or what its events amount to so far."""
    summary = read_summary(folder)
    if summary is not None:  # a start removes the one before
        return summary
    events, status = read_events(folder / JOURNAL_NAME), cast(Status, proposal.state)
    return summary_as_dict(summarise(proposal.document, events, status=status, reason=proposal.reason or None))


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _seconds_left(events: Sequence[Event], rounds_left: int, now: float) -> float | None:
    """By what the last rounds took, with the evaluations after them, and how long the present one has lasted.

    None where that says nothing: no round is done, or the present one takes far longer than any of those, or as long
    as them and is the last.
    """
    done = [event for event in events if event["event"] == "round"]
    # From one round's end to the next: but the time between two starts of the run is none of its rounds.
    ends = [event["time"] for event in events if event["event"] in ("run-started", "round")]
    kinds = [event["event"] for event in events if event["event"] in ("run-started", "round")]
    took = [
        later - earlier
        for (earlier, later), kind in zip(itertools.pairwise(ends), kinds[1:], strict=True)
        if kind == "round"
    ]
    if not done or not took:
        return None
    lately = took[-_ROUNDS_LOOKED_AT:]
    # The median: one round that waited long for a site says nothing of those to come.
    each, lasted = statistics.median(lately), max(0.0, now - ends[-1])
    if lasted > _LATE * max(lately) + _SLACK_S:
        return None
    return float(rounds_left * each - min(lasted, each)) or None


__all__ = ["Progress", "duration", "progress_of", "summary_of"]
