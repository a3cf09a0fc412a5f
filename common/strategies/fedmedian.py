"""The median of the sites' models, weight by weight (Yin et al., ICML 2018)."""

from typing import ClassVar, Literal

from common.strategies.strategy import Needs, Strategy


class FedMedian(Strategy):
    """Sites count alike. What fewer than half of them send cannot move a weight beyond what the others sent."""

    kind: Literal["fedmedian"] = "fedmedian"
    NEEDS: ClassVar[Needs] = "updates"
    FEWEST: ClassVar[int] = 3


__all__ = ["FedMedian"]
