"""What a partition is: one archive shared out among sites, patient by patient."""

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import Field

from common.config import SourceConfig
from common.document.table import Name, Table


class Partition(Table):
    """The [partition] table of a scenario. The same archive is dealt in the same way everywhere."""

    kind: str
    sites: tuple[Name, ...]
    source: SourceConfig
    seed: int = 0
    # So many patients go to no site: their images play a published archive, which pretraining may use.
    published: Annotated[int, Field(ge=0)] = 0

    @abstractmethod
    def deal(self, patients: Collection[str]) -> Mapping[str, Collection[str]]:
        """The patients of each site; nobody is at two, and a site may get none.

        Args:
            patients: ids, sorted; the published ones are not among them.
        """

    def rank(self, patient: str) -> bytes:
        """A place in an order that follows from the seed and the patient alone."""
        return hashlib.sha256(f"{self.seed}|{patient}".encode()).digest()


__all__ = ["Partition"]
