"""Book-keeping: every patient's gradient from one forward and one backward pass over all of them.

The gradient of a layer's weights follows from its input and from the gradient of its output. Both pass by in a batched
step anyway; taken over one patient's rows alone they give that patient's gradient (Bu et al., ICML 2023,
https://arxiv.org/abs/2210.00038, who need it for clipping in one pass). So a layer's input is kept by a hook, the
backward pass is run for outputs only, and instead of the one sum over the batch there is one sum for each patient: the
same multiplications, and no pass more. Layers of a few cheap kinds are covered; all others are refused by name.

Convention: the batch is the first axis of every layer's input and output, and a patient's crops are neighbours in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ErrorCode, PrivacyError
from common.models.faster import laid_out
from common.privacy.patient import Loss, Patient

# (layer, input, gradient of the output, rows of each patient) -> {"weight": (P, *shape), "bias": (P, *shape)}
_Contraction = Callable[[Any, Tensor, Tensor, Sequence[slice]], dict[str, Tensor]]


def gradients(model: nn.Module, loss: Loss, patients: Sequence[Patient]) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    """Losses (P) and gradients (P, *shape) of each patient; a parameter the loss does not depend on is left out.

    Args:
        model: each trainable parameter belongs to a layer of a covered kind; a layer may be called several times.
        loss: (logits (N, K, *spatial), labels (N, ...)) -> scalar, the mean over a patient's crops.
        patients: at least one, with crops and labels of one size; their numbers of crops may differ.

    Raises:
        PrivacyError: UNSUPPORTED, a layer is not covered, or used in a way that is not.
    """
    counts = [len(patient.crops) for patient in patients]
    with _Books(model, counts).open() as books:
        logits = model(torch.cat([patient.crops for patient in patients]).detach())
    if not isinstance(logits, Tensor) or len(logits) != sum(counts):
        raise _refusal("the network", model, "does not return one tensor with the batch as its first axis")
    losses = torch.stack(
        [loss(part, patient.labels) for part, patient in zip(torch.split(logits, counts), patients, strict=True)]
    )
    if books.ends:
        torch.autograd.grad(losses.sum(), books.ends, allow_unused=True)
    return losses.detach(), books.found


class _Books:
    """What is written down while one batch passes: `found`, and the `ends` at which its backward pass may stop."""

    def __init__(self, model: nn.Module, counts: Sequence[int]) -> None:
        self.rows = [slice(start, stop) for start, stop in pairwise(accumulate(counts, initial=0))]
        self.found: dict[nn.Parameter, Tensor] = {}
        self.ends: list[nn.Parameter] = []
        self._layers = [
            (name, layer, _contraction(name, layer))
            for name, layer in model.named_modules()
            if any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        ]

    @contextmanager
    def open(self) -> Iterator[_Books]:
        """Watch the layers during a forward pass."""
        hooks = [layer.register_forward_hook(self._watch(name, contract)) for name, layer, contract in self._layers]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, name: str, contract: _Contraction) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def after_forward(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # under no_grad
                return
            if any(len(tensor) != self.rows[-1].stop or tensor.ndim < 2 for tensor in (inputs[0], output)):
                raise _refusal(name, layer, "is called on something whose first axis is not the batch")
            if not inputs[0].requires_grad:
                # Nothing before this layer is differentiated. Its smallest parameter makes the pass come this far.
                own = (parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad)
                self.ends.append(min(own, key=Tensor.numel))
            held, version = [inputs[0].detach()], inputs[0]._version

            shape = output.shape

            def after_backward(gradient: Tensor) -> None:
                value = held.pop()  # freed as soon as it has served, as autograd does
                gradient = gradient.reshape(shape)
                if value._version != version:
                    raise _refusal(name, layer, "has its input changed in place afterwards")
                for key, rows in contract(layer, value.to(gradient.dtype), gradient, self.rows).items():
                    self._add(getattr(layer, key), rows)

            _source(output).register_hook(after_backward)

        return after_forward

    def _add(self, parameter: nn.Parameter | None, rows: Tensor) -> None:
        """Of a layer called twice, and of a parameter that two layers share, the contributions add up."""
        if parameter is None or not parameter.requires_grad:
            return
        rows = rows.to(parameter.dtype)
        self.found[parameter] = self.found[parameter] + rows if parameter in self.found else rows


def _source(output: Tensor) -> Any:
    """What the output is another shape of, if it is: a hook on a view is lost when the view is changed in place."""
    base = output._base
    if base is None or base.numel() != output.numel() or not (base.is_contiguous() and output.is_contiguous()):
        return output
    return base


def _contraction(name: str, layer: nn.Module) -> _Contraction:
    parameters = {key for key, parameter in layer.named_parameters(recurse=False) if parameter.requires_grad}
    for kinds, contract in _CONTRACTIONS:
        if isinstance(layer, kinds) and parameters <= {"weight", "bias"}:
            return contract
    raise _refusal(name, layer, "is of a kind it does not cover")


def _refusal(name: str, layer: nn.Module, why: str) -> PrivacyError:
    return PrivacyError(
        f"book-keeping cannot be used: {name or 'model'!r} ({type(layer).__name__}) {why}. Use the strategy 'one at a "
        "time', or another layer.",
        ErrorCode.UNSUPPORTED,
    )


def _convolution(layer: Any, value: Tensor, gradient: Tensor, rows: Sequence[slice]) -> dict[str, Tensor]:
    """By torch's own kernel for weights, on the rows of one patient after the other."""
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        value = functional.pad(value, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(layer.kernel_size)
    return _convolved(layer, value, gradient, rows, padding, transposed=False)


def _transposed_convolution(layer: Any, value: Tensor, gradient: Tensor, rows: Sequence[slice]) -> dict[str, Tensor]:
    return _convolved(layer, value, gradient, rows, layer.padding, transposed=True)


def _convolved(
    layer: Any, value: Tensor, gradient: Tensor, rows: Sequence[slice], padding: Sequence[int], *, transposed: bool
) -> dict[str, Tensor]:
    weight = layer.weight.detach().to(gradient.dtype)
    # What the output is longer by than stride and kernel make it; an argument of the call may have set it.
    extra = [
        size - (edge - 1) * stride + 2 * pad - dilation * (kernel - 1) - 1
        for size, edge, stride, pad, dilation, kernel in zip(
            gradient.shape[2:], value.shape[2:], layer.stride, padding, layer.dilation, layer.kernel_size, strict=True
        )
    ]
    value, gradient = (laid_out(layer, tensor) for tensor in (value, gradient))
    parts = []
    for some in rows:
        one, its = value[some], gradient[some]
        if _slow(one) and not transposed:
            one, its = one.to_mkldnn(), its.to_mkldnn()
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            its,
            one,
            weight,
            [layer.out_channels],
            layer.stride,
            padding,
            layer.dilation,
            transposed,
            extra if transposed else [0] * len(extra),
            layer.groups,
            [False, True, layer.bias is not None],
        )
        parts.append((of_weight, of_bias))
    weights, biases = zip(*parts, strict=True)
    return {"weight": torch.stack(weights)} | ({} if layer.bias is None else {"bias": torch.stack(biases)})


