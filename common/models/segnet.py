"""SegNet: the way up puts each value back where pooling took it from (Badrinarayanan et al., TPAMI 2017)."""

from typing import TYPE_CHECKING, Any, Literal

from common.models.levels import Levels
from common.models.network import LAYERS

if TYPE_CHECKING:
    from torch import nn


class SegNet(Levels):
    """Each level is pooled, the last too; only the places of the maxima pass from the way down to the way up."""

    architecture: Literal["segnet"] = "segnet"

    @property
    def stride(self) -> int:
        """2 to the power of the levels."""
        return 1 << len(self.channels)

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """See `common.models.layers`."""
        from common.models import layers  # noqa: PLC0415 - torch

        return layers.SegNet(self.blocks(), inputs, outputs, self.channels)

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        sizes = {"inputs": inputs, "outputs": outputs, "widths": self.channels}
        return {"_target_": f"{LAYERS}.SegNet", "blocks": self.described_blocks(), **sizes}

    def head(self, network: "nn.Module") -> "nn.Module":
        """The convolution that makes the outputs."""
        last: nn.Module = network.head  # type: ignore[assignment]  # a module of ours
        return last


__all__ = ["SegNet"]
