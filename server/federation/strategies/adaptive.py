"""FedAdam, FedYogi and FedAdagrad at the coordinator (Reddi et al., ICLR 2021, algorithm 2).

They differ in how the second moment takes up the square of what the mean moved.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from common.strategies.adaptive import FIRST, SECOND, Adaptive, FedAdagrad, FedAdam, FedYogi
from server.federation.strategies.aggregation import Mean, State

AdaptiveType = TypeVar("AdaptiveType", bound=Adaptive)


class AdaptiveMean(Mean[AdaptiveType]):
    """Holds both moments beside the weights: at first zero, and the square of tau."""

    def start(self, held: Mapping[str, State]) -> None:
        """As any, but for the second moment."""
        model, square = held[self.model], self.settings.tau**2
        super().start({SECOND: {name: torch.full_like(one, square) for name, one in model.items()}, **held})

    def finish(self, round_: int) -> None:
        """Both moments, then a step."""
        mean, settings = self.means()[self.model], self.settings
        before, held = self.held[self.model], self.held
        first, second, after = {}, {}, {}
        for name, weights in before.items():
            move = mean[name] - weights
            first[name] = settings.beta_1 * held[FIRST][name] + (1 - settings.beta_1) * move
            second[name] = self.second(held[SECOND][name], move.square())
            after[name] = weights + settings.learning_rate * first[name] / (second[name].sqrt() + settings.tau)
        self.held = {self.model: after, FIRST: first, SECOND: second}

    @abstractmethod
    def second(self, before: Tensor, square: Tensor) -> Tensor:
        """One tensor's second moment, from what it was and the square of the move."""


class FedAdamMean(AdaptiveMean[FedAdam]):
    """A moving average."""

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        """See the class."""
        return self.settings.beta_2 * before + (1 - self.settings.beta_2) * square


class FedYogiMean(AdaptiveMean[FedYogi]):
    """Changes by a share of the square, whichever way it lies."""

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        """See the class."""
        return before - (1 - self.settings.beta_2) * square * (before - square).sign()


class FedAdagradMean(AdaptiveMean[FedAdagrad]):
    """A sum."""

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        """See the class."""
        return before + square


__all__ = ["FedAdagradMean", "FedAdamMean", "FedYogiMean"]
