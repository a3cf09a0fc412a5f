"""Rules that hold against some sites that send anything: what they choose, and how they combine it.

Median and trimmed mean: Yin et al., ICML 2018. Multi-Krum: Blanchard et al., NeurIPS 2017. Bulyan: El Mhamdi et al.,
ICML 2018. Sites come in the order of their names, and of two that score alike the first is taken: a round that is done
again makes the same model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.strategies.robust import Bulyan, FedMedian, MultiKrum, TrimmedMean
from server.federation.strategies.aggregation import Each
from server.federation.strategies.blocks import State, Work, in_blocks, stack_of, stacked_block


class MedianOfEach(Each[FedMedian]):
    """Of an even number the mean of the two in the middle."""

    def combined(self, values: Tensor) -> Tensor:
        """See the class."""
        return _median(values)


class MeanOfMiddle(Each[TrimmedMean]):
    """Without `trim` values at either end."""

    def combined(self, values: Tensor) -> Tensor:
        """See the class."""
        return values.sort(0).values[self.settings.trim : len(values) - self.settings.trim].mean(0)


class MeanOfNearest(Each[MultiKrum]):
    """The mean of those with the best scores."""

    def chosen(self, updates: list[State]) -> list[State]:
        """See the class."""
        hostile, distances = self.settings.hostile, squared_distances(updates)
        order = torch.argsort(krum_scores(distances, hostile), dim=0, stable=True).tolist()
        wanted = self.settings.selected or len(updates) - hostile
        return [updates[place] for place in sorted(order[:wanted])]


class BulyanOfEach(Each[Bulyan]):
    """Krum's best is taken out and chosen, until n - 2 hostile are; then `_around_median`."""

    def chosen(self, updates: list[State]) -> list[State]:
        """See the class."""
        hostile, distances = self.settings.hostile, squared_distances(updates)
        left, taken = list(range(len(updates))), list[int]()
        for _ in range(len(updates) - 2 * hostile):
            scores = krum_scores(distances[left][:, left], hostile)
            taken.append(left.pop(int(scores.argmin())))
        return [updates[place] for place in sorted(taken)]

    def combined(self, values: Tensor) -> Tensor:
        """The mean of the n - 4 hostile values next to the median."""
        nearest = (
            (values - _median(values)).abs().argsort(dim=0, stable=True)[: len(values) - 2 * self.settings.hostile]
        )
        return values.gather(0, nearest).mean(0)


def krum_scores(distances: Tensor, hostile: int) -> Tensor:
    """The sum of each update's squared distances to its n - hostile - 2 nearest others, of at least one.

    Args:
        distances: (n, n) squared.
        hostile: how many may be anything.

    Returns:
        (n); the lower the better.
    """
    near = max(1, len(distances) - hostile - 2)
    return distances.sort(1).values[:, 1 : 1 + near].sum(1)


def squared_distances(updates: Sequence[State]) -> Tensor:
    """(n, n) float64, over all tensors."""

    def begin() -> Work[Tensor]:
        stacked = stack_of(updates)

        def work(name: str, start: int, stop: int) -> Tensor:
            values = stacked(name, start, stop)
            return torch.stack([(values - row).square_().sum(1) for row in values])

        return work

    none = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    return sum(in_blocks(updates[0], begin, stacked_block(len(updates))), none)


def _median(values: Tensor) -> Tensor:
    """Over the first axis."""
    ordered, count = values.sort(0).values, len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


__all__ = ["BulyanOfEach", "MeanOfMiddle", "MeanOfNearest", "MedianOfEach", "krum_scores", "squared_distances"]
