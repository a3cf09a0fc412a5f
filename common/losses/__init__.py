"""The losses that segmentation may train with: one file each, with its settings, and one line in `LOSSES`.

The first is what a run without [task.loss] means. Imports `common.document.table`; torch only where a loss is taken.
"""

from common.document.choice import OneOf
from common.losses.cldice import CLDice
from common.losses.dice_ce import DiceCE
from common.losses.focal import Focal
from common.losses.loss import Loss
from common.losses.skeleton_recall import SkeletonRecall
from common.losses.tversky import Tversky

LOSSES: tuple[type[Loss], ...] = (
    DiceCE,
    Focal,
    Tversky,
    CLDice,
    SkeletonRecall,
)  # fmt: skip
# Of the [task.loss] table.
LOSS_CHOICE = OneOf("kind", LOSSES)

__all__ = ["LOSSES", "LOSS_CHOICE", "Loss"]
