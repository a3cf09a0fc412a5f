"""What every view of a run says in the same words: who was left out of a round and what was odd, of its event; scores
that have noise, and what their ± says and what not.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence

from common.errors import ErrorCode
from common.privacy.scores import CLASS_NOISE, SCORE_NOISE
from common.tasks import Task
from common.text import counted
from server.federation.events import (
    BY_COORDINATOR,
    FOR,
    NOT_ASKED,
    NOT_THERE,
    OVERALL,
    QUORUM,
    SCORES,
    STEPS_MADE,
    SUSPICIOUS,
    UPDATES,
    WAITING,
    Event,
    in_words,
    refusal,
)

NOISE = (
    "The hospitals have added noise to these scores, to protect the patients they are of; ± (score-noise) is its "
    "standard deviation, and a score may lie below zero or above one. They divide by the number of held-out patients "
    "that follows from what they declare, as the true one stays secret: where it is another, a score lies farther from "
    "one half or nearer to it by as large a share, beyond its ±. A hospital's `evaluate` tells the exact ones."
)
# What waits, to be read before the round's number.
_WAITS = {QUORUM: "the start of ", SCORES: "scoring after "}
# In one line, for a list of runs.
NOISE_IN_SHORT = (
    "± is of noise that hospitals added: a score may lie below 0 or above 1. More: `wardround-server report RUN`"
)


def noise_of(scores: Iterable[Mapping[str, object]]) -> str | None:
    """What the noise of some scores means, where any of them has it: to be said wherever they are shown."""
    return NOISE if any(SCORE_NOISE in one for one in scores) else None


def score_with_noise(scores: Mapping[str, float], name: str, task: Task) -> object:
    """A score as it is shown: with the standard deviation of its noise, where the site has added some."""
    deviation = scores.get(SCORE_NOISE if name == task.headline else CLASS_NOISE)
    noised = deviation and (name == task.headline or name.startswith(task.of_class("")))
    return f"{scores[name]:.3f} ± {deviation:.3f}" if noised and name in scores else scores.get(name)


def refused_of(event: Event) -> list[str]:
    """Who refused in a round, and whose answer was refused; a journal from before this was told knows no difference."""
    here = event.get(BY_COORDINATOR, [])
    return [refusal(site, code, here=site in here) for site, code in event["refused"].items()]


def lost_of(event: Event) -> list[str]:
    """Of a scoring, by its overall event: whose scores did not come, and why; an earlier journal may say of nobody."""
    told = {"refused": {}, "missing": [], **event}
    return [*refused_of(told), *missing_of(told)]


def odd_of(event: Event) -> list[str]:
    """Updates of a round that entered and look wrong, each with what is odd about it."""
    return [f"{site}'s update is odd ({', '.join(what)})" for site, what in event.get(SUSPICIOUS, {}).items()]


def made_of(event: Event) -> list[str]:
    """How many steps each site made in a round, where sites stop by time."""
    return [f"{site} {steps}" for site, steps in event.get(STEPS_MADE, {}).items()]


def first_asked(rounds: Iterable[Event]) -> dict[str, int]:
    """In which round each site was asked first: before that it missed nothing. Of a summary's rounds, or a journal's.

    A site that had not approved the run refused it, where an earlier version asked it.
    """
    found: dict[str, int] = {}
    for event in rounds:
        refused = [site for site, code in event["refused"].items() if code != ErrorCode.NOT_APPROVED]
        for site in (*event["sites"], *refused, *event["missing"]):
            found.setdefault(site, event["round"])
    return found


def joined_of(rounds: Sequence[Event]) -> list[str]:
    """Who joined the run after its first round, as sentences."""
    late = {site: number for site, number in first_asked(rounds).items() if number > rounds[0]["round"]}
    return [f"{site} joined in round {number}, and was not asked before" for site, number in sorted(late.items())]


def not_asked_of(event: Event) -> list[str]:
    """Who was not asked in a round, and so missed nothing: who was gone, each with how; and how many were not drawn."""
    drawn = [f"{counted(len(left_out), 'site')} not asked"] if (left_out := event.get(NOT_ASKED)) else []
    said = {"here": "came later"}
    gone = [f"{site} {said.get(why) or in_words(why)}" for site, why in event.get(NOT_THERE, {}).items()]
    return [f"not asked: {', '.join(gone)}", *drawn] if gone else drawn


def waiting_in(events: Sequence[Event]) -> Event | None:
    """The wait that goes on; None where nobody is waited for."""
    for event in reversed(events):
        if event["event"] == WAITING:
            return event if event["sites"] else None
        if event["event"] != "train" and event.get("site", OVERALL) == OVERALL:
            return None
    return None


def who_waits(event: Event, done: int = 0) -> str:
    """Of a wait: what waits (a round, its start or the scoring after it), for whom, since when they are gone, and until
    when.

    Args:
        event: the wait.
        done: rounds that are done, by which a journal is understood that does not say what waits.
    """
    number = event["round"]
    what = event.get(FOR) or (SCORES if 0 < number <= done else UPDATES)
    waits = f"{_WAITS.get(what, '')}round {number} waits for"
    if not event["sites"]:
        return f"{waits} nobody who is gone"
    gone = [f"{site} ({in_words(why)}{_since(event['since'].get(site))})" for site, why in event["sites"].items()]
    return f"{waits} {', '.join(gone)}, until {_moment(event['until'])} at the latest"


def last_seen(at: datetime.datetime | None) -> str | None:
    """Of a site that is away: when it last called; None where that is not known."""
    return None if at is None else f"last seen {_moment(at.timestamp())}"


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f" since {_moment(seconds)}"


def _moment(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def missing_of(event: Event) -> list[str]:
    """The sites that did not answer, each with the reason."""
    why = event.get("why-missing", {})
    return [f"{site} {in_words(why.get(site, ''))}" for site in event["missing"]]


__all__ = [
    "NOISE",
    "NOISE_IN_SHORT",
    "first_asked",
    "joined_of",
    "last_seen",
    "lost_of",
    "made_of",
    "missing_of",
    "noise_of",
    "not_asked_of",
    "odd_of",
    "refused_of",
    "score_with_noise",
    "waiting_in",
    "who_waits",
]
