"""How the patients of an archive are dealt to simulated sites: one file each, and one line in `PARTITIONS`.

The first is what a scenario whose [partition] has no `kind` means.
"""

from common.document.choice import OneOf
from simulations.partitions.archive import Archive
from simulations.partitions.by_value import ByValue
from simulations.partitions.equal import Equal
from simulations.partitions.label_skew import LabelSkew
from simulations.partitions.partition import Partition
from simulations.partitions.quantity_skew import QuantitySkew
from simulations.partitions.shards import Shards

PARTITIONS: tuple[type[Partition], ...] = (
    Equal,
    QuantitySkew,
    LabelSkew,
    Shards,
    ByValue,
)  # fmt: skip
# Of the [partition] table.
PARTITION_CHOICE = OneOf("kind", PARTITIONS)

__all__ = ["PARTITIONS", "PARTITION_CHOICE", "Archive", "Partition"]
