"""Norm clipping: no update pulls farther than the median one, then FedAvg (Sun et al., 2019, arXiv 1911.07963)."""

from typing import ClassVar, Literal

from common.document.table import Positive
from common.strategies.strategy import Needs, Strategy


class NormClipping(Strategy):
    """A move that is longer (L2) than the norm is shortened to it; directions stay."""

    kind: Literal["norm-clipping"] = "norm-clipping"
    # Without it: the median length of the round's moves.
    norm: Positive | None = None
    NEEDS: ClassVar[Needs] = "updates"


__all__ = ["NormClipping"]
