"""One local round at a hospital, in the order of events: draw crops, step, and count.

Without differential privacy a step takes `batch-size` crops, each from a patient drawn uniformly (or a class first), so
that patients with many slices do not outweigh the others; crops follow from the run's seed, the site and the round, so
that a round can be repeated by anyone.

With it a step takes each patient with the same small probability and their gradient is clipped and noised (Abadi et
al., CCS 2016, with the patient as unit); the caller has charged the ledger before. Then nothing that is drawn is shared
or public: which patients are taken and the noise come from the operating system, and a patient's crops, augmentation
and dropout from a stream of the patient's own, keyed by the site (`_patient_seed`). One generator for all would let
each patient move the crops of those who come after. And nothing that can be seen tells of one patient: who cannot be
cropped, or whose gradient is not finite, adds nothing; weights that are not finite in the end are the first ones again.
"""

import hashlib
import hmac
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from client.data.cohort import Case, Cohort
from client.data.regions import centres
from client.train.optimizer import optimizer_of, set_rate, trained
from client.train.sampling import draw, groups_of
from client.train.strategies import Local
from common.config import TRAIN_LOSS, PrivacyConfig, RunConfig, TrainingConfig
from common.config.rundocument import RunDocument
from common.crypto.derivation import derived
from common.errors import DataError, ErrorCode, WardroundError
from common.learning.augment.mixup import mixed_loss
from common.learning.inference import precision, predict_stack
from common.learning.network import freeze
from common.learning.transforms import Stack, sample_crops
from common.privacy.autotune import choose
from common.privacy.engine import adapt_clipping, private_optimizer, private_step, sample_patients
from common.privacy.guarantee import plan
from common.privacy.patient import Patient
from common.tasks import Task
from common.wire.messages import Phase

_log = logging.getLogger(__name__)


def train_round(
    model: nn.Module,
    cohort: Cohort,
    document: RunDocument,
    *,
    round_: int,
    site: str,
    device: torch.device | str,
    site_key: bytes | None = None,
    local: Local[Any] | None = None,
    steps: int | None = None,
) -> dict[str, float]:
    """Train the model in place for one round.

    Args:
        model: The run's network holding the round's global weights; left on `device`.
        cohort: The site's studies; those of split "train" are used.
        document: The run; with a [privacy] table the steps are private.
        round_: From 1; sets the crops and the place in the learning rate schedule.
        site: The site's name; sets the crops of a run without privacy.
        device: Where to compute.
        site_key: Secret; sets what is drawn for each patient of a private run. None: a fresh one.
        local: The client half of the run's strategy; None: plain training.
        steps: Without privacy so many, whatever the run says; None: `local-steps`, or until `local-seconds` are over.

    Returns:
        steps and seconds; without differential privacy also train-loss, the mean over the steps. With it the loss is
        data that no noise covers, and stays.

    Raises:
        DataError: NO_DATA, without differential privacy: the site has no patient for training. With it the round is one
            of noise alone: a refusal would tell, without noise, who is not there.
        WardroundError: NOT_FINITE, without differential privacy: the loss or the weights have left the finite numbers.
    """
    started = time.perf_counter()
    names = cohort.patients("train")
    run = document.config
    if not names and run.privacy is None:
        raise DataError(
            "this site has no patient in the training split. Add studies, or lower the held-out fractions of the run.",
            ErrorCode.NO_DATA,
        )
    model.to(device).train()
    freeze(model, run)
    network = _Network(model, run, device)
    patients = {name: cohort.cases_of(name) for name in names}
    if run.privacy is None:
        seed = _seed(run, site, round_)
        balanced = run.training.sampling == "balanced"
        groups = groups_of(patients, len(run.data.classes), run.task) if balanced else (names,)
        crops = _Crops(patients, run, device, groups)
        with _reproducible(run, seed):
            draws = torch.Generator().manual_seed(seed)
            mean, made = _train(network, crops, draws, round_, local=local, steps=steps)
        if not _is_finite(model):
            raise _not_finite("a weight")
        loss = {TRAIN_LOSS: mean}
    else:
        if not names:
            _log.warning("no patient is left for training: the round is one of noise alone")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        streams = _Streams(site_key or secrets.token_bytes(32), document.hash, round_)
        with _reproducible(run, secrets.randbits(63)):
            crops = _Crops(patients, run, device)
            _train_privately(network, crops, streams, run.privacy, cohort.declared_size, local=local)
        if not _is_finite(model):
            _log.warning("the weights are no longer finite numbers: the round returns those it began with")
            model.load_state_dict(before)
        loss, made = {}, run.training.local_steps
    return {**loss, "steps": float(made), "seconds": time.perf_counter() - started}


