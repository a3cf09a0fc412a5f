"""The mean of what is neither among the smallest nor among the largest, weight by weight (Yin et al., ICML 2018)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Needs, Strategy


class TrimmedMean(Strategy):
    """Sites count alike; `trim` values are left out at either end."""

    kind: Literal["trimmed-mean"] = "trimmed-mean"
    # As many sites may send anything. 0: the plain mean.
    trim: Annotated[int, Field(ge=0, le=1000)] = 1
    NEEDS: ClassVar[Needs] = "updates"

    @property
    def fewest(self) -> int:
        """One is left."""
        return 2 * self.trim + 1


__all__ = ["TrimmedMean"]
