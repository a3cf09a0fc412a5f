"""Hospitals with few classes each: patients in the order of their label, cut in shards that are dealt at random."""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.config import Count
from simulations.partitions.archive import Archive
from simulations.partitions.partition import Partition


class Shards(Partition):
    """Each site gets `per_site` shards. See `label-skew` for `groups`.

    Source: McMahan et al., AISTATS 2017 (the non-IID partition of MNIST).
    """

    kind: Literal["shards"] = "shards"
    per_site: Count = 2
    groups: Annotated[int, Field(ge=2)] = 3

    def deal(self, patients: Collection[str], archive: Archive) -> Mapping[str, Collection[str]]:
        """Shards that differ by one patient at most."""
        classes = archive.strata(self.groups)
        ordered = sorted(patients, key=lambda one: (classes[one], self.rank(one)))
        shards = np.array_split(np.array(ordered, dtype=object), self.per_site * len(self.sites))
        turns = np.random.default_rng(self.seed).permutation(len(shards)).reshape(len(self.sites), self.per_site)
        return {
            site: [one for turn in mine for one in shards[turn]] for site, mine in zip(self.sites, turns, strict=True)
        }


__all__ = ["Shards"]
