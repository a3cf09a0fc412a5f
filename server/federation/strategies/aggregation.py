"""What the server half of a strategy is: four verbs, and what it holds between rounds.

    start     with the first weights, or with what the last checkpoint holds
    request   which parts the next training request carries
    add       one update that may enter the round; sites come in the order of their names
    finish    the round: what is held from now on

What is held are named states, each with the tensors of the model; they are the checkpoint, so a run that is resumed
makes the same model. The weights are always among them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from common.strategies import Strategy
from server.federation.strategies.blocks import State, by_values, weighted_mean

Costs: TypeAlias = Mapping[int, Mapping[str, float]]
StrategyType = TypeVar("StrategyType", bound=Strategy)


class Aggregation(ABC):
    """A run's updates on their way into its model."""

    held: Mapping[str, State]

    @property
    @abstractmethod
    def model(self) -> str:
        """Which of the states each round goes on from."""

    @property
    def best(self) -> str:
        """Which of the states is scored, and kept as the run's model."""
        return self.model

    @property
    @abstractmethod
    def holds(self) -> tuple[str, ...]:
        """The names of all that is held after a round, and is in each checkpoint; the weights come first."""

    @abstractmethod
    def start(self, held: Mapping[str, State]) -> None:
        """Go on from here. What a new run does not hold yet starts with zeros, or as the strategy says."""

    @abstractmethod
    def request(self) -> Mapping[str, State]:
        """The parts of the next training request."""

    def weighed(self, weights: Mapping[str, float], costs: Costs) -> dict[str, float]:
        """What the sites of a round count; here what they would.

        Args:
            weights: site -> by its patients, or alike; in the order of the names, as shares are sums.
            costs: round -> site -> 1 - its validation score of the model of that round, as far as the sites tell.
        """
        return dict(weights)

    @abstractmethod
    def add(self, parts: Mapping[str, State], weight: float, work: float = 1.0) -> None:
        """Take one site's update.

        Args:
            parts: of the update.
            weight: what the site counts, > 0.
            work: that its steps are, as a share of a round of `local-steps`; in (0, 1].
        """

    @abstractmethod
    def finish(self, round_: int) -> None:
        """Make of what was added what is held after this round, from 1."""


class Server(Aggregation, Generic[StrategyType]):
    """What all server halves have in common: what is held, and what of it goes down."""

    def __init__(self, settings: StrategyType) -> None:
        self.settings = settings

    @property
    def model(self) -> str:
        """As the strategy names it."""
        return self.settings.MODEL

    @property
    def holds(self) -> tuple[str, ...]:
        """What goes down, and what is kept beside it."""
        return (*self.settings.down, *self.settings.KEEPS)

    def start(self, held: Mapping[str, State]) -> None:
        """Zeros for what only later rounds fill."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in held[self.model].items()}
        self.held = dict.fromkeys(self.holds, zeros) | dict(held)

    def request(self) -> Mapping[str, State]:
        """What is held of the parts that go down."""
        return {name: self.held[name] for name in self.settings.down}


class Mean(Server[StrategyType]):
    """Takes the weighted mean of each part; `finish` has it in `means`. By itself it is FedAvg."""

    def __init__(self, settings: StrategyType) -> None:
        super().__init__(settings)
        self._added: list[tuple[Mapping[str, State], float]] = []

    def add(self, parts: Mapping[str, State], weight: float, work: float = 1.0) -> None:
        """Until the round is finished; whoever adds it holds it until then, too."""
        self._added.append((parts, weight))

    def means(self) -> dict[str, State]:
        """The mean of each part over the sites of this round."""
        added, self._added = self._added, []
        weights = [weight for _, weight in added]
        return {name: weighted_mean([parts[name] for parts, _ in added], weights) for name in self.settings.up}

    def finish(self, round_: int) -> None:
        """The mean of the weights is the model."""
        self.held = {**self.held, self.model: self.means()[self.model]}


class Each(Server[StrategyType]):
    """Keeps each update until the round is finished, for a rule that has to see them side by side; they count alike."""

    def __init__(self, settings: StrategyType) -> None:
        super().__init__(settings)
        self.updates: list[State] = []

    def add(self, parts: Mapping[str, State], weight: float, work: float = 1.0) -> None:
        """Beside the others."""
        self.updates.append(parts[self.model])

    def finish(self, round_: int) -> None:
        """The model is what `combined` makes of those that are `chosen`."""
        chosen, self.updates = self.chosen(self.updates), []
        self.held = {**self.held, self.model: by_values(chosen, self.combined)}

    def chosen(self, updates: list[State]) -> list[State]:
        """Those that enter; here all."""
        return updates

    def combined(self, values: Tensor) -> Tensor:
        """Some values of the model; here the mean.

        Args:
            values: (sites, n) float64, of those that are chosen.

        Returns:
            (n).
        """
        return values.mean(0)


__all__ = ["Aggregation", "Costs", "Each", "Mean", "Server", "State"]
