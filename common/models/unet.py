"""MONAI's U-Net, with residual units after Kerfoot et al., STACOM 2018."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from common.document.table import Count
from common.models.network import Network

if TYPE_CHECKING:
    from torch import nn

_GROUPS = 4


class UNet(Network):
    """A U-Net of any number of levels; each halves the image."""

    architecture: Literal["unet"] = "unet"
    # Four levels: enough context for organs at 256 pixels, 0.2 million weights in 2D, 0.8 MB on the wire.
    channels: tuple[Count, ...] = (16, 32, 64, 128)
    residual_units: Annotated[int, Field(ge=0, le=4)] = 1
    # Normalisation per sample.
    norm: Literal["group", "instance"] = "instance"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _has_levels(self) -> Self:
        if len(self.channels) < 2:
            raise ValueError("channels needs at least two levels, such as [16, 32]")
        if self.norm == "group" and any(width % _GROUPS for width in self.channels):
            raise ValueError("norm 'group' uses groups of 4 channels: make every entry of channels a multiple of 4")
        return self

    @property
    def stride(self) -> int:
        """2 to the power of the levels less one."""
        return 1 << (len(self.channels) - 1)

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """MONAI's, with group norm put in where it is asked for."""
        from monai.networks.nets.unet import UNet as MonaiUNet  # noqa: PLC0415 - heavy
        from torch import nn  # noqa: PLC0415 - heavy

        network = MonaiUNet(
            spatial_dims=self.dims,
            in_channels=inputs,
            out_channels=outputs,
            channels=self.channels,
            strides=(2,) * (len(self.channels) - 1),
            num_res_units=self.residual_units,
            act="PRELU",
            norm=("INSTANCE", {"affine": True}),
            dropout=self.dropout,
        )
        for parent in list(network.modules()) if self.norm == "group" else ():
            for name, child in parent.named_children():
                if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
                    # Not by MONAI's argument, which fails on the last block: its channels are the outputs.
                    setattr(parent, name, nn.GroupNorm(math.gcd(_GROUPS, child.num_features), child.num_features))
        return network

    def head(self, network: "nn.Module") -> "nn.Module":
        """The block of the uppermost level on the way up."""
        last: nn.Module = list(network.model.children())[-1]  # type: ignore[union-attr]  # MONAI has a Sequential there
        return last

    def refuse(self, patch_size: Sequence[int]) -> str | None:
        """Crops that shrink to one voxel inside, where instance norm is undefined."""
        if self.norm != "instance" or math.prod(patch_size) != self.stride**self.dims:
            return None
        return (
            f"training.patch-size {list(patch_size)} shrinks to a single voxel in the network, where norm 'instance' "
            f"is undefined. Use crops of at least {2 * self.stride} along one axis, or norm = 'group'."
        )


__all__ = ["UNet"]
