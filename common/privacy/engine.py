"""One differentially private step: a patient's gradient, clipped, summed, noised, scaled, applied.

The unit is the patient. All crops of a patient give one gradient (of their mean loss), so that a patient with many
slices weighs as much as one with few; it is clipped to `clipping_norm`, the clipped gradients are added, and the sum
gets Gaussian noise once (Abadi et al. 2016, https://arxiv.org/abs/1607.00133). Patients are handled one at a time: no
network layer needs to know about it, and no memory grows with their number. The sum is divided by the expected number
of patients, which is public, not by the sampled number, which is not. Clipping, noise and scaling are Opacus'.

The noise and the sampling draw on the operating system's randomness and never on a seed.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

Loss = Callable[[Tensor, Tensor], Tensor]

# Of torch's CPU generator: 624 words of 32 bits, each stored in 64, after a head of 24 bytes.
_MERSENNE_HEAD_BYTES = 24
_MERSENNE_WORDS = 624


def private_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    noise_multiplier: float,
    clipping_norm: float,
    expected_patients: float,
) -> DPOptimizer:
    """Wrap an optimiser for `private_step`.

    Args:
        model: all its trainable parameters must be the optimiser's.
        optimizer: any of torch's; learning rates may be set through either optimiser.
        noise_multiplier: standard deviation of the noise over `clipping_norm`.
        clipping_norm: L2 bound of one patient's gradient.
        expected_patients: public denominator of the mean gradient: sampling rate times declared cohort size.
    Raises:
        PrivacyError: a value is out of range, or the model cannot be trained with a patient-level guarantee.
    """
    from opacus.optimizers import DPOptimizer  # noqa: PLC0415 -- 1.4 s that plain training need not pay

    settings = {
        "noise-multiplier": noise_multiplier,
        "clipping-norm": clipping_norm,
        "expected patients": expected_patients,
    }
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise PrivacyError(
                f"{name} is {value}, must be > 0 and finite. Correct the [privacy] table of run.toml, or remove it to "
                "train without differential privacy.",
                ErrorCode.BAD_REQUEST,
            )
    check_model(model)
    trainable = {parameter for parameter in model.parameters() if parameter.requires_grad}
    optimised = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if not trainable or trainable != {parameter for parameter in optimised if parameter.requires_grad}:
        raise PrivacyError(
            "the optimiser's parameters are not the model's trainable ones; clipping must see the whole gradient. Make "
            "the optimiser from model.parameters().",
            ErrorCode.UNSUPPORTED,
        )
    return DPOptimizer(
        optimizer,
        noise_multiplier=noise_multiplier,
        max_grad_norm=clipping_norm,
        expected_batch_size=expected_patients,
        generator=_secure_generator(next(iter(trainable)).device),
        # Sums four draws, against reading the gradient off the last bits of a float (Holohan, Braghin 2021).
        secure_mode=True,
    )


def private_step(
    model: nn.Module, optimizer: DPOptimizer, patients: Iterable[tuple[Tensor, Tensor]], loss: Loss
) -> float | None:
    """Make one step. No patient at all is a step too: of noise alone.

    Args:
        model: changed in place.
        optimizer: from `private_optimizer`.
        patients: (crops (N, C, *spatial), labels (N, *spatial)) of each sampled patient, read one at a time.
        loss: (logits (N, K, *spatial), labels (N, *spatial)) -> scalar, the mean over the patient's crops.
    Returns:
        Mean loss over the sampled patients, None for none. No noise protects it: it must not leave the site.
    Raises:
        PrivacyError: a parameter is unused, a gradient is not finite, or a buffer has changed. No step is made.
    """
    parameters: list[nn.Parameter] = optimizer.params
    names = {parameter: name for name, parameter in model.named_parameters()}
    buffers = [(name, buffer, buffer.clone()) for name, buffer in model.named_buffers()]
    losses: list[float] = []
    optimizer.zero_grad(set_to_none=True)
    # The sum starts from a batch of nobody, so that an empty Poisson batch takes the same path.
    _clip_and_add(optimizer, [parameter.new_zeros((0, *parameter.shape)) for parameter in parameters])
    for crops, labels in patients:
        value = loss(model(crops), labels)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        _clip_and_add(
            optimizer, [_checked(g, names[p]).unsqueeze(0) for g, p in zip(gradients, parameters, strict=True)]
        )
        losses.append(value.item())
    _check_unchanged(buffers)
    optimizer.add_noise()
    optimizer.scale_grad()
    optimizer.original_optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sum(losses) / len(losses) if losses else None


def sample_patients(count: int, rate: float) -> list[int]:
    """Poisson sampling: indices below `count`, each in with probability `rate`, independently; may be empty."""
    source = random.SystemRandom()
    return [index for index in range(count) if source.random() < rate]


def check_model(model: nn.Module) -> None:
    """Refuse layers whose output or state for one patient depends on others.

    Raises:
        PrivacyError: names the layer and what to use instead.
    """
    for name, module in model.named_modules():
        # By name, so that variants outside torch are seen too; frozen and affine-free ones carry statistics as well.
        batch_norm = any("batchnorm" in kind.__name__.lower() for kind in type(module).__mro__)
        if batch_norm or getattr(module, "track_running_stats", False):
            raise PrivacyError(
                f"layer {name or 'model'!r} is a {type(module).__name__} that keeps statistics over patients, which "
                "voids differential privacy. Use GroupNorm, or InstanceNorm without running statistics: [model] norm = "
                '"group" or "instance".',
                ErrorCode.UNSUPPORTED,
            )


def _clip_and_add(optimizer: DPOptimizer, gradients: Sequence[Tensor]) -> None:
    """Add (patients, *shape) gradients, clipped over all parameters together, to the optimiser's sum."""
    for parameter, gradient in zip(optimizer.params, gradients, strict=True):
        parameter.grad_sample = gradient
    optimizer.clip_and_accumulate()


