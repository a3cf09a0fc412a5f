"""The U-Net as textbooks draw it (Ronneberger et al., MICCAI 2015), padded: the output has the input's size.

Each level is two convolutions of 3 voxels with ReLU; max pooling of 2 leads down, and the widths double. The way up is
repetition of the nearest voxel, which has no weights, and the skip connection beside it. One convolution of 1 voxel
ends it. A convolution of k^d voxels from a to b channels has k^d a b + b weights, so of one channel, five levels from
64 in 2D and one output:

    down  64: 640 + 36,928           256: 295,168 + 590,080       1024: 4,719,616 + 9,438,208
         128: 73,856 + 147,584       512: 1,180,160 + 2,359,808                                  = 18,842,048
    up   512: 7,078,400 + 2,359,808  256: 1,769,728 + 590,080
         128: 442,496 + 147,584       64: 110,656 + 36,928                                       = 12,535,680
    end    1: 64 + 1                                                                             =         65
                                                                                        in all     31,377,793
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.document.formats import Since
from common.models.levels import check_supervised, described_blocks, level_weights
from common.models.network import LAYERS, Network

if TYPE_CHECKING:
    from torch import nn


class PlainUNet(Network):
    """As drawn: 31 million weights. Without normalisation it wants a small learning rate; `norm` gives it one."""

    architecture: Literal["plain-unet"] = "plain-unet"
    # Of the first level; each further one has twice as many.
    filters: Annotated[int, Field(ge=1, le=512)] = 64
    levels: Annotated[int, Field(ge=2, le=7)] = 5
    # Of the two lowest levels on the way down.
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    norm: Literal["none", "instance"] = "none"
    # In training the levels below the first answer too, each with a head and a loss of its own.
    deep_supervision: Annotated[bool, Since(2)] = False

    @model_validator(mode="after")
    def _has_levels_to_supervise(self) -> Self:
        check_supervised(self.levels, supervised=self.deep_supervision)
        return self

    @property
    def auxiliary(self) -> tuple[float, ...]:
        """1/2, 1/4 and so on down."""
        return level_weights(self.levels, supervised=self.deep_supervision)

    @property
    def stride(self) -> int:
        """2 to the power of the levels less one."""
        return 1 << (self.levels - 1)

    def refuse(self, patch_size: Sequence[int]) -> str | None:
        """Crops that shrink to one voxel inside, where instance norm is undefined."""
        if self.norm != "instance" or math.prod(patch_size) != self.stride**self.dims:
            return None
        return (
            f"training.patch-size {list(patch_size)} shrinks to a single voxel in the network, where norm 'instance' "
            f"is undefined. Use crops of at least {2 * self.stride} along one axis, or norm = 'none'."
        )

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """See the module."""
        from common.models import layers  # noqa: PLC0415 - torch

        blocks = layers.Blocks(self.dims, self.dropout, layers.normaliser(self.dims, self.norm))
        return layers.PlainUNet(blocks, inputs, outputs, self._widths(), supervised=len(self.auxiliary))

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        sizes = {"inputs": inputs, "outputs": outputs, "widths": self._widths()}
        return {
            "_target_": f"{LAYERS}.PlainUNet",
            "blocks": described_blocks(self.dims, self.dropout, self.norm),
            **sizes,
            **({"supervised": len(self.auxiliary)} if self.auxiliary else {}),
        }

    def head(self, network: "nn.Module") -> "nn.Module":
        """The convolution of one voxel that makes the outputs."""
        last: nn.Module = network.head  # type: ignore[assignment]  # a module of ours
        return last

    def _widths(self) -> tuple[int, ...]:
        return tuple(self.filters << level for level in range(self.levels))


__all__ = ["PlainUNet"]
