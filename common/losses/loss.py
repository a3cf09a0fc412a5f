"""What a loss is: how far the outputs for a voxel's image are from its label, sample by sample.

A loss gives each sample its own number, and a step takes their mean: so no loss of the table can couple patients, which
would void differential privacy. Settings are the [task.loss] table of a run, read by processes that hold no torch.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from common.document.table import Table

if TYPE_CHECKING:
    from torch import Tensor


# Bounds within which float32 can compute: of a part of a loss, of a class or an error, of an exponent.
Share = Annotated[float, Field(ge=0, le=1000)]
Price = Annotated[float, Field(ge=1e-3, le=1000)]
Exponent = Annotated[float, Field(ge=0.1, le=10)]


class Loss(Table):
    """A loss of segmentation. Class 0 is the background; classes that may overlap have none, and each is a question of
    its own, "this class or not".
    """

    kind: str

    @abstractmethod
    def of_each(self, logits: "Tensor", labels: "Tensor", *, overlap: bool = False) -> "Tensor":
        """The loss of each sample by itself.

        Args:
            logits: (N, 1 + K, *spatial), or of classes that overlap (N, K, *spatial); half precision is widened to
                float32 first.
            labels: (N, *spatial) int64, as `common.labelmap` reads them.
            overlap: whether classes may overlap.

        Returns:
            (N) float32.
        """

    def refuse(self, classes: int, *, overlap: bool = False) -> str | None:  # noqa: ARG002 - for those weighted by class
        """Why it cannot be the loss of so many classes, the background not counted; None: it can."""
        return None


class WeightedLoss(Loss):
    """A loss to which some classes may count more than others."""

    # Of the background and of each class, in label order; of classes that overlap of each class alone, and then of its
    # own voxels against the others. None: all alike.
    class_weights: tuple[Price, ...] | None = None

    def refuse(self, classes: int, *, overlap: bool = False) -> str | None:
        """Weights that are not one for the background and one for each class."""
        if self.class_weights is None or len(self.class_weights) == classes + (not overlap):
            return None
        if overlap:
            return (
                f"task.loss.class-weights has {len(self.class_weights)} entries, and with multi-label the background "
                f"has none: write {classes}, one for each class"
            )
        return (
            f"task.loss.class-weights has {len(self.class_weights)} entries, and the run has the background and "
            f"{classes} classes: write {1 + classes}, the background's first"
        )


__all__ = ["Loss", "WeightedLoss"]
