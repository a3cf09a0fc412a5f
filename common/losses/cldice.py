"""Soft clDice: a vessel that is cut costs more than one that is too thin (Shit et al., CVPR 2021)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from common.losses.loss import Loss, Share

if TYPE_CHECKING:
    from torch import Tensor


class CLDice(Loss):
    """Soft Dice and cross entropy, plus `weight` times 1 - clDice: overlap of each one's skeleton with the other."""

    kind: Literal["cldice"] = "cldice"
    weight: Share = 0.5
    # Half the width, in voxels, of the widest structure that becomes a line.
    iterations: Annotated[int, Field(ge=1, le=50)] = 3

    def of_each(self, logits: "Tensor", labels: "Tensor", *, overlap: bool = False) -> "Tensor":
        """Mean over the classes."""
        from common.losses import terms  # noqa: PLC0415 - torch

        voxels = terms.voxels_of(logits, labels, overlap=overlap)
        lines = terms.cldice(voxels, self.iterations)
        return terms.dice(voxels) + terms.cross_entropy(voxels) + self.weight * lines


__all__ = ["CLDice"]
