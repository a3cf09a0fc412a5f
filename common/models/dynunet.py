"""MONAI's DynUNet, the network of nnU-Net (Isensee et al., Nature Methods 2021), built from the run's widths."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from common.models.levels import Levels

if TYPE_CHECKING:
    from torch import nn


class DynUNet(Levels):
    """Two convolutions a level, strided where it goes down, leaky ReLU; optionally residual."""

    architecture: Literal["dynunet"] = "dynunet"
    residual: bool = False

    LEAST: ClassVar[int] = 3

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """MONAI's, without heads for deep supervision."""
        from monai.networks.nets.dynunet import DynUNet as MonaiDynUNet  # noqa: PLC0415 - heavy

        return self.normalised(MonaiDynUNet(**self._arguments(inputs, outputs)))

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        network = {"_target_": "monai.networks.nets.DynUNet", **self._arguments(inputs, outputs)}
        return self.described_normalised(network) if self.norm == "group" else network

    def head(self, network: "nn.Module") -> "nn.Module":
        """The convolution of one voxel that makes the outputs."""
        last: nn.Module = network.output_block  # type: ignore[assignment]  # a module of MONAI's
        return last

    def _arguments(self, inputs: int, outputs: int) -> dict[str, Any]:
        levels = len(self.channels)
        return {
            "spatial_dims": self.dims,
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": (3,) * levels,
            "strides": (1, *(2,) * (levels - 1)),
            "upsample_kernel_size": (2,) * (levels - 1),
            "filters": self.channels,
            "dropout": self.dropout or None,
            "norm_name": ("INSTANCE", {"affine": True}),
            "res_block": self.residual,
        }


__all__ = ["DynUNet"]
