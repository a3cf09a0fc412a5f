"""One differentially private step: a patient's gradient, clipped, summed, noised, scaled, applied.

The unit is the patient. All crops of a patient give one gradient (of their mean loss), so that a patient with many
slices weighs as much as one with few; it is clipped to `clipping_norm`, the clipped gradients are added, and the sum
gets Gaussian noise once (Abadi et al. 2016, https://arxiv.org/abs/1607.00133). How the gradients are computed is
chosen by measurement (`common.privacy.autotune`), a few patients at a time, so that no memory grows with their number.
The sum is divided by the expected number of patients, which is public, not by the sampled number, which is not.
Clipping, noise and scaling are Opacus'.

The noise and the sampling draw on the operating system's randomness and never on a seed.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError
from common.privacy.autotune import Plan, choose
from common.privacy.checks import check_model, unchanged_buffers
from common.privacy.gradients import Loss, Patient, Strategy, patient_gradients

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

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
    model: nn.Module,
    optimizer: DPOptimizer,
    patients: Iterable[Patient],
    loss: Loss,
    *,
    plan: Plan | None = None,
) -> float | None:
    """Make one step. No patient at all is a step too: of noise alone.

    Args:
        model: changed in place.
        optimizer: from `private_optimizer`.
        patients: (crops (N, C, *spatial), labels (N, *spatial)) of each sampled patient, read a few at a time.
        loss: (logits (N, K, *spatial), labels (N, *spatial)) -> scalar, the mean over the patient's crops.
        plan: how the gradients are computed. None: what `autotune.choose` finds, on random images, when it first meets
            the network.

    Returns:
        Mean loss over the sampled patients, None for none. No noise protects it: it must not leave the site.

    Raises:
        PrivacyError: a parameter is unused, a gradient is not finite, a buffer has changed, or the loss couples
            samples. No step is made.
    """
    losses: list[float] = []
    optimizer.zero_grad(set_to_none=True)
    # The sum starts from a batch of nobody, so that an empty Poisson batch takes the same path.
    _clip_and_add(optimizer, [parameter.new_zeros((0, *parameter.shape)) for parameter in optimizer.params])
    with unchanged_buffers(model):
        remaining = iter(patients)
        first = next(remaining, None)
        if first is not None:
            plan = plan or choose(model, loss, first, optimizer.expected_batch_size)
            for some in _portions(chain([first], remaining), plan):
                found = patient_gradients(model, loss, some, plan.strategy, max_crops=plan.max_crops)
                _clip_and_add(optimizer, [found.of[parameter] for parameter in optimizer.params])
                losses.extend(found.losses.tolist())
    optimizer.add_noise()
    optimizer.scale_grad()
    optimizer.original_optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sum(losses) / len(losses) if losses else None


def sample_patients(count: int, rate: float) -> list[int]:
    """Poisson sampling: indices below `count`, each in with probability `rate`, independently; may be empty."""
    source = random.SystemRandom()
    return [index for index in range(count) if source.random() < rate]


def _portions(patients: Iterable[Patient], plan: Plan) -> Iterator[list[Patient]]:
    """Patients whose gradients are computed together: of one shape, and as few as the plan's bound asks for."""
    most = 1 if plan.strategy is Strategy.ONE_AT_A_TIME else plan.max_crops
    portion: list[Patient] = []
    for patient in patients:
        full = (len(portion) + 1) * len(patient[0]) > most
        if portion and (full or any(one.shape != other.shape for one, other in zip(patient, portion[0], strict=True))):
            yield portion
            portion = []
        portion.append(patient)
    if portion:
        yield portion


def _clip_and_add(optimizer: DPOptimizer, gradients: Sequence[Tensor]) -> None:
    """Add (patients, *shape) gradients, clipped over all parameters together, to the optimiser's sum."""
    for parameter, gradient in zip(optimizer.params, gradients, strict=True):
        parameter.grad_sample = gradient
    optimizer.clip_and_accumulate()


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


__all__ = ["check_model", "private_optimizer", "private_step", "sample_patients"]
