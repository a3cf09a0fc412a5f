"""What this hospital gains from a run: the global model beside the one that it trained alone (client/home/gains.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

from client.home.gains import Compared

COLUMNS = ("round", "phase", "score", "global-before", "global", "own", "gain")


@dataclass(frozen=True)
class Gain:
    """One evaluation, with the score of the global model that was evaluated before."""

    found: Compared
    before: float | None

    @property
    def gain(self) -> float | None:
        """What the global model scores more than our own."""
        one = self.found
        return None if one.shared is None or one.local is None else one.shared - one.local

    @property
    def row(self) -> tuple[object, ...]:
        """In the order of COLUMNS."""
        one = self.found
        return (one.round, one.phase, one.score, self.before, one.shared, one.local, self.gain)


def gains_of(compared: Sequence[Compared]) -> list[Gain]:
    """In the order in which they were evaluated; before a test there is none, as it is of other patients."""
    found: list[Gain] = []
    before: float | None = None
    for one in compared:
        found.append(Gain(one, before if one.phase == "validation" else None))
        before = one.shared if one.phase == "validation" else before
    return found


def in_words(gains: Sequence[Gain]) -> str:
    """What the last comparison says, for the people at the hospital."""
    told = [one for one in gains if one.gain is not None]
    if not gains:
        return (
            "Nothing is compared here: the run does not ask for it ([federation] cross-site in run.toml), or no model "
            "of it was scored yet."
        )
    if not told:
        return "No model of ours was scored yet, or it could not be trained; the reason is in the agent's log."
    last, change = told[-1].found, told[-1].gain or 0.0
    said = "gains" if change > 0 else "loses" if change < 0 else "neither gains nor loses"
    by = f" {abs(change):.3f}" if change else ""
    return (
        f"After round {last.round} this hospital {said}{by} {last.score} on its {last.phase} patients against the "
        "model that it trained alone, by as many steps. Of few patients such a difference is mostly chance."
    )


__all__ = ["COLUMNS", "Gain", "gains_of", "in_words"]
