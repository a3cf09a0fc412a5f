"""Soft Dice plus cross entropy, both with weight 1 unless told otherwise (Isensee et al., Nature Methods 2021)."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from common.losses.loss import Share, WeightedLoss

if TYPE_CHECKING:
    from torch import Tensor


class DiceCE(WeightedLoss):
    """Soft Dice over the classes, cross entropy over them and the background; class weights are the cross entropy's."""

    kind: Literal["dice-ce"] = "dice-ce"
    dice: Share = 1.0
    cross_entropy: Share = 1.0

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not self.dice and not self.cross_entropy:
            raise ValueError("dice and cross-entropy are both 0: give one of them a weight")
        return self

    def of_each(self, logits: "Tensor", labels: "Tensor", *, overlap: bool = False) -> "Tensor":
        """Weights of the two parts, and of the classes as in torch: a weighted mean over the voxels."""
        from common.losses import terms  # noqa: PLC0415 - torch

        voxels = terms.voxels_of(logits, labels, overlap=overlap)
        if self.dice == self.cross_entropy == 1 and self.class_weights is None:
            return terms.dice(voxels) + terms.cross_entropy(voxels)
        return self.dice * terms.dice(voxels) + self.cross_entropy * terms.cross_entropy(voxels, self.class_weights)


__all__ = ["DiceCE"]
