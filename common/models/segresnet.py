"""MONAI's SegResNet, an asymmetric residual encoder and decoder (Myronenko, BrainLes 2018), without its autoencoder."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from common.models.levels import Levels

if TYPE_CHECKING:
    from torch import nn

_GROUPS = 4


class SegResNet(Levels):
    """Residual blocks, more of them on the way down than up; each level has twice the channels of the one above."""

    architecture: Literal["segresnet"] = "segresnet"
    norm: Literal["group", "instance"] = "group"

    @model_validator(mode="after")
    def _doubles(self) -> "SegResNet":
        for above, below in pairwise(self.channels):
            if below != 2 * above:
                raise ValueError(f"channels of segresnet double from level to level: below {above} write {2 * above}")
        return self

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """MONAI's, with transposed convolutions on the way up: the gradient of its interpolation differs run by run."""
        from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet  # noqa: PLC0415 - heavy

        return MonaiSegResNet(**self._arguments(inputs, outputs))

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        return {"_target_": "monai.networks.nets.SegResNet", **self._arguments(inputs, outputs)}

    def head(self, network: "nn.Module") -> "nn.Module":
        """Normalisation, activation and the convolution of one voxel that makes the outputs."""
        last: nn.Module = network.conv_final  # type: ignore[assignment]  # a module of MONAI's
        return last

    def _arguments(self, inputs: int, outputs: int) -> dict[str, Any]:
        levels = len(self.channels)
        return {
            "spatial_dims": self.dims,
            "init_filters": self.channels[0],
            "in_channels": inputs,
            "out_channels": outputs,
            "dropout_prob": self.dropout or None,
            "norm": ("GROUP", {"num_groups": _GROUPS}) if self.norm == "group" else ("INSTANCE", {"affine": True}),
            # One block on the first level, two on those between, four at the bottom, as published.
            "blocks_down": (1, *(2,) * (levels - 2), 4),
            "blocks_up": (1,) * (levels - 1),
            "upsample_mode": "deconv",
        }


__all__ = ["SegResNet"]
