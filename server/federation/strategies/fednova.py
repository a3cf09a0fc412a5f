"""FedNova at the coordinator: the mean of moves over their works, taken as far as the mean of the works."""

from collections.abc import Mapping

from torch import Tensor

from common.strategies.fednova import FedNova
from server.federation.strategies.aggregation import Mean, State


class MeanOfMovesPerWork(Mean[FedNova]):
    """Adds moves up in float64, each divided by its work; see `common.strategies.fednova`."""

    def __init__(self, settings: FedNova) -> None:
        super().__init__(settings)
        self._moves: dict[str, Tensor] = {}
        self._weight = self._work = 0.0

    def add(self, parts: Mapping[str, State], weight: float, work: float = 1.0) -> None:
        """Into the sums; no update is kept."""
        self._weight += weight
        self._work += weight * work
        for name, one in parts[self.model].items():
            move = (one.double() - self.held[self.model][name].double()).mul_(weight / work)
            self._moves[name] = self._moves[name].add_(move) if name in self._moves else move

    def finish(self, round_: int) -> None:
        """See the module."""
        moves, share = self._moves, self._work / self._weight**2
        self._moves, self._weight, self._work = {}, 0.0, 0.0
        made = {name: (one.double() + share * moves[name]).to(one.dtype) for name, one in self.held[self.model].items()}
        self.held = {**self.held, self.model: made}


__all__ = ["MeanOfMovesPerWork"]
