"""FedAvg: the weighted mean of the sites' models (McMahan et al., AISTATS 2017)."""

from typing import Literal

from common.strategies.strategy import Strategy


class FedAvg(Strategy):
    """Nothing but weights travels."""

    kind: Literal["fedavg"] = "fedavg"


__all__ = ["FedAvg"]
