"""MONAI's DynUNet, the network of nnU-Net (Isensee et al., Nature Methods 2021), built from the run's widths."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from common.document.formats import Since
from common.models.levels import Levels, check_supervised, level_weights
from common.models.network import LAYERS

if TYPE_CHECKING:
    from torch import nn


class DynUNet(Levels):
    """Two convolutions a level, strided where it goes down, leaky ReLU; optionally residual."""

    architecture: Literal["dynunet"] = "dynunet"
    residual: bool = False
    # In training the levels below the first answer too, each with a head and a loss of its own.
    deep_supervision: Annotated[bool, Since(2)] = False

    LEAST: ClassVar[int] = 3

    @model_validator(mode="after")
    def _has_levels_to_supervise(self) -> Self:
        check_supervised(len(self.channels), supervised=self.deep_supervision)
        return self

    @property
    def auxiliary(self) -> tuple[float, ...]:
        """1/2, 1/4 and so on down."""
        return level_weights(len(self.channels), supervised=self.deep_supervision)

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """MONAI's; with deep supervision its parts in a network of ours."""
        from monai.networks.nets.dynunet import DynUNet as MonaiDynUNet  # noqa: PLC0415 - heavy

        from common.models import layers  # noqa: PLC0415 - torch

        network = self.normalised(MonaiDynUNet(**self._arguments(inputs, outputs)))
        if not self.auxiliary:
            return network
        return layers.SupervisedDynUNet(network, self.dims, outputs, len(self.auxiliary))

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        network = {"_target_": "monai.networks.nets.DynUNet", **self._arguments(inputs, outputs)}
        network = self.described_normalised(network) if self.norm == "group" else network
        if not self.auxiliary:
            return network
        sizes = {"dims": self.dims, "outputs": outputs, "supervised": len(self.auxiliary)}
        return {"_target_": f"{LAYERS}.SupervisedDynUNet", "network": network, **sizes}

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
