"""MONAI's U-Net, with residual units after Kerfoot et al., STACOM 2018."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from common.models.levels import Levels

if TYPE_CHECKING:
    from torch import nn


class UNet(Levels):
    """A U-Net of any number of levels; each halves the image."""

    architecture: Literal["unet"] = "unet"
    residual_units: Annotated[int, Field(ge=0, le=4)] = 1

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """MONAI's, with group norm put in where it is asked for."""
        from monai.networks.nets.unet import UNet as MonaiUNet  # noqa: PLC0415 - heavy

        network = MonaiUNet(**self._arguments(inputs, outputs))
        # Not by MONAI's argument, which fails on the last block: its channels are the outputs.
        return self.normalised(network) if self.norm == "group" else network

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        network = {"_target_": "monai.networks.nets.UNet", **self._arguments(inputs, outputs)}
        return self.described_normalised(network) if self.norm == "group" else network

    def head(self, network: "nn.Module") -> "nn.Module":
        """The block of the uppermost level on the way up."""
        last: nn.Module = list(network.model.children())[-1]  # type: ignore[union-attr]  # MONAI has a Sequential there
        return last

    def _arguments(self, inputs: int, outputs: int) -> dict[str, Any]:
        return {
            "spatial_dims": self.dims,
            "in_channels": inputs,
            "out_channels": outputs,
            "channels": self.channels,
            "strides": (2,) * (len(self.channels) - 1),
            "num_res_units": self.residual_units,
            "act": "PRELU",
            "norm": ("INSTANCE", {"affine": True}),
            "dropout": self.dropout,
        }


__all__ = ["UNet"]
