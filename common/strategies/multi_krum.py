"""Multi-Krum: the mean of the updates that lie closest to their neighbours (Blanchard et al., NeurIPS 2017)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Hostile, Needs, Strategy


class MultiKrum(Strategy):
    """An update's score is the sum of its squared distances to the n - hostile - 2 nearest others, of n."""

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


__all__ = ["MultiKrum"]
