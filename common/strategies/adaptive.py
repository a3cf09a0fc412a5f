"""FedAdam, FedYogi and FedAdagrad: what the mean moved is a gradient for an optimiser at the coordinator.

Reddi et al., ICLR 2021, algorithm 2: without bias correction. They differ in how the second moment takes up the square
of what the mean moved.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Rate, Strategy

FIRST, SECOND = "first-moment", "second-moment"
_Decay = Annotated[float, Field(ge=0, lt=1)]


class Adaptive(Strategy):
    """A step of `learning-rate` first-moment / (sqrt(second-moment) + tau), elementwise."""

    # How far a weight whose moves agree goes in a round.
    learning_rate: Rate = 0.01
    # Share of the first moment that stays.
    beta_1: _Decay = 0.9
    # Moves much smaller than it make smaller steps; the second moment starts with its square.
    tau: Annotated[float, Field(gt=0, le=1)] = 1e-3
    KEEPS: ClassVar[tuple[str, ...]] = (FIRST, SECOND)


class FedAdam(Adaptive):
    """What the mean moved is a gradient for Adam: the second moment is a moving average of squared moves."""

    kind: Literal["fedadam"] = "fedadam"
    # Share of the second moment that stays.
    beta_2: _Decay = 0.99


class FedYogi(Adaptive):
    """As FedAdam, with a second moment that changes by no more than a share of a square."""

    kind: Literal["fedyogi"] = "fedyogi"
    # 1 - the share of a square by which the second moment changes.
    beta_2: _Decay = 0.99


class FedAdagrad(Adaptive):
    """As FedAdam, with all squares added up, so that steps only get shorter; without a first moment, as published."""

    kind: Literal["fedadagrad"] = "fedadagrad"
    beta_1: _Decay = 0.0


__all__ = ["FIRST", "SECOND", "Adaptive", "FedAdagrad", "FedAdam", "FedYogi"]
