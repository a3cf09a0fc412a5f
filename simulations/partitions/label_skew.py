"""Hospitals that see unlike diseases: of each class, shares of its patients from a Dirichlet distribution."""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.config import Count
from common.errors import ConfigError
from simulations.partitions.archive import Archive
from simulations.partitions.partition import Concentration, Partition

_DRAWS = 1000


class LabelSkew(Partition):
    """The smaller `concentration`, the less alike the sites' classes; drawn anew until each has `fewest` patients.

    Where the source tells no classes of whole images, patients are in `groups` by how much of their images is marked.
    Source: Yurochkin et al., ICML 2019; Li et al., ICDE 2022 (distribution-based label imbalance).
    """

    kind: Literal["label-skew"] = "label-skew"
    concentration: Concentration = 0.5
    fewest: Count = 2
    groups: Annotated[int, Field(ge=2)] = 3

    def deal(self, patients: Collection[str], archive: Archive) -> Mapping[str, Collection[str]]:
        """Patients of a class in the order of their rank.

        Raises:
            ConfigError: no draw gives every site so many.
        """
        classes = archive.strata(self.groups)
        members = [
            sorted((one for one in patients if classes[one] == name), key=self.rank)
            for name in sorted(set(map(classes.__getitem__, patients)))
        ]
        draw = np.random.default_rng(self.seed)
        for _ in range(_DRAWS if len(patients) >= self.fewest * len(self.sites) else 0):
            dealt: dict[str, list[str]] = {site: [] for site in self.sites}
            for ranked in members:
                shares = draw.dirichlet([self.concentration] * len(self.sites))
                ends = np.round(np.cumsum(shares) * len(ranked)).astype(int)
                for site, part in zip(self.sites, np.split(np.array(ranked, dtype=object), ends[:-1]), strict=True):
                    dealt[site].extend(part)
            if min(map(len, dealt.values())) >= self.fewest:
                return dealt
        raise ConfigError(
            f"{len(patients)} patients cannot be dealt so that each of {len(self.sites)} sites has {self.fewest}: "
            f"tried {_DRAWS} times. Name fewer sites in [partition], or a larger concentration."
        )


__all__ = ["LabelSkew"]
