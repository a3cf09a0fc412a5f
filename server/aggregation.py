"""The weighted mean of the sites' models (FedAvg), folded in one at a time.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017. Floating
point addition is not associative, so the order is fixed (site names, sorted) and the sum is kept in float64: the
mean is the same to the bit whatever order the replies arrive in. Memory is one float64 model plus the replies that
arrived ahead of their turn.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from common.errors import FederationError


class WeightedMean:
    """A running weighted mean over a fixed list of sites.

    Each site is settled exactly once, by `add` or by `skip`, in any order.
    """

    def __init__(self, sites: Iterable[str]) -> None:
        self._order = sorted(sites)
        self._settled: dict[str, tuple[dict[str, Tensor], float] | None] = {}
        self._next = 0
        self._sum: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._weight = 0.0

    def add(self, site: str, state: Mapping[str, Tensor], weight: float) -> None:
        """Let this site's tensors enter with this weight."""
        self._settle(site, (dict(state), weight))

    def skip(self, site: str) -> None:
        """This site contributes nothing."""
        self._settle(site, None)

    def result(self) -> dict[str, Tensor]:
        """The mean in the tensors' own dtypes. Sites not settled yet are left out.

        Raises:
            FederationError: nothing entered.
        """
        for site in self._order:
            if site not in self._settled:
                self.skip(site)
        if not self._weight:
            raise FederationError("no site's update entered the average, so there is no new model")
        return {name: (total / self._weight).to(self._dtypes[name]) for name, total in self._sum.items()}

    def _settle(self, site: str, update: tuple[dict[str, Tensor], float] | None) -> None:
        if site not in self._order or site in self._settled:
            raise ValueError(f"{site} is not awaited: it is unknown or already settled")
        self._settled[site] = update
        while self._next < len(self._order) and self._order[self._next] in self._settled:
            turn = self._order[self._next]
            ready = self._settled[turn]
            self._settled[turn] = None  # folded in: its tensors may be freed
            self._next += 1
            if ready is not None:
                self._fold(*ready)

    def _fold(self, state: Mapping[str, Tensor], weight: float) -> None:
        self._weight += weight
        for name, tensor in state.items():
            if name in self._sum:
                self._sum[name].add_(tensor.double(), alpha=weight)
            else:
                self._sum[name] = tensor.double() * weight
                self._dtypes[name] = tensor.dtype


__all__ = ["WeightedMean"]
