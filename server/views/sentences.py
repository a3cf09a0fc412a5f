"""Who was left out of a round, and what was odd, as sentences of its event."""

from common.text import counted
from server.federation.events import BY_COORDINATOR, NOT_ASKED, STEPS_MADE, SUSPICIOUS, Event, in_words, refusal


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


__all__ = ["made_of", "missing_of", "not_asked_of", "odd_of", "refused_of"]
