"""FedProx at a site: a gradient towards the weights that were sent."""

from collections.abc import Mapping

from torch import nn

from client.train.strategies.local import Local, State
from common.strategies.fedprox import FedProx


class LocalFedProx(Local[FedProx]):
    """Remembers the weights that were sent."""

    def __init__(self, settings: FedProx, model: nn.Module, down: Mapping[str, State]) -> None:
        super().__init__(settings, model, down)
        self._sent = {name: weights.detach().clone() for name, weights in model.named_parameters()}

    def steer(self) -> None:
        """Adds mu (w - sent), the gradient of mu / 2 ||w - sent||^2."""
        for name, weights in self.model.named_parameters():
            if weights.grad is not None:
                weights.grad.add_(weights.detach() - self._sent[name], alpha=self.settings.mu)


__all__ = ["LocalFedProx"]
