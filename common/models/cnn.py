"""A small convolutional network that answers an image as a whole: a yardstick, and for few patients.

Each level is two convolutions of 3 voxels with a normalisation and ReLU; max pooling of 2 leads to the next. The mean
over the voxels of the last level goes through dropout into one layer of outputs.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from common.models.levels import Levels
from common.models.network import LAYERS

if TYPE_CHECKING:
    from torch import nn


class CNN(Levels):
    """About 300 thousand weights in 2D. Few enough for a private run, where every weight costs noise."""

    architecture: Literal["cnn"] = "cnn"
    # Group norm keeps how strong a channel is on the whole, which the mean over the image then reads.
    norm: Literal["group", "instance"] = "group"

    DENSE: ClassVar[bool] = False

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """See `common.models.layers`."""
        from common.models import layers  # noqa: PLC0415 - torch

        return layers.CNN(self.blocks(), inputs, outputs, self.channels)

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        sizes = {"inputs": inputs, "outputs": outputs, "widths": self.channels}
        return {"_target_": f"{LAYERS}.CNN", "blocks": self.described_blocks(), **sizes}

    def head(self, network: "nn.Module") -> "nn.Module":
        """The layer that makes the outputs."""
        last: nn.Module = network.head  # type: ignore[assignment]  # a module of ours
        return last


__all__ = ["CNN"]
