"""Hospitals of unlike size: shares of the patients from a Dirichlet distribution."""

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Literal

import numpy as np

from common.config import Count
from common.errors import ConfigError
from simulations.partitions.archive import Archive
from simulations.partitions.partition import Concentration, Partition


class QuantitySkew(Partition):
    """The smaller `concentration`, the less alike the sizes; each site gets `fewest` patients at least.

    Source: Li et al., Federated Learning on Non-IID Data Silos, ICDE 2022 (quantity skew).
    """

    kind: Literal["quantity-skew"] = "quantity-skew"
    concentration: Concentration = 0.5
    fewest: Count = 2

    def deal(self, patients: Collection[str], archive: Archive) -> Mapping[str, Collection[str]]:
        """In the order of their rank; what lies above `fewest` for each is what the shares are of.

        Raises:
            ConfigError: there are not so many.
        """
        ranked = sorted(patients, key=self.rank)
        spare = len(ranked) - self.fewest * len(self.sites)
        if spare < 0:
            raise ConfigError(
                f"{len(ranked)} patients cannot be dealt so that each of {len(self.sites)} sites has {self.fewest}. "
                "Name fewer sites in [partition], or a smaller fewest."
            )
        shares = np.random.default_rng(self.seed).dirichlet([self.concentration] * len(self.sites))
        ends = [0, *(self.fewest * (at + 1) + round(spare * so_far) for at, so_far in enumerate(np.cumsum(shares)))]
        return {site: ranked[start:end] for site, (start, end) in zip(self.sites, pairwise(ends), strict=True)}


__all__ = ["QuantitySkew"]
