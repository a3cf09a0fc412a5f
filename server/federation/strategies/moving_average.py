"""An exponential moving average of the rounds' models, over any strategy: [federation] averaging.

The rounds go on from the last model; the average is what is scored and kept. It costs no privacy, and smooths what the
noise does to single rounds.
"""

from collections.abc import Mapping

from server.federation.strategies.aggregation import Aggregation, Costs, State
from server.home.checkpoints import AVERAGE


class MovingAverage(Aggregation):
    """Holds what the strategy inside holds, and the average beside it."""

    def __init__(self, inner: Aggregation, decay: float) -> None:
        self._inner, self._decay = inner, decay

    @property
    def model(self) -> str:
        """As the strategy inside."""
        return self._inner.model

    @property
    def best(self) -> str:
        """The average."""
        return AVERAGE

    @property
    def holds(self) -> tuple[str, ...]:
        """And the average."""
        return (*self._inner.holds, AVERAGE)

    def start(self, held: Mapping[str, State]) -> None:
        """The average of no round is the model that is there."""
        self._inner.start({name: state for name, state in held.items() if name != AVERAGE})
        self.held = {**self._inner.held, AVERAGE: held.get(AVERAGE, held[self.model])}

    def request(self) -> Mapping[str, State]:
        """As the strategy inside."""
        return self._inner.request()

    def weighed(self, weights: Mapping[str, float], costs: Costs) -> dict[str, float]:
        """As the strategy inside."""
        return self._inner.weighed(weights, costs)

    def add(self, parts: Mapping[str, State], weight: float, work: float = 1.0) -> None:
        """As the strategy inside."""
        self._inner.add(parts, weight, work)

    def finish(self, round_: int) -> None:
        """One more round; at first the plain mean, so that no round weighs double."""
        self._inner.finish(round_)
        old, new = self.held[AVERAGE], self._inner.held[self.model]
        kept = min(self._decay, 1 - 1 / round_)
        average = {name: kept * old[name] + (1 - kept) * tensor for name, tensor in new.items()}
        self.held = {**self._inner.held, AVERAGE: average}


__all__ = ["MovingAverage"]
