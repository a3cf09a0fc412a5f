"""One differentially private step: a patient's gradient, clipped, summed, noised, scaled, applied.

The unit is the patient. All crops of a patient give one gradient (of their mean loss), so that a patient with many
slices weighs as much as one with few; it is clipped to `clipping_norm`, the clipped gradients are added, and the sum
gets Gaussian noise once (Abadi et al. 2016, https://arxiv.org/abs/1607.00133). How the gradients are computed is
chosen by measurement (`common.privacy.autotune`), a few patients at a time, so that no memory grows with their number.
The sum is divided by the expected number of patients, which is public, not by the sampled number, which is not.
Clipping and scaling are Opacus', the noise is ours (`common.privacy.noise`). The norm is fixed, or follows a quantile
of the patients' (`common.privacy.clipping`); a step's norm is set before its batch is looked at.

The noise and the sampling draw on the operating system's randomness and never on a seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError
from common.privacy.autotune import Plan, choose
from common.privacy.checks import check_model, unchanged_buffers
from common.privacy.clipping import ClippingRule, gradient_noise_multiplier, next_norm
from common.privacy.gradients import Loss, Patient, Strategy, patient_gradients
from common.privacy.noise import noised

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

    from common.config import AdaptiveClippingConfig


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
    private = DPOptimizer(
        optimizer,
        noise_multiplier=noise_multiplier,
        max_grad_norm=clipping_norm,
        expected_batch_size=expected_patients,
    )
    private.clipping_rule = None
    return private


def adapt_clipping(optimizer: DPOptimizer, settings: AdaptiveClippingConfig, *, expected_patients: float) -> None:
    """From now on the clipping norm moves after each step, and the gradients' noise is raised to pay for it.

    Args:
        optimizer: from `private_optimizer`, with the noise multiplier that a step is charged for, and the first norm.
        settings: of the run.
        expected_patients: public number that a step samples on average, among the patients in training.
    Raises:
        PrivacyError: the noise cannot pay for it, the number has no meaning, or the norm moves already.
    """
    if optimizer.clipping_rule is not None or not 0 < expected_patients < math.inf:
        raise PrivacyError(
            f"clipping cannot be made adaptive with {expected_patients} expected patients and rule "
            f"{optimizer.clipping_rule}; expected a number > 0 and no rule. Call this once for each optimiser.",
            ErrorCode.BAD_REQUEST,
        )
    optimizer.noise_multiplier = gradient_noise_multiplier(optimizer.noise_multiplier, settings.count_noise)
    optimizer.clipping_rule = ClippingRule(settings, optimizer.max_grad_norm, expected_patients)


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
        optimizer: from `private_optimizer`; `adapt_clipping` may have been called for it.
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
    rule, count = optimizer.clipping_rule, 0.0
    optimizer.zero_grad(set_to_none=True)
    # The sum starts from a batch of nobody, so that an empty Poisson batch takes the same path.
    _clip_and_add(optimizer, [parameter.new_zeros((0, *parameter.shape)) for parameter in optimizer.params])
    for parameter in optimizer.params:
        parameter.summed_grad = parameter.summed_grad.double()  # so that the sum's rounding adds nothing to a norm
    with unchanged_buffers(model):
        remaining = iter(patients)
        first = next(remaining, None)
        if first is not None:
            plan = plan or choose(model, loss, first, optimizer.expected_batch_size)
            for some in _portions(chain([first], remaining), plan):
                found = patient_gradients(model, loss, some, plan.strategy, max_crops=plan.max_crops)
                gradients = [found.of[parameter] for parameter in optimizer.params]
                if rule is not None:
                    count += _centred_count(gradients, optimizer.max_grad_norm)
                _clip_and_add(optimizer, gradients)
                losses.extend(found.losses.tolist())
    _add_noise(optimizer)
    optimizer.scale_grad()
    optimizer.original_optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if rule is not None:
        noisy_count = _with_noise(count, rule.settings.count_noise)
        optimizer.max_grad_norm = next_norm(optimizer.max_grad_norm, noisy_count, rule)
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


def _centred_count(gradients: Sequence[Tensor], norm: float) -> float:
    """Of (patients, *shape) gradients: 1/2 for each patient within the norm over all parameters, -1/2 for others."""
    norms = torch.stack([gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    return float(torch.where(norms <= norm, 0.5, -0.5).sum())


def _with_noise(centred_count: float, deviation: float) -> float:
    """A patient more or less changes the count by 1/2."""
    (noisy,) = noised(
        [torch.tensor([centred_count], dtype=torch.float64)], clipping_norm=1 / 2, noise_multiplier=2 * deviation
    )
    return noisy.item()


def _add_noise(optimizer: DPOptimizer) -> None:
    """From the optimiser's clipped sums to its noisy gradients, once a step."""
    sums = [parameter.summed_grad for parameter in optimizer.params]
    noisy = noised(sums, clipping_norm=optimizer.max_grad_norm, noise_multiplier=optimizer.noise_multiplier)
    for parameter, gradient in zip(optimizer.params, noisy, strict=True):
        parameter.grad = gradient.to(parameter.dtype).view_as(parameter)


__all__ = ["adapt_clipping", "check_model", "private_optimizer", "private_step", "sample_patients"]
