"""What the client half of a strategy is: it is made anew for each round.

What it keeps at the site for the next round (`client.train.memory`) is made of what was sent and received, or by
private steps, and of nothing else: in a private run that is covered as both are. A model that is trained apart is the
exception, and shapes nothing that leaves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from common.config import RunConfig
from common.learning.network import weights_of
from common.strategies import Strategy

State: TypeAlias = Mapping[str, Tensor]  # the model's tensors, by name
StrategyType = TypeVar("StrategyType", bound=Strategy)


@dataclass(frozen=True)
class Kept:
    """What a round at this site left for the next ones."""

    round: int
    states: Mapping[str, State]


class Local(Generic[StrategyType]):
    """A round at a site, as its strategy wants it; this one changes nothing and adds nothing."""

    def __init__(self, settings: StrategyType, model: nn.Module, down: Mapping[str, State]) -> None:
        """Take what the round starts from.

        Args:
            settings: the run's [strategy].
            model: with the weights that were sent, where it will be trained.
            down: the other parts of the request.
        """
        self.settings, self.model, self.down = settings, model, down

    def remember(self, run: RunConfig, round_: int, kept: Kept | None) -> None:
        """Go on from what the last round that this site took part in has left; the shared half says REMEMBERS.

        Args:
            run: that is trained.
            round_: that begins, from 1.
            kept: None: the site takes part for the first time, or no longer knows.
        """

    def steer(self) -> None:
        """Change the gradients of a step in place, before the optimiser makes it; the shared half says STEERS.

        In a private run they have been clipped, added up and noised before, so that it sees no patient either.
        """

    def weights(self) -> State:
        """The weights that the update carries, once the model is trained."""
        return weights_of(self.model)

    def apart(self) -> "Local[Any] | None":
        """A second model that is trained by plain steps, once the update is made; None: there is none.

        It never leaves, and what leaves depends on nothing that becomes of it.
        """
        return None

    def parts(self) -> Mapping[str, State]:
        """What the update carries beside the weights, once the model is trained."""
        return {}

    def kept(self) -> Mapping[str, State]:
        """What the next round goes on from, once the model is trained."""
        return {}


__all__ = ["Kept", "Local", "State"]
