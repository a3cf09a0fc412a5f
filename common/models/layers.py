"""What our own networks are made of. Imports torch: only where a network is built.

Imports nothing else: a MONAI bundle of such a network holds a copy of this file.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_GROUPS = 4


@dataclass(frozen=True)
class Blocks:
    """What the layers of a network have in common. normalisation: made for so many channels; None: none."""

    dims: int
    dropout: float
    normalisation: Callable[[int], nn.Module] | None

    def convolution(self, before: int, after: int, size: int) -> nn.Module:
        """Of `size` voxels along each axis, an odd number; the output has the input's size."""
        return (nn.Conv2d if self.dims == 2 else nn.Conv3d)(before, after, size, padding=size // 2)

    def twice(self, before: int, after: int) -> nn.Sequential:
        """Two convolutions of 3 voxels, each with its normalisation, if any, and ReLU."""
        layers: list[nn.Module] = []
        for width in (before, after):
            layers += [self.convolution(width, after, 3), self.norm(after), nn.ReLU()]
        return nn.Sequential(*layers)

    def norm(self, channels: int) -> nn.Module:
        """The normalisation; nothing where there is none."""
        return nn.Identity() if self.normalisation is None else self.normalisation(channels)

    def drop(self) -> nn.Module:
        """Dropout of whole channels."""
        return (nn.Dropout2d if self.dims == 2 else nn.Dropout3d)(self.dropout)

    def pool(self, *, return_indices: bool = False) -> nn.Module:
        """The largest of two voxels along each axis."""
        return (nn.MaxPool2d if self.dims == 2 else nn.MaxPool3d)(2, return_indices=return_indices)


def normaliser(dims: int, norm: str) -> Callable[[int], nn.Module] | None:
    """What makes a layer that normalises each sample by itself, with a weight and a bias for each of so many channels.

    Args:
        dims: axes of the image.
        norm: instance, group, or none.
    """
    if norm == "none":
        return None
    if norm == "group":
        return lambda channels: nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    instance = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    return lambda channels: instance(channels, affine=True)


def normalised(network: nn.Module, dims: int, norm: str) -> nn.Module:
    """The network of a library with its normalisations replaced by `normaliser`'s; its other weights stay."""
    theirs = nn.BatchNorm2d | nn.BatchNorm3d | nn.InstanceNorm2d | nn.InstanceNorm3d
    made = normaliser(dims, norm)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, theirs) and made is not None:
                setattr(parent, name, made(child.num_features))
    return network


def of_images(network: nn.Module, dims: int, norm: str) -> nn.Module:
    """A ResNet of a library as ours: `normalised`, a mean that is deterministic, and no layer that writes to its input.

    Where gradients are those of one patient each, what goes into a layer is looked at afterwards.
    """
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    network.avgpool = Mean(keep_axes=True)
    return normalised(network, dims, norm)


