"""Tversky loss: Dice with prices of their own for what is claimed falsely and for what is missed.

Salehi et al., MLMI 2017; the exponent after Abraham and Khan, ISBI 2019.
"""

from typing import TYPE_CHECKING, Literal

from common.losses.loss import Exponent, Loss, Price, Share

if TYPE_CHECKING:
    from torch import Tensor


class Tversky(Loss):
    """1 - hits / (hits + alpha false + beta missed), to the power gamma; alpha = beta = 1/2 is Dice. Of each class."""

    kind: Literal["tversky"] = "tversky"
    # Of voxels claimed falsely, and of those missed: small lesions want a higher price for the latter.
    alpha: Price = 0.3
    beta: Price = 0.7
    gamma: Exponent = 1.0
    cross_entropy: Share = 0.0

    def of_each(self, logits: "Tensor", labels: "Tensor", *, overlap: bool = False) -> "Tensor":
        """The classes alone; cross entropy may be added, whose gradient does not vanish where nothing is hit."""
        from common.losses import terms  # noqa: PLC0415 - torch

        voxels = terms.voxels_of(logits, labels, overlap=overlap)
        found = terms.tversky(voxels, self.alpha, self.beta, self.gamma)
        return found + self.cross_entropy * terms.cross_entropy(voxels) if self.cross_entropy else found


__all__ = ["Tversky"]
