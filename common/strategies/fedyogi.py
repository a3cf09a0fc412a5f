"""FedYogi: as FedAdam, with a second moment that changes by no more than a square (Reddi et al., ICLR 2021)."""

from typing import Literal

from common.strategies.adaptive import Adaptive, Decay


class FedYogi(Adaptive):
    """Steps grow slowly again after a round with large moves."""

    kind: Literal["fedyogi"] = "fedyogi"
    # 1 - the share of a square by which the second moment changes.
    beta_2: Decay = 0.99


__all__ = ["FedYogi"]
