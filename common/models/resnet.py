"""MONAI's ResNet, which answers an image as a whole (He et al., CVPR 2016); 3D after Hara et al., CVPR 2018.

A convolution of 7 voxels with stride 2, max pooling, then four stages, of which each but the first halves the image,
the mean over what is left, and one layer of outputs. Images of any size go through: the mean is over however many
voxels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from common.models.network import LAYERS, Network

if TYPE_CHECKING:
    from torch import nn

_HALVINGS = 5
_NARROW = 1 << (_HALVINGS - 1)
_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
_BOTTLENECK = 50  # from this depth on a block is three convolutions, and its output four times as wide


class ResNet(Network):
    """Of 18 layers and 64 filters 11 million weights in 2D, 33 million in 3D."""

    architecture: Literal["resnet"] = "resnet"
    depth: Literal[10, 18, 50] = 18
    # Of the first stage; each further one has twice as many.
    filters: Annotated[int, Field(ge=4, le=256, multiple_of=4)] = 64
    # Group norm keeps how strong a channel is on the whole, which the mean over the image then reads.
    norm: Literal["group", "instance"] = "group"

    DENSE: ClassVar[bool] = False

    @property
    def stride(self) -> int:
        """Any size goes through."""
        return 1

    def refuse(self, patch_size: Sequence[int]) -> str | None:
        """Crops that shrink to one voxel inside, where instance norm is undefined, or to one column before a stride.

        There torch 2.13's bfloat16 gradient of a 3 x 3 convolution reads memory that it never wrote.
        """
        if any(edge <= _NARROW for edge in patch_size[-2:]):
            return (
                f"training.patch-size {list(patch_size)} is too small for this network, which halves it {_HALVINGS} "
                f"times. Use crops of more than {_NARROW} along rows and columns, or architecture = 'cnn'."
            )
        if self.norm != "instance" or any(edge > 1 << _HALVINGS for edge in patch_size):
            return None
        return (
            f"training.patch-size {list(patch_size)} shrinks to a single voxel in the network, where norm 'instance' "
            f"is undefined. Use crops of more than {1 << _HALVINGS} along one axis, or norm = 'group'."
        )

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """MONAI's, with its batch norms replaced: they mix patients."""
        from monai.networks.nets.resnet import ResNet as MonaiResNet  # noqa: PLC0415 - heavy

        from common.models import layers  # noqa: PLC0415 - torch

        return layers.of_images(MonaiResNet(**self._arguments(inputs, outputs)), self.dims, self.norm)

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        network = {"_target_": "monai.networks.nets.ResNet", **self._arguments(inputs, outputs)}
        return {"_target_": f"{LAYERS}.of_images", "network": network, "dims": self.dims, "norm": self.norm}

    def head(self, network: "nn.Module") -> "nn.Module":
        """The layer that makes the outputs."""
        last: nn.Module = network.fc  # type: ignore[assignment]  # a module of MONAI's
        return last

    def _arguments(self, inputs: int, outputs: int) -> dict[str, Any]:
        return {
            "block": "bottleneck" if self.depth >= _BOTTLENECK else "basic",
            "layers": list(_BLOCKS[self.depth]),
            "block_inplanes": [self.filters << stage for stage in range(4)],
            "spatial_dims": self.dims,
            "n_input_channels": inputs,
            "conv1_t_size": 7,
            "conv1_t_stride": 2,
            "num_classes": outputs,
        }


__all__ = ["ResNet"]
