"""W-Net: two small U-Nets, the second of which mends what the first says (Galdran et al., Scientific Reports 2022)."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from common.document.formats import Since
from common.models.levels import Levels, Width
from common.models.network import LAYERS

if TYPE_CHECKING:
    from torch import nn


class WNet(Levels):
    """About 70 thousand weights in 2D, and made for thin structures such as vessels."""

    architecture: Literal["wnet"] = "wnet"
    channels: Annotated[tuple[Width, ...], Field(max_length=10)] = (8, 16, 32)
    # Weight of what the first one says, beside what the second says, which weighs 1.
    auxiliary_loss: Annotated[float, Field(ge=0, le=10), Since(2)] = 0.0
    EXCLUSIVE: ClassVar[bool] = True

    @property
    def auxiliary(self) -> tuple[float, ...]:
        """As it says."""
        return (self.auxiliary_loss,) if self.auxiliary_loss else ()

    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """See `common.models.layers`."""
        from common.models import layers  # noqa: PLC0415 - torch

        return layers.WNet(self.blocks(), inputs, outputs, self.channels, both=bool(self.auxiliary))

    def described(self, inputs: int, outputs: int) -> dict[str, Any]:
        """See `build`."""
        sizes = {"inputs": inputs, "outputs": outputs, "widths": self.channels}
        return {"_target_": f"{LAYERS}.WNet", "blocks": self.described_blocks(), **sizes}

    def head(self, network: "nn.Module") -> "nn.Module":
        """The convolution that makes the outputs of the second."""
        last: nn.Module = network.second.head  # type: ignore[assignment, union-attr]  # a module of ours
        return last


__all__ = ["WNet"]
