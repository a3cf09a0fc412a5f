"""What our own networks are made of. Imports torch: only where a network is built."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Normalisation = Callable[[int], nn.Module]


class PlainUNet(nn.Module):
    """Double convolutions, max pooling, nearest voxels on the way up; see `common.models.plain_unet`."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        *,
        widths: Sequence[int],
        dropout: float,
        norm: Normalisation | None,
    ) -> None:
        super().__init__()
        drop = nn.Dropout2d if dims == 2 else nn.Dropout3d
        levels = len(widths)
        self.down = nn.ModuleList(
            nn.Sequential(_twice(dims, before, after, norm), drop(dropout if level >= levels - 2 else 0.0))
            for level, (before, after) in enumerate(pairwise((inputs, *widths)))
        )
        self.up = nn.ModuleList(_twice(dims, below + own, own, norm) for own, below in pairwise(widths))
        self.head = convolution(dims, widths[0], outputs, 1)
        self.pool = (nn.MaxPool2d if dims == 2 else nn.MaxPool3d)(2)
        self.apply(_he)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, *spatial) to (N, outputs, *spatial)."""
        skips = [self.down[0](images)]
        for block in list(self.down)[1:]:
            skips.append(block(self.pool(skips[-1])))
        values = skips.pop()
        for block in reversed(self.up):
            above = skips.pop()
            values = block(torch.cat([above, functional.interpolate(values, scale_factor=2, mode="nearest")], 1))
        logits: Tensor = self.head(values)
        return logits


class SegNet(nn.Module):
    """Pools with indices and unpools by them, without skip connections; see `common.models.segnet`."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        *,
        widths: Sequence[int],
        dropout: float,
        norm: Normalisation,
    ) -> None:
        super().__init__()
        drop = nn.Dropout2d if dims == 2 else nn.Dropout3d
        self.down = nn.ModuleList(
            nn.Sequential(_twice(dims, before, after, norm), drop(dropout))
            for before, after in pairwise((inputs, *widths))
        )
        self.up = nn.ModuleList(
            nn.Sequential(_twice(dims, below, own, norm), drop(dropout))
            for own, below in pairwise((widths[0], *widths))
        )
        self.head = convolution(dims, widths[0], outputs, 3)
        self.pool = (nn.MaxPool2d if dims == 2 else nn.MaxPool3d)(2, return_indices=True)
        self.unpool = (nn.MaxUnpool2d if dims == 2 else nn.MaxUnpool3d)(2)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, *spatial) to (N, outputs, *spatial)."""
        values, places = images, []
        for block in self.down:
            values, indices = self.pool(block(values))
            places.append(indices)
        for block in reversed(self.up):
            values = block(self.unpool(values, places.pop()))
        logits: Tensor = self.head(values)
        return logits


class WNet(nn.Module):
    """Two small U-Nets in a row; the second sees the image and what the first says; see `common.models.wnet`."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        *,
        widths: Sequence[int],
        dropout: float,
        norm: Normalisation,
    ) -> None:
        super().__init__()
        self.first = _SmallUNet(dims, inputs, outputs, widths=widths, dropout=dropout, norm=norm)
        self.second = _SmallUNet(dims, inputs + outputs, outputs, widths=widths, dropout=dropout, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, *spatial) to (N, outputs, *spatial)."""
        guess: Tensor = self.first(images)
        logits: Tensor = self.second(torch.cat([images, guess.softmax(1)], 1))
        return logits


class _SmallUNet(nn.Module):
    """Residual blocks; a convolution on each skip connection; transposed convolutions on the way up."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        *,
        widths: Sequence[int],
        dropout: float,
        norm: Normalisation,
    ) -> None:
        super().__init__()
        raised = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        self.down = nn.ModuleList(_Residual(dims, before, after, norm) for before, after in pairwise((inputs, *widths)))
        self.bridges = nn.ModuleList(
            nn.Sequential(convolution(dims, own, own, 3), nn.ReLU(), norm(own)) for own in widths[:-1]
        )
        self.raised = nn.ModuleList(raised(below, own, 2, stride=2) for own, below in pairwise(widths))
        self.up = nn.ModuleList(_Residual(dims, 2 * own, own, norm) for own in widths[:-1])
        self.drop = (nn.Dropout2d if dims == 2 else nn.Dropout3d)(dropout)
        self.head = convolution(dims, widths[0], outputs, 1)
        self.pool = (nn.MaxPool2d if dims == 2 else nn.MaxPool3d)(2)

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

    def __init__(self, dims: int, before: int, after: int, norm: Normalisation) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(convolution(dims, before, after, 3), nn.ReLU(), norm(after)),
            *(convolution(dims, after, after, 3), nn.ReLU(), norm(after)),
        )
        self.shortcut = nn.Sequential(convolution(dims, before, after, 1), norm(after))

    def forward(self, values: Tensor) -> Tensor:
        summed: Tensor = self.block(values) + self.shortcut(values)
        return summed


def convolution(dims: int, before: int, after: int, size: int) -> nn.Module:
    """Of `size` voxels along each axis, an odd number; the output has the input's size."""
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(before, after, size, padding=size // 2)


def _twice(dims: int, before: int, after: int, norm: Normalisation | None) -> nn.Sequential:
    """Two convolutions of 3 voxels, each with its normalisation, if any, and ReLU."""
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [convolution(dims, width, after, 3), *([norm(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def _he(layer: nn.Module) -> None:
    """He's initial weights keep a signal's size through many ReLUs; torch's own halve it at each, and more."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


__all__ = ["PlainUNet", "SegNet", "WNet", "convolution"]
