"""FedAvgM: the mean moves the model with momentum (Hsu et al., 2019, arXiv 1909.06335)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Rate, Strategy

MOMENTUM = "momentum"


class FedAvgM(Strategy):
    """What the mean moved, and a share of what moved the model in the rounds before."""

    kind: Literal["fedavgm"] = "fedavgm"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # 1 and momentum 0: FedAvg.
    learning_rate: Rate = 1.0
    KEEPS: ClassVar[tuple[str, ...]] = (MOMENTUM,)


__all__ = ["MOMENTUM", "FedAvgM"]
