"""Before any patient: try network and loss on random images, refuse what voids the guarantee, choose the fastest way.

The probe steps over random crops of the run's shape, which are public, so neither a refusal nor the choice tells
anything about patients. Patients may go through the network together only where

- their gradients are those of one patient at a time: what a strategy cannot see (weights used behind a layer's back,
  layers that mix the batch) shows there;
- a patient's gradient is the same, bit for bit, in each place of a group and beside any other patient. The size of a
  group decides which kernels run, so it is fixed, and tried at that size;
- it is the same, bit for bit, whatever the memory held before that a kernel is given to work in: it is tried where
  that is 0, where it is 3.4e38 (both by glibc's mallopt), and after freed memory was filled with NaN. A kernel that
  reads what it never wrote reads other patients. This is asked of one patient at a time as well, and where it fails
  nothing private is trained;
- the network draws nothing: dropout for a group would give a patient another mask beside others.

Memory is bounded, not compared: what autograd keeps for one crop is counted, and how many crops go through the network
together at most follows from it.
"""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError
from common.privacy.checks import check_loss, unchanged_buffers
from common.privacy.gradients import Gradients, Strategy, patient_gradients
from common.privacy.patient import Loss, Patient

# Kept for the backward pass, by all crops that go through the network together. On a CPU more is slower: a 2D U-Net
# took 1.15 times plain SGD with 8 crops of 256 x 256, 0.95 times with 4.
_CPU_BYTES = 2**27
_GPU_SHARE = 4  # of what is free, a quarter
# One volume alone is convolved by a slow kernel: see bookkeeping.
_LEAST_CROPS = 2
_MOST_PATIENTS, _TURNS, _LONG_S = 8, 3, 1.0
# Images of a neighbour that overflow, and zeros as in an empty place.
_NEIGHBOURS = (1e30, 0.0)

# What other orders of summation may change, of a parameter's gradient and of the whole; in half precision more.
_ROUNDING, _FLOOR = 1e-3, 1e-4
_HALF = 30
_NEGLIGIBLE = 1e-9  # probability of so many patients in a step
# Of freed memory, in values: from what a small layer's gradient takes to a few megabytes, several of each.
_BLOCKS, _BLOCKS_EACH = tuple(1 << power for power in range(8, 21)), 8
_M_PERTURB, _ZEROS, _HUGE = -6, 0x00, 0x7F  # 0x7F7F7F7F is 3.4e38 in single precision, and in bfloat16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a private step goes about its patients."""

    strategy: Strategy
    max_crops: int  # through the network together

    def places(self, crops: int) -> int:
        """How many patients of so many crops make a group; a patient with more crops than fit goes in pieces."""
        return 1 if self.strategy is Strategy.ONE_AT_A_TIME else max(1, self.max_crops // crops)


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
        device = patient.crops.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            alone = torch.are_deterministic_algorithms_enabled() or _draws(model, patient)
            with _without_dropout(model):
                _remembered[task] = _probe(model, loss, patient, expected_patients, alone=alone)
    return _remembered[task]


def crops_together(model: nn.Module, loss: Loss, patient: Patient) -> int:
    """How many crops fit into the bound, each with what autograd keeps for it and a gradient of its own."""
    images, labels, _ = _random(model, patient, 1, 0)
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
        tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in (patient.crops, patient.labels)),
        round(expected_patients),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


