"""FedAdagrad: as FedAdam, with all squares added up, so that steps only get shorter (Reddi et al., ICLR 2021)."""

from typing import Literal

from common.strategies.adaptive import Adaptive, Decay


class FedAdagrad(Adaptive):
    """Without a first moment, as published, unless it is asked for."""

    kind: Literal["fedadagrad"] = "fedadagrad"
    beta_1: Decay = 0.0


__all__ = ["FedAdagrad"]
