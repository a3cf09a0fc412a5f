"""What a network is: its settings, which are the [model] table of a run, and what is built from them.

A network normalises each sample by itself: BatchNorm mixes patients, which voids differential privacy, and its running
statistics would leave the hospital. Settings are read by processes that hold no torch, so a network imports it, and the
library that it comes from, where it builds.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from common.document.table import Table

if TYPE_CHECKING:
    from torch import nn

# The module of a MONAI bundle that holds a copy of common/models/layers.py, for what MONAI has no class of.
LAYERS = "scripts.layers"


class Network(Table):
    """The network. Inputs and outputs follow from the data contract and the task."""

    architecture: str
    dims: Literal[2, 3] = 2

    # Whether it answers each voxel; else the image as a whole, whatever its size.
    DENSE: ClassVar[bool] = True
    # Whether a part of it takes what another says of a voxel for one class (softmax), so that classes cannot overlap.
    EXCLUSIVE: ClassVar[bool] = False

    @property
    @abstractmethod
    def stride(self) -> int:
        """What every edge of an image must be a multiple of, in voxels."""

    @abstractmethod
    def build(self, inputs: int, outputs: int) -> "nn.Module":
        """The network with fresh weights from torch's global generator.

        Returns:
            A module from images (N, inputs, *spatial) to (N, outputs, *spatial), float32; axes are `dims`. Without
            DENSE to (N, outputs).
        """

    @abstractmethod
    def head(self, network: "nn.Module") -> "nn.Module":
        """The last block of a built network: what fine-tuning trains beside the normalisations."""

    @property
    def auxiliary(self) -> tuple[float, ...]:
        """Weights of further answers beside the first, which weighs 1, each with a loss of its own.

        In training alone a network with some puts out all answers beside each other, (N, (1 + A) outputs, *spatial),
        the first one first. They are of the same sample, so that patients stay apart.
        """
        return ()

    @property
    def has_norms(self) -> bool:
        """Whether it has normalisations, which all have weights and biases."""
        return getattr(self, "norm", None) != "none"

    def described(self, inputs: int, outputs: int) -> dict[str, Any] | None:
        """What `build` builds, as a MONAI bundle writes it: a class under `_target_`, and its arguments.

        Returns:
            Plain values of JSON; None: it cannot be told in classes of MONAI and of `LAYERS`.
        """
        return None

    def attention(self, network: "nn.Module") -> "Sequence[nn.Module]":
        """The modules of a built network that say where it looks, the finest grid first; most have none.

        What each puts out is (N, 1, *spatial) from 0 to 1, on a grid of its own.
        """
        return ()

    def refuse(self, patch_size: Sequence[int]) -> str | None:
        """Why it cannot train on crops of this size, beside the stride; None: it can."""
        return None


__all__ = ["LAYERS", "Network"]
