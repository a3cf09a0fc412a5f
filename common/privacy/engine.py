"""One differentially private step: a patient's gradient, clipped, summed, noised, scaled, applied.

The unit is the patient. All crops of a patient give one gradient (of their mean loss), so that a patient with many
slices weighs as much as one with few; it is clipped to `clipping_norm`, the clipped gradients are added, and the sum
gets Gaussian noise once (Abadi et al. 2016, https://arxiv.org/abs/1607.00133). The sum is divided by the expected
number of patients, which is public, not by the sampled number, which is not.

What makes it hold is that patients do not touch each other: without a patient the sum is, to the last bit, the same
sum without that patient's contribution. So

- a patient's crops, labels and dropout follow from a stream of their own, which the caller hands over with them;
- a patient's gradient is computed alone, or in a group of fixed size beside whose members it is the same, bit for bit
  (`common.privacy.autotune` tries that on random images); empty places of a group are filled with zeros, since the
  size of a batch moves the last bits of every row;
- each clipped gradient is rounded to the noise's grid before it is added: sums of whole steps have no order;
- a gradient that is not finite contributes nothing, and nobody outside is told.

docs/privacy-engine.md has the proof, and the test of each premise. Scaling is Opacus', clipping (in double precision)
and the noise (`common.privacy.noise`) are ours. The norm is fixed, or follows a quantile of the patients'
(`common.privacy.clipping`); a step's norm is set before its batch is looked at. Noise and sampling draw on the
operating system's randomness and never on a seed.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError
from common.privacy.autotune import Plan, choose
from common.privacy.checks import check_model, unchanged_buffers
from common.privacy.clipping import ClippingRule, gradient_noise_multiplier, next_norm
from common.privacy.gradients import patient_gradients
from common.privacy.noise import grid_step, noised, on_grid
from common.privacy.patient import Loss, Patient

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

    from common.config import AdaptiveClippingConfig

_log = logging.getLogger(__name__)


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
        patients: crops (N, C, *spatial), labels (N, *spatial) and seed of each sampled patient, read a few at a time.
        loss: (logits (N, K, *spatial), labels (N, *spatial)) -> scalar, the mean over the patient's crops.
        plan: how the gradients are computed. None: what `autotune.choose` finds, on random images, when it first meets
            the network.

    Returns:
        Mean loss over the sampled patients with a finite gradient, None for none. No noise protects it: it must not
        leave the site.

    Raises:
        PrivacyError: a parameter is unused, a buffer has changed, or the loss couples samples. No step is made.
    """
    losses: list[float] = []
    rule, count = optimizer.clipping_rule, 0.0
    step = grid_step(optimizer.max_grad_norm, optimizer.noise_multiplier)
    sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in optimizer.params]
    with unchanged_buffers(model), _own_random_state(model):
        remaining = iter(patients)
        first = next(remaining, None)
        if first is not None:
            plan = plan or choose(model, loss, first, optimizer.expected_batch_size)
            for some in _portions(chain([first], remaining), plan):
                filled = _filled(some, plan)
                found = patient_gradients(model, loss, filled, plan.strategy, max_crops=plan.max_crops)
                for place in range(len(some)):
                    # A copy, since kernels treat the edges of memory that is not aligned in another order.
                    gradients = [found.of[parameter][place : place + 1].clone() for parameter in optimizer.params]
                    norm = _norm(gradients)
                    if not math.isfinite(norm):
                        _log.warning("a patient's gradient is not finite, and is left out of a private step")
                        continue
                    count += 0.5 if norm <= optimizer.max_grad_norm else -0.5
                    losses.append(float(found.losses[place]))
                    factor = _clip_factor(norm, optimizer.max_grad_norm)
                    for total, gradient in zip(sums, gradients, strict=True):
                        total.add_(on_grid(gradient[0].double() * factor, step))
    _apply(optimizer, sums)
    if rule is not None:
        noisy_count = _with_noise(count, rule.settings.count_noise)
        optimizer.max_grad_norm = next_norm(optimizer.max_grad_norm, noisy_count, rule)
    return sum(losses) / len(losses) if losses else None


def sample_patients(count: int, rate: float) -> list[int]:
    """Poisson sampling: indices below `count`, each in with probability `rate`, independently; may be empty."""
    source = random.SystemRandom()
    return [index for index in range(count) if source.random() < rate]


def _portions(patients: Iterable[Patient], plan: Plan) -> Iterator[list[Patient]]:
    """Patients whose gradients are computed together: of one shape, and no more than the plan has places for."""
    portion: list[Patient] = []
    for patient in patients:
        if portion and (len(portion) == plan.places(len(patient.crops)) or _shapes(patient) != _shapes(portion[0])):
            yield portion
            portion = []
        portion.append(patient)
    if portion:
        yield portion


def _filled(portion: Sequence[Patient], plan: Plan) -> list[Patient]:
    """All places taken: a batch of another size would have other kernels, and so other last bits in every row."""
    crops, labels, _ = portion[0]
    nobody = Patient(torch.zeros_like(crops), torch.zeros_like(labels))
    return [*portion, *[nobody] * (plan.places(len(crops)) - len(portion))]


def _shapes(patient: Patient) -> tuple[torch.Size, torch.Size]:
    return patient.crops.shape, patient.labels.shape


def _norm(gradients: Sequence[Tensor]) -> float:
    """Of one patient, over all parameters; not finite where any value is not."""
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))


def _clip_factor(norm: float, most: float) -> float:
    """What a gradient of this norm is multiplied by, over all parameters together.

    Opacus' clipping takes norms in single precision: of 28 million values that lie alike it finds 1.6 % too little, and
    a patient's share is then as much too long.
    """
    return min(1.0, most / norm) if norm > 0 else 1.0


def _apply(optimizer: DPOptimizer, sums: Sequence[Tensor]) -> None:
    """Add noise, once a step; scale, and let the optimiser go on from there."""
    noisy = noised(sums, clipping_norm=optimizer.max_grad_norm, noise_multiplier=optimizer.noise_multiplier)
    for parameter, gradient in zip(optimizer.params, noisy, strict=True):
        # Opacus asks this tensor how many batches were added up: one, also where nobody was sampled.
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        parameter.grad = gradient.to(parameter.dtype).view_as(parameter)
    optimizer.scale_grad()
    optimizer.original_optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def _own_random_state(model: nn.Module) -> Iterator[None]:
    """What is drawn for patients leaves no trace in torch's generators."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        yield


def _with_noise(centred_count: float, deviation: float) -> float:
    """A patient more or less changes the count by 1/2."""
    (noisy,) = noised(
        [torch.tensor([centred_count], dtype=torch.float64)], clipping_norm=1 / 2, noise_multiplier=2 * deviation
    )
    return noisy.item()


__all__ = ["adapt_clipping", "check_model", "private_optimizer", "private_step", "sample_patients"]