def _slow(value: Tensor) -> bool:
    """Whether torch would choose a kernel 2 to 12 times slower: it underestimates a single volume by its last axis."""
    single = value.device.type == "cpu" and value.dtype == torch.float32 and value.ndim == 5 and len(value) == 1
    return single and bool(torch._C._has_mkldnn and torch.backends.mkldnn.enabled)


def _linear(_layer: Any, value: Tensor, gradient: Tensor, rows: Sequence[slice]) -> dict[str, Tensor]:
    value, gradient = (tensor.reshape(len(tensor), -1, tensor.shape[-1]) for tensor in (value, gradient))
    weights = [gradient[some].flatten(0, 1).T @ value[some].flatten(0, 1) for some in rows]
    return {"weight": torch.stack(weights), "bias": _per_patient(gradient.sum(1), rows)}


def _group_norm(layer: Any, value: Tensor, gradient: Tensor, rows: Sequence[slice]) -> dict[str, Tensor]:
    return _scaled(functional.group_norm(value, layer.num_groups, eps=layer.eps), gradient, rows)


def _instance_norm(layer: Any, value: Tensor, gradient: Tensor, rows: Sequence[slice]) -> dict[str, Tensor]:
    return _scaled(functional.instance_norm(value, eps=layer.eps), gradient, rows)


def _scaled(normalised: Tensor, gradient: Tensor, rows: Sequence[slice]) -> dict[str, Tensor]:
    """Of output = normalised * weight + bias, both by channel."""
    normalised, gradient = (tensor.reshape(*tensor.shape[:2], -1) for tensor in (normalised, gradient))
    weights = torch.einsum("ncs,ncs->nc", gradient, normalised)
    return {"weight": _per_patient(weights, rows), "bias": _per_patient(gradient.sum(2), rows)}


def _layer_norm(layer: Any, value: Tensor, gradient: Tensor, rows: Sequence[slice]) -> dict[str, Tensor]:
    normalised = functional.layer_norm(value, layer.normalized_shape, eps=layer.eps)
    shape = (len(value), -1, *layer.normalized_shape)
    weights, biases = ((gradient * factor).reshape(shape).sum(1) for factor in (normalised, 1))
    return {"weight": _per_patient(weights, rows), "bias": _per_patient(biases, rows)}


def _prelu(layer: Any, value: Tensor, gradient: Tensor, rows: Sequence[slice]) -> dict[str, Tensor]:
    shape = (len(value), layer.num_parameters, -1)
    negative, gradient = value.clamp(max=0).reshape(shape), gradient.reshape(shape)
    return {"weight": _per_patient(torch.einsum("ncs,ncs->nc", gradient, negative), rows)}


def _per_patient(of_crops: Tensor, rows: Sequence[slice]) -> Tensor:
    return torch.stack([of_crops[some].sum(0) for some in rows])


_CONTRACTIONS: tuple[tuple[tuple[type[nn.Module], ...], _Contraction], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_convolution),
    ((nn.Linear,), _linear),
    ((nn.GroupNorm,), _group_norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    ((nn.LayerNorm,), _layer_norm),
    ((nn.PReLU,), _prelu),
)

__all__ = ["gradients"]
