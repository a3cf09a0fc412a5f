"""Before any patient: try network and loss on random images, refuse what voids the guarantee, choose the fastest way.

The probe steps over random crops of the run's shape, which are public, so neither a refusal nor the choice tells
anything about patients. A strategy may be chosen only where its gradients are those of one patient at a time: what it
cannot see (weights used behind a layer's back, layers that mix the batch) shows there.

Memory is bounded, not compared: what autograd keeps for one crop is counted, and how many crops go through the network
together follows from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import PrivacyError
from common.privacy.checks import check_loss, unchanged_buffers
from common.privacy.gradients import Gradients, Loss, Patient, Strategy, patient_gradients

# Kept for the backward pass, by all crops that go through the network together. On a CPU more is slower: a 2D U-Net
# took 1.15 times plain SGD with 8 crops of 256 x 256, 0.95 times with 4.
_CPU_BYTES = 2**27
_GPU_SHARE = 4  # of what is free, a quarter
# One volume alone is convolved by a slow kernel: see bookkeeping.
_LEAST_CROPS = 2
_MOST_PATIENTS, _TURNS, _LONG_S = 8, 3, 1.0

# What other orders of summation may change, of a parameter's gradient and of the whole; in half precision more.
_ROUNDING, _FLOOR = 1e-3, 1e-4
_HALF = 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a private step goes about its patients."""

    strategy: Strategy
    max_crops: int  # through the network together


# A measurement holds for the process: the next round trains the same network.
_remembered: dict[Hashable, Plan] = {}


def choose(model: nn.Module, loss: Loss, patient: Patient, expected_patients: float) -> Plan:
    """Check network and loss, and find their fastest strategy; what has been seen before is answered at once.

    Where torch is to be deterministic it is one patient at a time: a choice by time would not repeat.

    Args:
        model: as it is trained; left as it was, and so is torch's random state.
        loss: (logits (N, K, *spatial), labels (N, ...)) -> scalar, the mean over the crops.
        patient: (crops (N, C, *spatial), labels (N, ...)), looked at for shapes, types and device alone.
        expected_patients: in a step.

    Raises:
        PrivacyError: UNSUPPORTED, the guarantee would not hold; says what to use instead.
    """
    task = _signature(model, loss, patient, expected_patients)
    if task not in _remembered:
        device = patient[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), _without_dropout(model):
            _remembered[task] = _probe(model, loss, patient, expected_patients)
    return _remembered[task]


