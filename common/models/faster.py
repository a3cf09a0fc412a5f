"""Layers of torch's that compute the same on a CPU in less time. Weights, their names, shapes and layout stay.

What was measured, with torch 2.13 on one thread of a CPU with AVX-512 and bfloat16; docs/benchmarks.md has the figures:

- A convolution of few channels wants a voxel's channels beside each other in memory (channels last): of 8 to 8
  channels, 3 x 3, its backward pass then takes a fifth. From `_WIDE` channels on the copies take what is gained, and in
  float32 nothing is gained where the kernel is one voxel.
- Max pooling takes a fifth to a tenth so.
- Instance norm is group norm with a group for each channel. Of that torch has a vectorised kernel: a quarter of the
  time in float32, three quarters in bfloat16. Its kernel for channels last takes ten times as long.
- PReLU with one weight is a lerp; torch's own backward pass is not vectorised.

Values keep the layout that they arrive in, and gradients go back in it: an element-wise kernel that meets two layouts
takes ten times as long. On a GPU, inside `vmap` and in an export each layer is torch's own.

One thing is mended. Of an image one voxel wide, or that becomes so, torch 2.13's bfloat16 kernels for a convolution in
steps of two read memory that they never wrote, in either layout: values and gradients came out infinite. Such an image
is convolved in float32.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDE = 32  # channels, of input and output the fewer
_MEASURED = (torch.bfloat16, torch.float32)


def faster(network: nn.Module) -> nn.Module:
    """Put the faster layers in the place of torch's own, in place; layers of derived classes stay as they are."""
    for module in network.modules():
        if (kind := _FASTER.get(type(module))) is not None:
            # The object stays, and with it whatever is tied to it: a library's layer may stand under two names.
            module.__class__ = kind
    return network


def laid_out(layer: Any, value: Tensor) -> Tensor:
    """A convolution's input, or its output's gradient, in the type and layout in which the layer computes it soonest.

    Args:
        layer: of two or three axes, transposed or not.
        value: (N, C, *spatial).

    Returns:
        The same values; of another type only under autocast. The tensor itself where nothing is known to be gained.
    """
    if layer.groups > 1 or not _is_plain(value, len(layer.kernel_size)) or 1 in value.shape[2:]:
        return value
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    if dtype not in _MEASURED or value.dtype not in _MEASURED:
        return value
    wide = min(layer.in_channels, layer.out_channels) >= _WIDE
    single = dtype is torch.float32 and all(edge == 1 for edge in layer.kernel_size)
    return _contiguous(value) if wide or single else _channels_last(value.to(dtype))


class _Arranged(torch.autograd.Function):
    """A copy in another layout; its gradient goes back in the one that was there."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, layout: torch.memory_format) -> Tensor:
        ctx.before = torch.contiguous_format if value.is_contiguous() else _last(value)
        return value.clone(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.contiguous(memory_format=ctx.before), None


def _channels_last(value: Tensor) -> Tensor:
    return value if _is_channels_last(value) else _arranged(value, _last(value))


def _contiguous(value: Tensor) -> Tensor:
    return value if value.is_contiguous() else _arranged(value, torch.contiguous_format)


def _arranged(value: Tensor, layout: torch.memory_format) -> Tensor:
    arranged: Tensor = _Arranged.apply(value, layout)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return arranged


def _last(value: Tensor) -> torch.memory_format:
    return torch.channels_last if value.ndim == 4 else torch.channels_last_3d


def _is_channels_last(value: Tensor) -> bool:
    # The strides of a single channel fit both layouts, and then a kernel takes it for the other one.
    return value.shape[1] > 1 and value.is_contiguous(memory_format=_last(value))


def _is_plain(value: Tensor, dims: int) -> bool:
    """(N, C, *spatial) on a CPU, neither in `vmap` nor in an export."""
    return (
        value.device.type == "cpu"
        and value.ndim == 2 + dims
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def _convolved(layer: Any, value: Tensor) -> Tensor:
    arranged, weight = laid_out(layer, value), layer.weight
    if weight.shape[1] == 1 and arranged.stride(1) == 1:  # a single channel, channels last: the weight has to say so
        weight = _arranged(weight, _last(weight))
    convolved: Tensor = layer._conv_forward(arranged, weight, layer.bias)
    return convolved


@contextmanager
def _safely(layer: Any, value: Tensor) -> Iterator[Tensor]:
    """The value as it is; one that is or becomes a voxel wide in float32, and with it what is computed inside."""
    plain = torch.is_autocast_enabled("cpu") and _is_plain(value, len(layer.kernel_size))
    if plain and 1 in (*value.shape[2:], *_convolved_edges(layer, value)):
        with torch.autocast("cpu", enabled=False):
            yield value.float()
    else:
        yield value


def _convolved_edges(layer: Any, value: Tensor) -> list[int]:
    """The image's edges after a convolution; after a transposed one they are no shorter than before, and not told."""
    if layer.transposed:
        return []
    pads = iter(layer._reversed_padding_repeated_twice)  # two for each axis, the last axis first
    added = [before + after for before, after in zip(pads, pads, strict=True)][::-1]
    described = zip(value.shape[2:], added, layer.kernel_size, layer.dilation, layer.stride, strict=True)
    return [
        (edge + pad - dilation * (kernel - 1) - 1) // stride + 1 for edge, pad, kernel, dilation, stride in described
    ]


