"""What the adaptive optimisers at the coordinator have in common (Reddi et al., ICLR 2021, algorithm 2)."""

from typing import Annotated, ClassVar

from pydantic import Field

from common.strategies.strategy import Rate, Strategy

FIRST, SECOND = "first-moment", "second-moment"
Decay = Annotated[float, Field(ge=0, lt=1)]


class Adaptive(Strategy):
    """A step of `learning-rate` first-moment / (sqrt(second-moment) + tau), elementwise; without bias correction."""

    # How far a weight whose moves agree goes in a round.
    learning_rate: Rate = 0.01
    # Share of the first moment that stays.
    beta_1: Decay = 0.9
    # Moves much smaller than it make smaller steps; the second moment starts with its square.
    tau: Annotated[float, Field(gt=0, le=1)] = 1e-3
    KEEPS: ClassVar[tuple[str, ...]] = (FIRST, SECOND)


__all__ = ["FIRST", "SECOND", "Adaptive", "Decay"]