def crops_together(model: nn.Module, loss: Loss, patient: Patient) -> int:
    """How many crops fit into the bound, each with what autograd keeps for it and a gradient of its own."""
    images, labels = _random(model, patient, 1, 0)
    kept: dict[int, int] = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(model(images), labels)
    gradient = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    on_cpu = images.device.type == "cpu"
    bound = _CPU_BYTES if on_cpu else torch.cuda.mem_get_info(images.device)[0] // _GPU_SHARE
    del value  # until here it holds what was kept, so that no address is met twice
    return max(_LEAST_CROPS, bound // (sum(kept.values()) + gradient))


def _signature(model: nn.Module, loss: Loss, patient: Patient, expected_patients: float) -> Hashable:
    return (
        repr(model),
        tuple((type(module), module.training) for module in model.modules()),
        tuple((name, one.shape, one.dtype, one.requires_grad) for name, one in model.named_parameters()),
        loss,
        tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in patient),
        round(expected_patients),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


def _probe(model: nn.Module, loss: Loss, patient: Patient, expected_patients: float) -> Plan:
    crops = len(patient[0])
    with unchanged_buffers(model):
        max_crops = crops_together(model, loss, patient)
        count = max(2, min(round(expected_patients), _MOST_PATIENTS, max_crops // crops))
        patients = [_random(model, patient, min(crops, max_crops), seed) for seed in range(count)]
        definition = patient_gradients(model, loss, patients, Strategy.ONE_AT_A_TIME)
        outputs = [_logits(model, one) for one in patients[:2]]
    logits, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    check_loss(loss, logits, labels)
    rounding = _HALF if logits.dtype in (torch.float16, torch.bfloat16) else 1
    plans = [Plan(Strategy.ONE_AT_A_TIME, max_crops)]
    if torch.are_deterministic_algorithms_enabled() or crops > max_crops:
        return plans[0]
    for strategy in (Strategy.BOOK_KEEPING, Strategy.VECTORISED):
        if strategy is Strategy.VECTORISED and len(plans) > 1 and patient[0].device.type == "cpu":
            continue  # on a CPU it takes twice the memory of book-keeping, even to try, for at most a tenth of the time
        reason = _objection(model, loss, patients, strategy, definition=definition, rounding=rounding)
        if reason:
            _log.info("private steps will not go by %s: %s", strategy, reason)
        else:
            plans.append(Plan(strategy, max_crops))
    return _fastest(model, loss, patients, plans)


def _fastest(model: nn.Module, loss: Loss, patients: Sequence[Patient], plans: Sequence[Plan]) -> Plan:
    """By turns, and the best of each: other programs on the machine only ever add time."""
    seconds = {plan.strategy: float("inf") for plan in plans}
    started = time.perf_counter()
    for _ in range(_TURNS):
        for strategy, best in seconds.items():
            seconds[strategy] = min(best, _seconds(model, loss, patients, strategy))
        if time.perf_counter() - started > _LONG_S:
            break
    chosen = min(plans, key=lambda plan: seconds[plan.strategy])
    times = ", ".join(f"{strategy} {1000 * taken:.0f} ms" for strategy, taken in seconds.items())
    _log.info("private steps go by %s, %d crops together (%s)", chosen.strategy, chosen.max_crops, times)
    return chosen


def _seconds(model: nn.Module, loss: Loss, patients: Sequence[Patient], strategy: Strategy) -> float:
    device = patients[0][0].device
    together = [[one] for one in patients] if strategy is Strategy.ONE_AT_A_TIME else [patients]
    started = time.perf_counter()
    for some in together:
        patient_gradients(model, loss, some, strategy)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _objection(
    model: nn.Module,
    loss: Loss,
    patients: Sequence[Patient],
    strategy: Strategy,
    *,
    definition: Gradients,
    rounding: float,
) -> str | None:
    """Why the strategy cannot stand in for the definition."""
    try:
        found = patient_gradients(model, loss, patients, strategy)
    except (
        PrivacyError,
        RuntimeError,
    ) as error:  # torch has no narrower type for what it cannot do, or has no room for
        return str(error).partition("\n")[0]
    whole = sum(_norms(gradient) ** 2 for gradient in definition.of.values()) ** 0.5
    for parameter, truth in definition.of.items():
        allowed = rounding * (_ROUNDING * _norms(truth) + _FLOOR * whole)
        if bool((_norms(found.of[parameter] - truth) > allowed).any()):
            return "its gradients are not those of one patient at a time"
    return None


def _norms(gradients: Tensor) -> Tensor:
    """(P, *shape) to (P)."""
    norms: Tensor = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
    return norms


def _random(model: nn.Module, patient: Patient, count: int, seed: int) -> Patient:
    """A patient of `count` crops of noise, with random labels."""
    crops, labels = patient
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((count, *crops.shape[1:]), generator=generator).to(crops)
    shape = (count, *labels.shape[1:])
    if labels.dtype.is_floating_point:
        return images, torch.rand(shape, generator=generator).to(labels)
    with torch.no_grad():
        classes = 2 if labels.dtype == torch.bool else model(images[:1]).shape[1]
    return images, torch.randint(classes, shape, generator=generator).to(labels)


def _logits(model: nn.Module, patient: Patient) -> Patient:
    with torch.no_grad():
        return model(patient[0][:1]), patient[1][:1]


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Two strategies can be compared only where nothing is drawn."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


__all__ = ["Plan", "choose", "crops_together"]
