"""FedProx: each step is drawn back to the model that was sent (Li et al., MLSys 2020)."""

from typing import ClassVar, Literal

from common.document.table import NonNegative
from common.strategies.strategy import Strategy


class FedProx(Strategy):
    """FedAvg whose sites minimise their loss + mu / 2 ||w - sent||^2, so that unlike sites drift less apart."""

    kind: Literal["fedprox"] = "fedprox"
    # 0: FedAvg. Good values lie between 0.001 and 1.
    mu: NonNegative = 0.01
    STEERS: ClassVar[bool] = True


__all__ = ["FedProx"]
