"""Focal loss: voxels that are right already count less (Lin et al., ICCV 2017)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from common.losses.loss import Share, WeightedLoss

if TYPE_CHECKING:
    from torch import Tensor


class Focal(WeightedLoss):
    """Mean over the voxels of -(1 - p)^gamma log p, p the probability of the true class; soft Dice may be added."""

    kind: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    dice: Share = 0.0

    def of_each(self, logits: "Tensor", labels: "Tensor", *, overlap: bool = False) -> "Tensor":
        """With gamma 0 and no Dice it is the cross entropy."""
        from common.losses import terms  # noqa: PLC0415 - torch

        voxels = terms.voxels_of(logits, labels, overlap=overlap)
        found = terms.cross_entropy(voxels, self.class_weights, gamma=self.gamma)
        return found + self.dice * terms.dice(voxels) if self.dice else found


__all__ = ["Focal"]
