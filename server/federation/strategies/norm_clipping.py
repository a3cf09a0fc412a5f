"""Norm clipping at the coordinator: moves that are too long are shortened before the weighted mean is taken."""

import statistics
from collections.abc import Mapping

from common.strategies.norm_clipping import NormClipping
from server.federation.strategies.aggregation import Server, State
from server.federation.strategies.blocks import distance, weighted_mean


class MeanOfClipped(Server[NormClipping]):
    """Of a move that is shortened to a share the mean has that much, and of the model the rest."""

    def __init__(self, settings: NormClipping) -> None:
        super().__init__(settings)
        self._updates: list[tuple[State, float]] = []

    def add(self, parts: Mapping[str, State], weight: float, work: float = 1.0) -> None:
        """Beside the others."""
        self._updates.append((parts[self.model], weight))

    def finish(self, round_: int) -> None:
        """Shorten, and take the mean."""
        updates, self._updates, before = self._updates, [], self.held[self.model]
        lengths = [distance(state, before) for state, _ in updates]
        norm = self.settings.norm or statistics.median(lengths)
        shares = [1.0 if length <= norm else norm / length for length in lengths]
        counts = [weight * share for (_, weight), share in zip(updates, shares, strict=True)]
        rest = sum(weight * (1 - share) for (_, weight), share in zip(updates, shares, strict=True))
        states = [*(state for state, _ in updates), before]
        self.held = {**self.held, self.model: weighted_mean(states, [*counts, rest])}


__all__ = ["MeanOfClipped"]