class PlainUNet(nn.Module):
    """Double convolutions, max pooling, nearest voxels on the way up; see `common.models.plain_unet`.

    supervised: levels below the first that answer too, in training.
    """

    def __init__(
        self, blocks: Blocks, inputs: int, outputs: int, widths: Sequence[int], *, supervised: int = 0
    ) -> None:
        super().__init__()
        levels = len(widths)
        self.down = nn.ModuleList(
            nn.Sequential(blocks.twice(before, after), *([blocks.drop()] if level >= levels - 2 else []))
            for level, (before, after) in enumerate(pairwise((inputs, *widths)))
        )
        self.up = nn.ModuleList(blocks.twice(below + own, own) for own, below in pairwise(widths))
        self.head = blocks.convolution(widths[0], outputs, 1)
        self.pool = blocks.pool()
        if supervised:
            self.heads = nn.ModuleList(blocks.convolution(own, outputs, 1) for own in widths[1 : 1 + supervised])
        self.supervised = supervised
        self.apply(_he)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, *spatial) to (N, outputs, *spatial); with `supervised`, in training, to more: see `_beside`."""
        skips = [self.down[0](images)]
        for block in list(self.down)[1:]:
            skips.append(block(self.pool(skips[-1])))
        values, levels = skips.pop(), []
        for block in reversed(self.up):
            above = skips.pop()
            values = block(torch.cat([above, functional.interpolate(values, scale_factor=2, mode="nearest")], 1))
            levels.append(values)
        logits: Tensor = self.head(values)
        return _beside(logits, self.heads, levels[-2::-1]) if self.supervised and self.training else logits


class SupervisedDynUNet(nn.Module):
    """MONAI's DynUNet, whose levels below the first answer too, in training; see `common.models.dynunet`.

    Its own way to do so keeps what it computed for one batch in the network, where the next would find it.

    network: without deep supervision; its parts are taken. supervised: how many levels answer.
    """

    input_block: nn.Module
    downsamples: nn.ModuleList
    bottleneck: nn.Module
    upsamples: nn.ModuleList
    output_block: nn.Module

    def __init__(self, network: nn.Module, dims: int, outputs: int, supervised: int) -> None:
        super().__init__()
        for name in ("input_block", "downsamples", "bottleneck", "upsamples", "output_block"):
            setattr(self, name, getattr(network, name))
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        widths: Sequence[int] = network.filters  # type: ignore[assignment]  # MONAI has numbers there
        self.heads = nn.ModuleList(convolution(own, outputs, 1) for own in widths[1 : 1 + supervised])

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, *spatial) to (N, outputs, *spatial); in training to more: see `_beside`."""
        skips = [self.input_block(images)]
        for block in self.downsamples:
            skips.append(block(skips[-1]))
        values, levels = self.bottleneck(skips[-1]), []
        for block in self.upsamples:
            values = block(values, skips.pop())
            levels.append(values)
        logits: Tensor = self.output_block(values)
        return _beside(logits, self.heads, levels[-2::-1]) if self.training else logits


class SegNet(nn.Module):
    """Pools with indices and unpools by them, without skip connections; see `common.models.segnet`."""

    def __init__(self, blocks: Blocks, inputs: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(blocks.twice(before, after), blocks.drop()) for before, after in pairwise((inputs, *widths))
        )
        self.up = nn.ModuleList(
            nn.Sequential(blocks.twice(below, own), blocks.drop()) for own, below in pairwise((widths[0], *widths))
        )
        self.head = blocks.convolution(widths[0], outputs, 3)
        self.pool = blocks.pool(return_indices=True)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, *spatial) to (N, outputs, *spatial)."""
        values, places = images, []
        for block in self.down:
            values, indices = self.pool(block(values))
            places.append(indices)
        for block in reversed(self.up):
            values = block(_unpooled(values, places.pop()))
        logits: Tensor = self.head(values)
        return logits


class WNet(nn.Module):
    """Two small U-Nets in a row; the second sees the image and what the first says; see `common.models.wnet`.

    both: in training the first one's answer stands beside the second's.
    """

    def __init__(self, blocks: Blocks, inputs: int, outputs: int, widths: Sequence[int], *, both: bool = False) -> None:
        super().__init__()
        self.both = both
        self.first = _SmallUNet(blocks, inputs, outputs, widths)
        self.second = _SmallUNet(blocks, inputs + outputs, outputs, widths)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, *spatial) to (N, outputs, *spatial)."""
        guess: Tensor = self.first(images)
        logits: Tensor = self.second(torch.cat([images, guess.softmax(1)], 1))
        return torch.cat([logits, guess], 1) if self.both and self.training else logits


