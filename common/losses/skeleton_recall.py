"""Skeleton recall: of a thin structure's centre line nothing shall be missed (Kirchhoff et al., ECCV 2024).

The label's centre line is widened to a tube of the voxels around it, and the loss is the part of the tube that is not
claimed. Unlike clDice it needs no centre line of what the network says, so it costs little. There the line is made by
thinning, on the images' way in; here it is the morphological skeleton, which is made of the same voxels but for gaps
that the tube closes, and where the loss is taken, so that a private step can take it for each patient.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from common.losses.loss import Loss, Share

if TYPE_CHECKING:
    from torch import Tensor


class SkeletonRecall(Loss):
    """Soft Dice and cross entropy, plus `weight` times the part of the centre line's tube that is missed."""

    kind: Literal["skeleton-recall"] = "skeleton-recall"
    weight: Share = 1.0
    # Half the width, in voxels, of the widest structure that becomes a line.
    iterations: Annotated[int, Field(ge=1, le=50)] = 5

    def of_each(self, logits: "Tensor", labels: "Tensor", *, overlap: bool = False) -> "Tensor":
        """Mean over the classes; a class that is not there misses nothing."""
        from common.losses import terms  # noqa: PLC0415 - torch

        voxels = terms.voxels_of(logits, labels, overlap=overlap)
        missed = terms.skeleton_recall(voxels, self.iterations)
        return terms.dice(voxels) + terms.cross_entropy(voxels) + self.weight * missed


__all__ = ["SkeletonRecall"]