def _probe(model: nn.Module, loss: Loss, patient: Patient, expected_patients: float, *, alone: bool) -> Plan:
    crops = len(patient.crops)
    with unchanged_buffers(model):
        max_crops = crops_together(model, loss, patient)
        most = max(1, min(math.ceil(expected_patients), _MOST_PATIENTS, max_crops // crops))
        patients = [_random(model, patient, min(crops, max_crops), seed) for seed in range(max(2, most))]
        with _handed_out(_ZEROS):
            definition = patient_gradients(model, loss, patients, Strategy.ONE_AT_A_TIME)
        _check_memory(model, loss, patients, definition)
        outputs = [_logits(model, one) for one in patients[:2]]
    logits, labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    check_loss(loss, logits, labels)
    rounding = _HALF if logits.dtype in (torch.float16, torch.bfloat16) else 1
    plans = [Plan(Strategy.ONE_AT_A_TIME, max_crops)]
    if alone or crops > max_crops:
        return plans[0]
    for strategy in (Strategy.BOOK_KEEPING, Strategy.VECTORISED):
        if strategy is Strategy.VECTORISED and len(plans) > 1 and patient.crops.device.type == "cpu":
            continue  # on a CPU it takes twice the memory of book-keeping, even to try, for at most a tenth of the time
        for count in sorted({most, max(1, most // 2)}):
            reason = _objection(
                model, loss, patients[:count], strategy, definition=_of_first(definition, count), rounding=rounding
            )
            if reason:
                _log.info("private steps will not go by %s of %d: %s", strategy, count, reason)
                break
            plans.append(Plan(strategy, count * crops))
    return _fastest(model, loss, patients, plans, expected_patients)


def _fastest(
    model: nn.Module, loss: Loss, patients: Sequence[Patient], plans: Sequence[Plan], expected_patients: float
) -> Plan:
    """By turns, and the best of each: other programs on the machine only ever add time."""
    crops = len(patients[0].crops)
    seconds = dict.fromkeys(plans, float("inf"))
    started = time.perf_counter()
    for _ in range(_TURNS):
        for plan, best in seconds.items():
            group = patients[: plan.places(crops)]
            seconds[plan] = min(best, _seconds(model, loss, group, plan.strategy))
        if time.perf_counter() - started > _LONG_S:
            break
    costs = {plan: taken * _groups(expected_patients, plan.places(crops)) for plan, taken in seconds.items()}
    chosen = min(plans, key=lambda plan: costs[plan])
    times = ", ".join(f"{plan.strategy} of {plan.places(crops)} {1000 * cost:.0f} ms" for plan, cost in costs.items())
    _log.info("private steps go by %s, %d crops together (%s)", chosen.strategy, chosen.max_crops, times)
    return chosen


def _groups(expected_patients: float, places: int) -> float:
    """How many groups a step fills on average; their empty places cost as much as the others (Poisson)."""
    total, chance, count = 0.0, math.exp(-expected_patients), 0
    while count <= expected_patients or chance > _NEGLIGIBLE:
        total += chance * math.ceil(count / places)
        count += 1
        chance *= expected_patients / count
    return total if total > 0 else expected_patients / places  # exp() of hundreds is 0


def _seconds(model: nn.Module, loss: Loss, patients: Sequence[Patient], strategy: Strategy) -> float:
    device = patients[0].crops.device
    started = time.perf_counter()
    patient_gradients(model, loss, patients, strategy)
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
        apart = _is_apart(model, loss, patients, strategy, found)
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
    return None if apart else "a patient's gradient depends on its place or on the others, if only in its last bits"


def _is_apart(model: nn.Module, loss: Loss, patients: Sequence[Patient], strategy: Strategy, found: Gradients) -> bool:
    """Whether each patient's gradient is the same, bit for bit, in the others' places and beside other neighbours."""
    count = len(patients)
    _spoil_freed_memory()
    again = patient_gradients(model, loss, patients, strategy)
    turned = [patients[(place + 1) % count] for place in range(count)]
    elsewhere = patient_gradients(model, loss, turned, strategy)
    pairs = [(found, place, elsewhere, (place - 1) % count) for place in range(count)]
    pairs += [(found, place, again, place) for place in range(count)]
    for scale in _NEIGHBOURS:
        first, *others = patients
        beside = [first, *(Patient(other.crops * scale, torch.zeros_like(other.labels)) for other in others)]
        pairs.append((found, 0, patient_gradients(model, loss, beside, strategy), 0))
    return all(
        torch.equal(one.of[parameter][here], other.of[parameter][there])
        for one, here, other, there in pairs
        for parameter in found.of
    )


def _check_memory(model: nn.Module, loss: Loss, patients: Sequence[Patient], definition: Gradients) -> None:
    """Refuse a network of which a patient's gradient, alone, depends on what memory held before.

    Raises:
        PrivacyError: UNSUPPORTED, it does.
    """
    with _handed_out(_HUGE):
        again = [patient_gradients(model, loss, patients, Strategy.ONE_AT_A_TIME)]
    _spoil_freed_memory()
    again.append(patient_gradients(model, loss, patients, Strategy.ONE_AT_A_TIME))
    on_cpu = patients[0].crops.device.type == "cpu"
    whole = sum(_norms(gradient) ** 2 for gradient in definition.of.values()) ** 0.5
    for parameter, truth in definition.of.items():
        # On a GPU sums are added up in whatever order; on a CPU nothing may differ.
        allowed = torch.zeros_like(whole) if on_cpu else _ROUNDING * _norms(truth) + _FLOOR * whole
        if not all(bool((_norms(other.of[parameter] - truth) <= allowed).all()) for other in again):
            raise PrivacyError(
                "a gradient of this network comes out differently when it is computed again, so it may depend on what "
                "another patient left in memory. Set deterministic = true in run.toml, or use another patch-size.",
                ErrorCode.UNSUPPORTED,
            )


@contextmanager
def _handed_out(byte: int) -> Iterator[None]:
    """Memory that a kernel asks for is filled with the byte, where the C library can (glibc's M_PERTURB)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_PERTURB, byte ^ 0xFF)  # which is what freed memory is filled with
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)


def _spoil_freed_memory() -> None:
    """Leave NaN where a kernel that was given no clean memory will find it."""
    blocks = [torch.full((size,), float("nan")) for size in _BLOCKS for _ in range(_BLOCKS_EACH)]
    del blocks


def _of_first(gradients: Gradients, count: int) -> Gradients:
    return Gradients(gradients.losses[:count], {name: rows[:count] for name, rows in gradients.of.items()})


def _draws(model: nn.Module, patient: Patient) -> bool:
    """Whether the network draws random numbers, as dropout does: by its outputs, and by the generator that it moves.

    Outputs alone do not tell: dropout of one unit in 100,000 drops none in most passes, and has moved the masks of all
    who come after when it does.
    """
    outputs = []
    with torch.no_grad(), unchanged_buffers(model):
        images, _, _ = _random(model, patient, 1, 0)
        for seed in (1, 2, 3):
            torch.manual_seed(seed)
            before = _random_state(images.device)
            outputs.append(model(images))
            if not torch.equal(before, _random_state(images.device)):
                return True
    return not all(torch.equal(outputs[0], output) for output in outputs[1:])


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _norms(gradients: Tensor) -> Tensor:
    """(P, *shape) to (P)."""
    norms: Tensor = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
    return norms


def _random(model: nn.Module, patient: Patient, count: int, seed: int) -> Patient:
    """A patient of `count` crops of noise, with random labels."""
    crops, labels, _ = patient
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((count, *crops.shape[1:]), generator=generator).to(crops)
    shape = (count, *labels.shape[1:])
    if labels.dtype.is_floating_point:
        return Patient(images, torch.rand(shape, generator=generator).to(labels))
    with torch.no_grad():
        classes = 2 if labels.dtype == torch.bool else model(images[:1]).shape[1]
    return Patient(images, torch.randint(classes, shape, generator=generator).to(labels))


def _logits(model: nn.Module, patient: Patient) -> tuple[Tensor, Tensor]:
    """Of the first crop, with its label."""
    with torch.no_grad():
        return model(patient.crops[:1]), patient.labels[:1]


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
