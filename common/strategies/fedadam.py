"""FedAdam: the mean of the moves is a gradient for Adam at the coordinator (Reddi et al., ICLR 2021)."""

from typing import Literal

from common.strategies.adaptive import Adaptive, Decay


class FedAdam(Adaptive):
    """The second moment is a moving average of squared moves."""

    kind: Literal["fedadam"] = "fedadam"
    # Share of the second moment that stays.
    beta_2: Decay = 0.99


__all__ = ["FedAdam"]
