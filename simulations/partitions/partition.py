"""What a partition is: one archive shared out among sites, patient by patient."""

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import Field

from common.config import Positive, SourceConfig
from common.document.table import Name, Table
from simulations.partitions.archive import Archive

# Of a Dirichlet distribution; far below the largest number, of which the sum of several is no number.
Concentration = Annotated[Positive, Field(le=1e9)]


class Partition(Table):
    """The [partition] table of a scenario. The same archive is dealt in the same way everywhere."""

    kind: str
    sites: tuple[Name, ...]
    source: SourceConfig
    seed: Annotated[int, Field(ge=0)] = 0
    # So many patients go to no site: their images play a published archive, which pretraining may use.
    published: Annotated[int, Field(ge=0)] = 0

    @abstractmethod
    def deal(self, patients: Collection[str], archive: Archive) -> Mapping[str, Collection[str]]:
        """The patients of each site; nobody is at two, and a site may get none.

        Args:
            patients: ids, sorted; the published ones are not among them.
            archive: theirs.
        """

    def rank(self, patient: str) -> bytes:
        """A place in an order that follows from the seed and the patient alone."""
        return hashlib.sha256(f"{self.seed}|{patient}".encode()).digest()


__all__ = ["Concentration", "Partition"]
