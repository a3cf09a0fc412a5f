"""Equal parts, whoever the patients are."""

from collections.abc import Collection, Mapping
from typing import Literal

from simulations.partitions.archive import Archive
from simulations.partitions.partition import Partition


class Equal(Partition):
    """Patients in the order of their rank go to the sites by turns."""

    kind: Literal["equal"] = "equal"

    def deal(self, patients: Collection[str], archive: Archive) -> Mapping[str, Collection[str]]:
        """Parts that differ by one patient at most."""
        ranked = sorted(patients, key=self.rank)
        return {site: ranked[index :: len(self.sites)] for index, site in enumerate(self.sites)}


__all__ = ["Equal"]
