"""The weighted mean of the sites' models (FedAvg), with no site outvoting all the others.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017. Floating
point addition is not associative, so the order is fixed (site names, sorted) and the sum is made in float64
(`server.federation.strategies.blocks`): the mean is the same to the bit whatever order the replies arrived in.

A site says itself how many patients it has, and nobody can check that. So of three or more sites none weighs more than
all the others together, and of two none more than four times the other: a count of a million then moves the average no
further than a count that is merely large.

Nor can it check under differential privacy how few patients a site has, and the fewer, the more noise is in its honest
update: enough to drown the others'. So of three or more updates none pulls more than five times as far as the median
one; what lies farther weighs less by as much. That is done to released updates, and costs no privacy. So it is where a
strategy divides each update by the work that its site states, and there of two none pulls more than four times as far
as the other.
"""

import statistics
from collections.abc import Mapping

# The most that a site weighs, over the sum of the others.
_MOST, _MOST_OF_TWO = 1.0, 4.0
# An update that lies so many times as far from the model as the median one weighs less.
_MOST_MEDIANS, _FEWEST_FOR_A_MEDIAN = 5.0, 3


def capped(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights, the largest lowered to where its site does not outvote the others; see the module."""
    if len(weights) < 2:
        return dict(weights)
    largest = max(sorted(weights), key=lambda site: weights[site])
    others = sum(weight for site, weight in weights.items() if site != largest)
    most = others * (_MOST_OF_TWO if len(weights) == 2 else _MOST)
    return {**weights, largest: min(weights[largest], most)}


def tempered(weights: Mapping[str, float], distances: Mapping[str, float], *, timed: bool) -> dict[str, float]:
    """The weights, those of updates far beyond the median one lowered by as much as they lie beyond; see the module.

    Of two that are divided by their work the larger is held against the other.

    Args:
        weights: site -> weight.
        distances: site -> how far its update lies from the model that was sent, L2; the same sites.
        timed: whether that is over a work that a site states itself: a step of a thousand is a thousand times as far.
    """
    if len(distances) == 2 and timed:
        most = _MOST_OF_TWO * min(distances.values())
    elif len(distances) < _FEWEST_FOR_A_MEDIAN:
        return dict(weights)
    else:
        most = _MOST_MEDIANS * statistics.median(distances.values())
    return {
        site: weight * most / distances[site] if distances[site] > most > 0 else weight
        for site, weight in weights.items()
    }


__all__ = ["capped", "tempered"]
