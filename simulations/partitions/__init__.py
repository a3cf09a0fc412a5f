"""How the patients of an archive are dealt to simulated sites: one file each, and one line in `PARTITIONS`.

The first is what a scenario whose [partition] has no `kind` means.
"""

from common.document.choice import OneOf
from simulations.partitions.equal import Equal
from simulations.partitions.partition import Partition

PARTITIONS: tuple[type[Partition], ...] = (
    Equal,
)  # fmt: skip
# Of the [partition] table.
PARTITION_CHOICE = OneOf("kind", PARTITIONS)

__all__ = ["PARTITIONS", "PARTITION_CHOICE", "Partition"]