def _instance_normalised(layer: Any, value: Tensor, dims: int) -> Tensor | None:
    """None where torch's own layer answers: it uses what it learned, or complains of what it is given."""
    if not _is_plain(value, dims) or layer.track_running_stats or value.shape[1] != layer.num_features:
        return None
    return _normalised(layer, value, layer.num_features) if math.prod(value.shape[2:]) > 1 else None


def _normalised(layer: Any, value: Tensor, groups: int) -> Tensor:
    grouped = functional.group_norm(_contiguous(value), groups, layer.weight, layer.bias, layer.eps)
    return _channels_last(grouped) if _is_channels_last(value) else grouped


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name, here and below
        with _safely(self, input) as value:
            return _convolved(self, value)


class _Conv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        with _safely(self, input) as value:
            return _convolved(self, value)


class _ConvTranspose2d(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        with _safely(self, input) as value:
            return super().forward(laid_out(self, value), output_size)


class _ConvTranspose3d(nn.ConvTranspose3d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        with _safely(self, input) as value:
            return super().forward(laid_out(self, value), output_size)


class _MaxPool2d(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Any:  # noqa: A002
        return super().forward(_channels_last(input) if _is_plain(input, 2) else input)


class _MaxPool3d(nn.MaxPool3d):
    def forward(self, input: Tensor) -> Any:  # noqa: A002
        return super().forward(_channels_last(input) if _is_plain(input, 3) else input)


class _InstanceNorm2d(nn.InstanceNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        normalised = _instance_normalised(self, input, 2)
        return super().forward(input) if normalised is None else normalised


class _InstanceNorm3d(nn.InstanceNorm3d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        normalised = _instance_normalised(self, input, 3)
        return super().forward(input) if normalised is None else normalised


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if input.ndim not in (4, 5) or not _is_plain(input, input.ndim - 2):
            return super().forward(input)
        return _normalised(self, input, self.num_groups)


class _PReLU(nn.PReLU):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """relu(x) + weight * (x - relu(x)), element by element."""
        # Several weights lerp would take for those of the last axis.
        if self.num_parameters != 1 or not _is_plain(input, input.ndim - 2):
            return super().forward(input)
        return torch.lerp(input.relu(), input, self.weight.to(input.dtype))


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
    nn.ConvTranspose2d: _ConvTranspose2d,
    nn.ConvTranspose3d: _ConvTranspose3d,
    nn.MaxPool2d: _MaxPool2d,
    nn.MaxPool3d: _MaxPool3d,
    nn.InstanceNorm2d: _InstanceNorm2d,
    nn.InstanceNorm3d: _InstanceNorm3d,
    nn.GroupNorm: _GroupNorm,
    nn.PReLU: _PReLU,
}

__all__ = ["faster", "laid_out"]
