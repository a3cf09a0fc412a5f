"""MONAI's Attention U-Net: a gate on each skip connection says where to look (Oktay et al., MIDL 2018)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from common.models.levels import Levels

if TYPE_CHECKING:
    from torch import nn


class AttentionUNet(Levels):
    """A U-Net whose skip connections are weighted, voxel by voxel, by what lies below them."""

    architecture: Literal["attention-unet"] = "attention-unet"

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """MONAI's, with its batch norms replaced: they mix patients."""
        from monai.networks.nets.attentionunet import AttentionUnet  # noqa: PLC0415 - heavy

        return self.normalised(AttentionUnet(**self._arguments(inputs, outputs)))

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        network = {"_target_": "monai.networks.nets.AttentionUnet", **self._arguments(inputs, outputs)}
        return self.described_normalised(network)

    def head(self, network: "nn.Module") -> "nn.Module":
        """The convolution of one voxel that makes the outputs."""
        last: nn.Module = list(network.model.children())[-1]  # type: ignore[union-attr]  # MONAI has a Sequential there
        return last

    def _arguments(self, inputs: int, outputs: int) -> dict[str, Any]:
        return {
            "spatial_dims": self.dims,
            "in_channels": inputs,
            "out_channels": outputs,
            "channels": self.channels,
            "strides": (2,) * (len(self.channels) - 1),
            "dropout": self.dropout,
        }

    def attention(self, network: "nn.Module") -> "Sequence[nn.Module]":
        """The gates of the skip connections, from the uppermost level down."""
        from monai.networks.nets.attentionunet import AttentionBlock  # noqa: PLC0415 - heavy

        return [module.psi for module in network.modules() if isinstance(module, AttentionBlock)]


__all__ = ["AttentionUNet"]