def _checked(gradient: Tensor | None, name: str) -> Tensor:
    if gradient is None:
        raise PrivacyError(
            f"unused parameter {name!r}: the loss does not depend on it, so its gradient cannot be bounded. Remove it "
            "from the model, or set requires_grad to False.",
            ErrorCode.UNSUPPORTED,
        )
    if not torch.isfinite(gradient).all():
        raise PrivacyError(
            f"the gradient of {name!r} is not finite, so clipping cannot bound it. Lower [training] learning-rate, and "
            "check the intensities of the images.",
            ErrorCode.NOT_FINITE,
        )
    return gradient


def _check_unchanged(buffers: Iterable[tuple[str, Tensor, Tensor]]) -> None:
    for name, now, before in buffers:
        if not torch.equal(now, before):
            raise PrivacyError(
                f"buffer {name!r} changed during the forward pass: it carries patients' data past clipping and noise. "
                "Use layers without running statistics.",
                ErrorCode.UNSUPPORTED,
            )


def _secure_generator(device: torch.device) -> torch.Generator:
    """A generator whose whole state is the operating system's randomness."""
    generator = torch.Generator(device=device)
    if device.type != "cpu":
        generator.manual_seed(secrets.randbits(64))
        return generator
    # manual_seed keeps only 32 bits on the CPU: few enough to try them all and subtract the noise.
    state = generator.get_state()
    end = _MERSENNE_HEAD_BYTES + 8 * _MERSENNE_WORDS
    words = torch.frombuffer(bytearray(secrets.token_bytes(4 * _MERSENNE_WORDS)), dtype=torch.uint8)
    state[_MERSENNE_HEAD_BYTES:end].view(_MERSENNE_WORDS, 8)[:, :4] = words.view(_MERSENNE_WORDS, 4)
    generator.set_state(state)
    return generator
