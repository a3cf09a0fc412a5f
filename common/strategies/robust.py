"""What bears some sites that send anything: median, trimmed mean, multi-Krum and Bulyan.

Yin et al., ICML 2018 (median, trimmed mean); Blanchard et al., NeurIPS 2017 (multi-Krum); El Mhamdi et al., ICML 2018
(Bulyan). All of them see each update by itself, and count sites alike.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Hostile, Needs, Strategy


class FedMedian(Strategy):
    """The median of the sites' models, weight by weight: fewer than half of them cannot move one beyond the others."""

    kind: Literal["fedmedian"] = "fedmedian"
    NEEDS: ClassVar[Needs] = "updates"
    FEWEST: ClassVar[int] = 3


class TrimmedMean(Strategy):
    """The mean of what is neither among the smallest nor among the largest, weight by weight."""

    kind: Literal["trimmed-mean"] = "trimmed-mean"
    # Values that are left out at either end; as many sites may send anything. 0: the plain mean.
    trim: Annotated[int, Field(ge=0, le=1000)] = 1
    NEEDS: ClassVar[Needs] = "updates"

    @property
    def fewest(self) -> int:
        """One is left."""
        return 2 * self.trim + 1


class MultiKrum(Strategy):
    """The mean of the updates that lie closest to their n - hostile - 2 nearest others, of n, by squared distance."""

    kind: Literal["multi-krum"] = "multi-krum"
    # As many sites may send anything.
    hostile: Hostile = 1
    # How many of the best enter, alike; 1 is Krum. Without it: n - hostile.
    selected: Annotated[int, Field(ge=1, le=1000)] | None = None
    NEEDS: ClassVar[Needs] = "updates"

    @property
    def fewest(self) -> int:
        """What its proof asks for; and as many that the hostile ones need not be among those selected."""
        return max(2 * self.hostile + 3, (self.selected or 0) + self.hostile)


class Bulyan(Strategy):
    """Krum chooses n - 2 hostile of n updates; of these the n - 4 hostile values next to the median are averaged."""

    kind: Literal["bulyan"] = "bulyan"
    # As many sites may send anything.
    hostile: Hostile = 1
    NEEDS: ClassVar[Needs] = "updates"

    @property
    def fewest(self) -> int:
        """What its proof asks for."""
        return 4 * self.hostile + 3


__all__ = ["Bulyan", "FedMedian", "MultiKrum", "TrimmedMean"]
