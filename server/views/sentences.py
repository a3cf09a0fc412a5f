"""What every view of a run says in the same words: who was left out of a round and what was odd, of its event; scores
that have noise, and what their ± says and what not.
"""

from collections.abc import Iterable, Mapping

from common.privacy.scores import CLASS_NOISE, SCORE_NOISE
from common.tasks import Task
from common.text import counted
from server.federation.events import BY_COORDINATOR, NOT_ASKED, STEPS_MADE, SUSPICIOUS, Event, in_words, refusal

NOISE = (
    "The hospitals have added noise to these scores, to protect the patients they are of; ± (score-noise) is its "
    "standard deviation, and a score may lie below zero or above one. They divide by the number of held-out patients "
    "that follows from what they declare, as the true one stays secret: where it is another, a score lies farther from "
    "one half or nearer to it by as large a share, beyond its ±. A hospital's `evaluate` tells the exact ones."
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


def odd_of(event: Event) -> list[str]:
    """Updates of a round that entered and look wrong, each with what is odd about it."""
    return [f"{site}'s update is odd ({', '.join(what)})" for site, what in event.get(SUSPICIOUS, {}).items()]


def made_of(event: Event) -> list[str]:
    """How many steps each site made in a round, where sites stop by time."""
    return [f"{site} {steps}" for site, steps in event.get(STEPS_MADE, {}).items()]


def not_asked_of(event: Event) -> list[str]:
    """How many sites a round has not asked, as one sentence; nothing where it asked all."""
    return [f"{counted(len(left_out), 'site')} not asked"] if (left_out := event.get(NOT_ASKED)) else []


def missing_of(event: Event) -> list[str]:
    """The sites that did not answer, each with the reason."""
    why = event.get("why-missing", {})
    return [f"{site} {in_words(why.get(site, ''))}" for site in event["missing"]]


__all__ = ["NOISE", "made_of", "missing_of", "noise_of", "not_asked_of", "odd_of", "refused_of", "score_with_noise"]
