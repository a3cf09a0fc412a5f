"""FedPID at the coordinator: the mean, with weights that follow what the shared model gained at each site.

A gain that is negative counts as none. A site without two scores counts, in that share, as its size says; so does every
site where nobody gained anything. What a site says of its scores is its own word, as its count is: the cap of
`server.federation.strategies.weighing` holds here too.
"""

from collections.abc import Mapping

from common.strategies.fedpid import FedPID
from server.federation.strategies.aggregation import Costs, Mean


class MeanByGain(Mean[FedPID]):
    """See the module."""

    def weighed(self, weights: Mapping[str, float], costs: Costs) -> dict[str, float]:
        """Shares of 1, over the three shares' sum."""
        settings, total = self.settings, sum(weights.values())
        size = {site: weight / total for site, weight in weights.items()}
        last: dict[str, float] = {}
        since_first: dict[str, float] = {}
        for site in size:
            if len(known := [costs[round_][site] for round_ in sorted(costs) if site in costs[round_]]) > 1:
                last[site], since_first[site] = known[-2] - known[-1], known[0] - known[-1]
        parts = (
            (settings.alpha, size),
            (settings.beta, _shares(last, size)),
            (settings.gamma, _shares(since_first, size)),
        )
        whole = sum(share for share, _ in parts)
        return {site: sum(share * part[site] for share, part in parts) / whole for site in size}


def _shares(gains: Mapping[str, float], size: Mapping[str, float]) -> Mapping[str, float]:
    """Of all gain, among those of whom it is known; they have as much of the whole as their sizes together."""
    gained = {site: max(0.0, one) for site, one in gains.items()}
    total, heard = sum(gained.values()), sum(size[site] for site in gains)
    if not total:
        return size
    return {site: heard * gained[site] / total if site in gained else one for site, one in size.items()}


__all__ = ["MeanByGain"]
