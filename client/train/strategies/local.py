"""What the client half of a strategy is: it is made anew for each round, and keeps nothing from one to the next."""

from collections.abc import Mapping
from typing import Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from common.strategies import Strategy

State: TypeAlias = Mapping[str, Tensor]  # the model's tensors, by name
StrategyType = TypeVar("StrategyType", bound=Strategy)


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

    def steer(self) -> None:
        """Change the gradients of a step in place, before the optimiser makes it; the shared half says STEERS.

        In a private run they have been clipped, added up and noised before, so that it sees no patient either.
        """

    def parts(self) -> Mapping[str, State]:
        """What the update carries beside the weights, once the model is trained."""
        return {}


__all__ = ["Local", "State"]
