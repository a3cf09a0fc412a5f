"""What networks of several levels share: their widths, a normalisation of each sample, and the crops they refuse."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from common.models.network import Network

if TYPE_CHECKING:
    from torch import nn

_GROUPS = 4
# What a level may be wide: bounded, since hospitals build the network to look at a proposal.
Width = Annotated[int, Field(ge=1, le=4096)]


class Levels(Network):
    """A network that halves the image from each level to the next."""

    # Four levels: enough context for organs at 256 pixels; as U-Net 0.2 million weights in 2D, 0.8 MB on the wire.
    channels: Annotated[tuple[Width, ...], Field(max_length=10)] = (16, 32, 64, 128)
    # Normalisation per sample.
    norm: Literal["group", "instance"] = "instance"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    # The fewest levels that it can be built of.
    LEAST: ClassVar[int] = 2

    @model_validator(mode="after")
    def _has_levels(self) -> Self:
        if len(self.channels) < self.LEAST:
            few = {2: "two levels, such as [16, 32]", 3: "three levels, such as [16, 32, 64]"}[self.LEAST]
            raise ValueError(f"channels needs at least {few}")
        if self.norm == "group" and any(width % _GROUPS for width in self.channels):
            raise ValueError("norm 'group' uses groups of 4 channels: make every entry of channels a multiple of 4")
        return self

    @property
    def stride(self) -> int:
        """2 to the power of the levels less one."""
        return 1 << (len(self.channels) - 1)

    def refuse(self, patch_size: Sequence[int]) -> str | None:
        """Crops that shrink to one voxel inside, where instance norm is undefined."""
        if self.norm != "instance" or math.prod(patch_size) != self.stride**self.dims:
            return None
        return (
            f"training.patch-size {list(patch_size)} shrinks to a single voxel in the network, where norm 'instance' "
            f"is undefined. Use crops of at least {2 * self.stride} along one axis, or norm = 'group'."
        )

    def normalisation(self, channels: int) -> "nn.Module":
        """A layer that normalises each sample by itself, with a weight and a bias for each channel."""
        from torch import nn  # noqa: PLC0415 - heavy

        if self.norm == "group":
            return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
        return (nn.InstanceNorm2d if self.dims == 2 else nn.InstanceNorm3d)(channels, affine=True)

    def normalised(self, network: "nn.Module") -> "nn.Module":
        """The network of a library with its normalisations replaced by `normalisation`; its other weights stay."""
        from torch import nn  # noqa: PLC0415 - heavy

        theirs = nn.BatchNorm2d | nn.BatchNorm3d | nn.InstanceNorm2d | nn.InstanceNorm3d
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, theirs):
                    setattr(parent, name, self.normalisation(child.num_features))
        return network


__all__ = ["Levels", "Width"]
