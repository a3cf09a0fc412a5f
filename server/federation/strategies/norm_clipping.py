"""Norm clipping at the coordinator: moves that are too long are shortened before the weighted mean is taken."""

import math
import statistics
from collections.abc import Mapping

from common.strategies.norm_clipping import NormClipping
from server.federation.strategies.aggregation import Mean, State


class MeanOfClipped(Mean[NormClipping]):
    """Keeps the updates until all lengths are known, unless the run says the norm."""

    def __init__(self, settings: NormClipping) -> None:
        super().__init__(settings)
        self._updates: list[tuple[State, float]] = []

    def add(self, parts: Mapping[str, State], weight: float, work: float = 1.0) -> None:
        """Beside the others."""
        self._updates.append((parts[self.model], weight))

    def finish(self, round_: int) -> None:
        """Shorten, and take the mean."""
        updates, self._updates, before = self._updates, [], self.held[self.model]
        lengths = [_length(state, before) for state, _ in updates]
        norm = self.settings.norm or statistics.median(lengths)
        for (state, weight), length in zip(updates, lengths, strict=True):
            share = 1.0 if length <= norm else norm / length
            shortened = {
                name: (one.double() + share * (state[name].double() - one.double())).to(one.dtype)
                for name, one in before.items()
            }
            super().add({self.model: state if share == 1 else shortened}, weight)
        super().finish(round_)


def _length(state: State, before: State) -> float:
    return math.sqrt(sum(float((state[name].double() - one.double()).square().sum()) for name, one in before.items()))


__all__ = ["MeanOfClipped"]