def evaluate(
    model: nn.Module,
    cohort: Cohort,
    run: RunConfig,
    phase: Phase,
    device: torch.device | str,
    *,
    every_class: bool = False,
) -> tuple[int, dict[str, float]]:
    """Score the model on the site's held-out patients.

    How the scores of a site come from its patients' images is the task's: `common.tasks`.

    Args:
        model: on `device`.
        cohort: the site's.
        run: names the classes.
        phase: whose patients.
        device: where to compute.
        every_class: also score a class that none of the patients has; see `common.tasks`.

    Returns:
        The number of patients, and their mean scores; (0, {}) where the split has no patient.
    """
    patients = cohort.patients(phase)
    counts = [
        run.task.together([_counts(model, case, run, device) for case in cohort.cases_of(patient)])
        for patient in patients
    ]
    return len(patients), run.task.scores(counts, run.data.classes, every_class=every_class)


class _Network(nn.Module):
    """The model with only its forward pass in the run's precision: clipping and noise must never be rounded."""

    def __init__(self, model: nn.Module, run: RunConfig, device: torch.device | str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision(run, device, training=True)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, *patch) to the task's outputs (N, outputs, *patch)."""
        with self.precision:
            outputs: Tensor = self.model(images)
        return outputs


@dataclass(frozen=True)
class _Loss:
    """The task's loss; equal for equal runs, so that how its gradients are computed is chosen once."""

    task: Task
    auxiliary: tuple[float, ...] = ()  # see `Network.auxiliary`

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """See `Task.loss`; the weighted mean over all answers of a network, where it gives several."""
        if not self.auxiliary:
            return self.task.loss(outputs, labels)
        weights = (1.0, *self.auxiliary)
        answers = outputs.chunk(len(weights), 1)
        losses = [weight * self.task.loss(one, labels) for weight, one in zip(weights, answers, strict=True)]
        return torch.stack(losses).sum() / sum(weights)


