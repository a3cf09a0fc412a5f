"""FedAvgM at the coordinator: SGD with momentum, whose gradient is what the mean moved, as torch's SGD has it."""

from common.strategies.fedavgm import MOMENTUM, FedAvgM
from server.federation.strategies.aggregation import Mean


class FedAvgMMean(Mean[FedAvgM]):
    """Holds the momentum beside the weights; before the first round it is zero."""

    def finish(self, round_: int) -> None:
        """Momentum, then a step along it."""
        mean, settings = self.means()[self.model], self.settings
        before, momentum = self.held[self.model], self.held[MOMENTUM]
        moved = {name: settings.momentum * momentum[name] + (mean[name] - one) for name, one in before.items()}
        after = {name: one + settings.learning_rate * moved[name] for name, one in before.items()}
        self.held = {self.model: after, MOMENTUM: moved}


__all__ = ["FedAvgMMean"]