class CNN(nn.Module):
    """Levels, the mean over the last one's voxels, and a layer of outputs; see `common.models.cnn`."""

    def __init__(self, blocks: Blocks, inputs: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(blocks.twice(before, after) for before, after in pairwise((inputs, *widths)))
        self.pool, self.mean, self.drop = blocks.pool(), Mean(), nn.Dropout(blocks.dropout)
        self.head = nn.Linear(widths[-1], outputs)
        self.apply(_he)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, *spatial) to (N, outputs)."""
        values = self.down[0](images)
        for block in list(self.down)[1:]:
            values = block(self.pool(values))
        logits: Tensor = self.head(self.drop(self.mean(values)))
        return logits


class Mean(nn.Module):
    """Over the voxels; torch's own pooling is not deterministic on a GPU."""

    def __init__(self, *, keep_axes: bool = False) -> None:
        super().__init__()
        self.keep_axes = keep_axes

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, *spatial) to (N, C), or with its axes kept to (N, C, 1, ...)."""
        return values.mean(tuple(range(2, values.ndim)), keepdim=self.keep_axes)


class _SmallUNet(nn.Module):
    """Residual blocks; a convolution on each skip connection; transposed convolutions on the way up."""

    def __init__(self, blocks: Blocks, inputs: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        raised = nn.ConvTranspose2d if blocks.dims == 2 else nn.ConvTranspose3d
        self.down = nn.ModuleList(_Residual(blocks, before, after) for before, after in pairwise((inputs, *widths)))
        self.bridges = nn.ModuleList(
            nn.Sequential(blocks.convolution(own, own, 3), nn.ReLU(), blocks.norm(own)) for own in widths[:-1]
        )
        self.raised = nn.ModuleList(raised(below, own, 2, stride=2) for own, below in pairwise(widths))
        self.up = nn.ModuleList(_Residual(blocks, 2 * own, own) for own in widths[:-1])
        self.drop = blocks.drop()
        self.head = blocks.convolution(widths[0], outputs, 1)
        self.pool = blocks.pool()

    def forward(self, images: Tensor) -> Tensor:
        skips = [self.down[0](images)]
        for block in list(self.down)[1:]:
            skips.append(block(self.pool(skips[-1])))
        values = self.drop(skips.pop())
        for block, raised, bridge in reversed(list(zip(self.up, self.raised, self.bridges, strict=True))):
            values = block(torch.cat([raised(values), bridge(skips.pop())], 1))
        logits: Tensor = self.head(values)
        return logits


class _Residual(nn.Module):
    """Two convolutions, each with ReLU and a normalisation, beside one of a voxel."""

    def __init__(self, blocks: Blocks, before: int, after: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(blocks.convolution(before, after, 3), nn.ReLU(), blocks.norm(after)),
            *(blocks.convolution(after, after, 3), nn.ReLU(), blocks.norm(after)),
        )
        self.shortcut = nn.Sequential(blocks.convolution(before, after, 1), blocks.norm(after))

    def forward(self, values: Tensor) -> Tensor:
        summed: Tensor = self.block(values) + self.shortcut(values)
        return summed


def _beside(logits: Tensor, heads: Iterable[nn.Module], levels: Sequence[Tensor]) -> Tensor:
    """(N, (1 + A) outputs, *spatial): the answer, and beside it those of the levels below, each voxel repeated."""
    sizes = logits.shape[2:]
    further = [
        functional.interpolate(head(values), size=sizes, mode="nearest")
        for head, values in zip(heads, levels, strict=False)  # the lowest level answers nothing
    ]
    return torch.cat([logits, *further], 1)


def _unpooled(values: Tensor, places: Tensor) -> Tensor:
    """Each value back where pooling by 2 took it from, zeros beside it; torch's own is not deterministic.

    Args:
        values: (N, C, *spatial).
        places: of the same shape, in the image of twice the size, its axes flattened.
    """
    size = [2 * edge for edge in values.shape[2:]]
    empty = values.new_zeros((*values.shape[:2], math.prod(size)))
    return empty.scatter(2, places.flatten(2), values.flatten(2)).reshape(*values.shape[:2], *size)


def _he(layer: nn.Module) -> None:
    """He's initial weights keep a signal's size through many ReLUs; torch's own halve it at each, and more."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


__all__ = [
    "CNN",
    "Blocks",
    "Mean",
    "PlainUNet",
    "SegNet",
    "SupervisedDynUNet",
    "WNet",
    "normalised",
    "normaliser",
    "of_images",
]
