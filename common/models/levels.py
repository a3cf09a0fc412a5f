"""What networks of several levels share: their widths, a normalisation of each sample, and the crops they refuse."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from common.models.network import LAYERS, Network

if TYPE_CHECKING:
    from torch import nn

    from common.models.layers import Blocks

_GROUPS = 4
# What a level may be wide: bounded, since hospitals build the network to look at a proposal.
Width = Annotated[int, Field(ge=1, le=4096)]


# Levels that a network needs for deep supervision: of the way up the lowest gives no answer, as in nnU-Net.
_SUPERVISED_LEAST = 4


def level_weights(levels: int, *, supervised: bool) -> tuple[float, ...]:
    """Of the answers of the levels below the first, each half of the one above."""
    return tuple(0.5**level for level in range(1, levels - 2)) if supervised else ()


def check_supervised(levels: int, *, supervised: bool) -> None:
    """Raises ValueError where there is no level to answer."""
    if supervised and levels < _SUPERVISED_LEAST:
        raise ValueError(f"deep-supervision needs {_SUPERVISED_LEAST} levels, and this network has {levels}")


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
        from common.models import layers  # noqa: PLC0415 - torch

        made = layers.normaliser(self.dims, self.norm)
        assert made is not None  # noqa: S101  # norm is one of two kinds here
        return made(channels)

    def normalised(self, network: "nn.Module") -> "nn.Module":
        """The network of a library with its normalisations replaced by the run's; its other weights stay."""
        from common.models import layers  # noqa: PLC0415 - torch

        return layers.normalised(network, self.dims, self.norm)

    def described_normalised(self, network: dict[str, Any]) -> dict[str, Any]:
        """`normalised` as `described` tells it."""
        return {"_target_": f"{LAYERS}.normalised", "network": network, "dims": self.dims, "norm": self.norm}

    def blocks(self) -> "Blocks":
        """What the layers of a network of our own have in common."""
        from common.models import layers  # noqa: PLC0415 - torch

        return layers.Blocks(self.dims, self.dropout, layers.normaliser(self.dims, self.norm))

    def described_blocks(self) -> dict[str, Any]:
        """`blocks` as `described` tells it."""
        return described_blocks(self.dims, self.dropout, self.norm)


def described_blocks(dims: int, dropout: float, norm: str) -> dict[str, Any]:
    """What `layers.Blocks` of such layers is, as `Network.described` tells it."""
    # MONAI's parser drops an argument that is made by a function and comes out as None.
    made = None if norm == "none" else {"_target_": f"{LAYERS}.normaliser", "dims": dims, "norm": norm}
    return {"_target_": f"{LAYERS}.Blocks", "dims": dims, "dropout": dropout, "normalisation": made}


__all__ = ["Levels", "Width", "check_supervised", "described_blocks", "level_weights"]
