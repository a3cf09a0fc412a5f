"""FedNova at the coordinator: the mean of moves over their works, taken as far as the mean of the works.

With weights w and works t it is the model + s sum_i (w_i / t_i) (update_i - model), s = sum_i w_i t_i / (sum_i w_i)^2:
a mean of the updates and of the model, whose weights add up to 1.
"""

from collections.abc import Mapping

from common.strategies.fednova import FedNova
from server.federation.strategies.aggregation import Server, State
from server.federation.strategies.blocks import weighted_mean


class MeanOfMovesPerWork(Server[FedNova]):
    """See the module, and `common.strategies.fednova`."""

    def __init__(self, settings: FedNova) -> None:
        super().__init__(settings)
        self._added: list[tuple[State, float, float]] = []  # update, weight, work

    def add(self, parts: Mapping[str, State], weight: float, work: float = 1.0) -> None:
        """Until the round is finished."""
        self._added.append((parts[self.model], weight, work))

    def finish(self, round_: int) -> None:
        """See the module."""
        added, self._added = self._added, []
        share = sum(weight * work for _, weight, work in added) / sum(weight for _, weight, _ in added) ** 2
        counts = [share * weight / work for _, weight, work in added]
        states = [*(update for update, _, _ in added), self.held[self.model]]
        self.held = {**self.held, self.model: weighted_mean(states, [*counts, 1 - sum(counts)])}


__all__ = ["MeanOfMovesPerWork"]
