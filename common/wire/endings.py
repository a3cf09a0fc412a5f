"""How a run has ended, as the coordinator tells its hospitals beside the proposal (wardround.proto).

Over mutual TLS: the word of the coordinator, which nobody on the way can change, and no more than its word. A
coordinator of before tells nothing, an agent of before reads nothing.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

from common.errors import ErrorCode
from common.wire import wardround_pb2

How: TypeAlias = Literal["completed", "stopped", "failed"]


@dataclass(frozen=True)
class Ending:
    """How a run has ended."""

    how: How
    code: str = ""  # why it failed, an ErrorCode
    rounds: int | None = None  # done; None: not known

    @classmethod
    def checked(cls, how: object, code: object, rounds: object) -> "Ending | None":
        """Of what was read; None of words that are not known here; a code or number that cannot be is left out."""
        if how not in get_args(How):
            return None
        is_count = isinstance(rounds, int) and not isinstance(rounds, bool) and rounds >= 0
        known = code if code in list(ErrorCode) else ""
        return cls(cast(How, how), str(known), cast(int, rounds) if is_count else None)


def ending_to_proto(ending: Ending) -> wardround_pb2.Ending:
    """For the proposal of a run that has ended."""
    return wardround_pb2.Ending(how=ending.how, code=ending.code, rounds=ending.rounds)


def ending_of(proposal: wardround_pb2.Proposal) -> Ending | None:
    """How a run has ended; None where it has not, or that is not told."""
    if proposal.open or not proposal.HasField("ending"):
        return None
    told = proposal.ending
    return Ending.checked(told.how, told.code, told.rounds if told.HasField("rounds") else None)


__all__ = ["Ending", "ending_of", "ending_to_proto"]
