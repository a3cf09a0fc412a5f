"""Bulyan: Krum again and again, then what lies around the median, weight by weight (El Mhamdi et al., ICML 2018)."""

from typing import ClassVar, Literal

from common.strategies.strategy import Hostile, Needs, Strategy


class Bulyan(Strategy):
    """Of n updates n - 2 hostile are selected, and of these the n - 4 hostile values next to the median averaged."""

    kind: Literal["bulyan"] = "bulyan"
    # As many sites may send anything.
    hostile: Hostile = 1
    NEEDS: ClassVar[Needs] = "updates"

    @property
    def fewest(self) -> int:
        """What its proof asks for."""
        return 4 * self.hostile + 3


__all__ = ["Bulyan"]