@dataclass(frozen=True)
class _Crops:
    """Draws a round's training crops; a case's foreground is indexed once, when first needed."""

    patients: Mapping[str, Sequence[Case]]
    run: RunConfig
    device: torch.device | str
    groups: Sequence[Sequence[str]] = ()  # see `client.train.sampling`
    stacks: dict[Case, Stack] = field(default_factory=dict)  # by the case itself: two sources may use one key

    def of(self, patients: Iterable[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One crop for each entry, from one of the patient's cases drawn uniformly."""
        stacks = [self._stack(self.patients[patient], generator) for patient in patients]
        return sample_crops(stacks, self.training, generator, self.device)

    @cached_property
    def training(self) -> TrainingConfig:
        """How crops are drawn: of a region all around its middle."""
        training = self.run.training
        return training.model_copy(update={"foreground_fraction": 1.0}) if self.run.task.of_regions else training

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One crop from each of `batch-size` patients, drawn with replacement."""
        return self.of(draw(self.groups, self.run.training.batch_size, generator), generator)

    def _stack(self, cases: Sequence[Case], generator: torch.Generator) -> Stack:
        case = cases[_integer(len(cases), generator)]
        if case not in self.stacks:
            self.stacks[case] = _stack_of(case, self.run)
        return self.stacks[case]


@dataclass(frozen=True)
class _Streams:
    """Seeds of what is drawn for one patient in one step: the same whoever else there is, and nobody else's."""

    site_key: bytes = field(repr=False)
    run_hash: str
    round: int

    def seed(self, step: int, patient: str, use: str) -> int:
        """63 bits of HMAC-SHA256 under a key of the site's that serves nothing else."""
        key = derived(self.site_key, "training", "a patient's random choices")
        place = json.dumps([self.run_hash, self.round, step, patient, use]).encode()
        return int.from_bytes(hmac.digest(key, place, "sha256")[:8], "big") >> 1


def _train(
    model: nn.Module,
    crops: _Crops,
    generator: torch.Generator,
    round_: int,
    *,
    local: Local[Any] | None,
    steps: int | None,
) -> tuple[float, int]:
    """Plain steps; returns the mean loss, and how many they were."""
    run = crops.run
    optimizer, loss_of = optimizer_of(model, run), _Loss(run.task, run.model.auxiliary)
    weights = trained(model)
    total, made = 0.0, 0
    for step in _steps(run.training, steps):
        set_rate(optimizer, run, round_, step)
        images, labels = crops.batch(generator)
        if mixup := run.training.augmentation.mixup:
            loss = mixed_loss(model, loss_of, (images, labels), mixup, generator)
        else:
            loss = loss_of(model(images), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _not_finite("the loss")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for one in weights if run.training.l1 else ():
            if one.grad is not None:
                one.grad.add_(one.detach().sign(), alpha=run.training.l1)
        if local is not None:
            local.steer()
        if run.training.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(weights, run.training.gradient_clipping)
        optimizer.step()
        total, made = total + value, step + 1
    return total / made, made


def _steps(training: TrainingConfig, exactly: int | None) -> Iterator[int]:
    """Numbers of a round's steps, from 0: `local-steps` of them, or so many as end the first beyond `local-seconds`."""
    if exactly is not None:
        yield from range(exactly)
        return
    until = math.inf if training.local_seconds is None else time.monotonic() + training.local_seconds
    for step in range(training.local_steps):
        yield step
        if time.monotonic() >= until:
            return


def _train_privately(
    model: nn.Module,
    crops: _Crops,
    streams: _Streams,
    privacy: PrivacyConfig,
    declared_size: int,
    *,
    local: Local[Any] | None,
) -> None:
    """Private steps, as many as the ledger was charged for, whatever the sampling brings."""
    run, names = crops.run, list(crops.patients)
    budget = plan(run, declared_size)
    inner = optimizer_of(model, run)
    if local is not None:
        inner.register_step_pre_hook(lambda *_: local.steer())  # what it finds is the noisy mean
    optimizer = private_optimizer(
        model,
        inner,
        noise_multiplier=budget.noise_multiplier,
        clipping_norm=privacy.clipping_norm,
        expected_patients=budget.expected_patients,
    )
    if privacy.adaptive_clipping is not None:
        adapt_clipping(optimizer, privacy.adaptive_clipping, expected_patients=budget.expected_in_training)
    # Before anybody is sampled: what is refused, and how gradients are computed, depends on nobody.
    loss = _Loss(run.task, run.model.auxiliary)
    way = choose(model, loss, _nobody(crops, privacy), budget.expected_patients)
    for step in range(budget.steps_per_round):
        set_rate(inner, run, streams.round, step)
        chosen = [names[index] for index in sample_patients(len(names), budget.sampling_rate)]
        private_step(model, optimizer, _read(chosen, crops, streams, step), loss, plan=way)


def _read(chosen: Iterable[str], crops: _Crops, streams: _Streams, step: int) -> Iterator[Patient]:
    """The sampled patients' crops; who cannot be cropped is left out, and only the site's own log says so."""
    privacy = crops.run.privacy
    assert privacy is not None  # noqa: S101 - for the type checker
    for name in chosen:
        generator = torch.Generator().manual_seed(streams.seed(step, name, "crops"))
        try:
            images, labels = crops.of([name] * privacy.crops_per_patient, generator)
        except Exception:  # noqa: BLE001 - whatever it is, raising would tell that this patient was sampled
            _log.exception("a patient could not be cropped, and is left out of a private step")
            continue
        yield Patient(images, labels, streams.seed(step, name, "dropout"))


def _stack_of(case: Case, run: RunConfig) -> Stack:
    """What crops are drawn around: voxels of the foreground, the middles of regions, or nothing in particular."""
    if run.task.whole:
        return Stack(case.images, case.labels, ())
    index = centres(case.labels) if run.task.of_regions else None
    balanced = run.training.foreground_classes == "balanced"
    return Stack.of(case.images, case.labels, index, by_class=balanced, overlap=run.task.overlaps)


def _nobody(crops: _Crops, privacy: PrivacyConfig) -> Patient:
    """Shapes and types of a patient's crops, which follow from the run."""
    run, count = crops.run, privacy.crops_per_patient
    images = torch.zeros(count, run.data.channels, *run.training.patch_size, device=crops.device)
    return Patient(images, torch.zeros(count, *run.training.patch_size, dtype=torch.int64, device=crops.device))


def _counts(model: nn.Module, case: Case, run: RunConfig, device: torch.device | str) -> Tensor:
    """The task's counts of one case, over all its slices."""
    return run.task.count(predict_stack(model, case.images, run, device), case.labels, len(run.data.classes))


def _seed(run: RunConfig, site: str, round_: int) -> int:
    digest = hashlib.sha256(f"{run.seed}|{site}|{round_}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@contextmanager
def _reproducible(run: RunConfig, seed: int) -> Iterator[None]:
    """Seed what layers draw themselves (dropout), and choose deterministic kernels if asked; then restore both."""
    before = torch.are_deterministic_algorithms_enabled()
    if run.deterministic:
        # cuBLAS is deterministic only with a fixed workspace, read when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng():
        # As torch.manual_seed, which takes a stack trace for each kind of device that is not there: half a millisecond.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)
        torch.use_deterministic_algorithms(run.deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _is_finite(model: nn.Module) -> bool:
    return all(bool(weights.isfinite().all()) for weights in model.parameters())


def _not_finite(what: str) -> WardroundError:
    return WardroundError(
        f"{what} is no longer a finite number. The learning rate is the likely cause: lower [training] learning-rate.",
        ErrorCode.NOT_FINITE,
    )


__all__ = ["evaluate", "train_round"]
