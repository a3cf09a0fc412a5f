"""One local round at a hospital, in the order of events: draw crops, step, and count.

Without differential privacy a step takes `batch-size` crops, each from a patient drawn uniformly, so that patients with
many slices do not outweigh the others. With it a step takes each patient with the same small probability and their
gradient is clipped and noised (Abadi et al., CCS 2016, with the patient as unit); the caller has charged the ledger
before. Crops follow from the run's seed, the site and the round; the choice of patients and the noise never do.
"""

import hashlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from client.data.cohort import Case, Cohort
from common.config import PrivacyConfig, RunConfig
from common.errors import DataError, ErrorCode, WardroundError
from common.inference import precision, predict_stack
from common.losses import dice_ce
from common.metrics import confusion, site_scores
from common.models import freeze
from common.privacy.engine import adapt_clipping, private_optimizer, private_step, sample_patients
from common.privacy.guarantee import plan
from common.records import Phase
from common.schedule import learning_rate
from common.transforms import Stack, sample_crops


def train_round(
    model: nn.Module, cohort: Cohort, run: RunConfig, *, round_: int, site: str, device: torch.device | str
) -> dict[str, float]:
    """Train the model in place for one round.

    Args:
        model: The run's network holding the round's global weights; left on `device`.
        cohort: The site's studies; those of split "train" are used.
        run: The run; with a [privacy] table the steps are private.
        round_: From 1; sets the crops and the place in the learning rate schedule.
        site: The site's name; sets the crops.
        device: Where to compute.

    Returns:
        steps and seconds; without differential privacy also train-loss, the mean over the steps. With it the loss is
        data that no noise covers, and stays.

    Raises:
        DataError: NO_DATA, the site has no patient for training.
        WardroundError: NOT_FINITE, the loss or the weights have left the finite numbers.
    """
    started = time.perf_counter()
    names = cohort.patients("train")
    if not names:
        raise DataError(
            "this site has no patient in the training split. Add studies, or lower the held-out fractions of the run.",
            ErrorCode.NO_DATA,
        )
    seed = _seed(run, site, round_)
    patients = [cohort.cases_of(name) for name in names]
    crops = _Crops(patients, run, torch.Generator().manual_seed(seed), device)
    model.to(device).train()
    freeze(model, run)
    network = _Network(model, run, device)
    with _reproducible(run, seed):
        if run.privacy is None:
            loss = {"train-loss": _train(network, crops, round_)}
        else:
            _train_privately(network, crops, run.privacy, round_, cohort.declared_size)
            loss = {}
    if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise _not_finite("a weight")
    return {**loss, "steps": float(run.training.local_steps), "seconds": time.perf_counter() - started}


def evaluate(
    model: nn.Module, cohort: Cohort, run: RunConfig, phase: Phase, device: torch.device | str
) -> tuple[int, dict[str, float]]:
    """Score the model on the site's held-out patients.

    A patient is scored over all voxels of all of their images, never by image or slice; scores are means over patients.
    With [privacy] every class is scored at every site: which names leave must not depend on who is a patient there.

    Returns:
        The number of patients, and their mean scores; (0, {}) where the split has no patient.
    """
    patients = cohort.patients(phase)
    counts = [
        torch.stack([_counts(model, case, run, device) for case in cohort.cases_of(patient)]).sum(dim=0)
        for patient in patients
    ]
    return len(patients), site_scores(counts, run.data.classes, every_class=run.privacy is not None)


class _Network(nn.Module):
    """The model with only its forward pass in the run's precision: clipping and noise must never be rounded."""

    def __init__(self, model: nn.Module, run: RunConfig, device: torch.device | str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision(run, device)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, *patch) to logits (N, 1 + K, *patch)."""
        with self.precision:
            logits: Tensor = self.model(images)
        return logits


@dataclass(frozen=True)
class _Crops:
    """Draws a round's training crops; a case's foreground is indexed once, when first needed."""

    patients: Sequence[Sequence[Case]]
    run: RunConfig
    generator: torch.Generator
    device: torch.device | str
    stacks: dict[str, Stack] = field(default_factory=dict)

    def of(self, patients: Iterable[int]) -> tuple[Tensor, Tensor]:
        """One crop for each entry, from one of the patient's cases drawn uniformly."""
        stacks = [self._stack(self.patients[patient]) for patient in patients]
        return sample_crops(stacks, self.run.training, self.generator, self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """One crop from each of `batch-size` patients, drawn uniformly with replacement."""
        return self.of(self._integer(len(self.patients)) for _ in range(self.run.training.batch_size))

    def _stack(self, cases: Sequence[Case]) -> Stack:
        case = cases[self._integer(len(cases))]
        if case.key not in self.stacks:
            self.stacks[case.key] = Stack.of(case.images, case.labels)
        return self.stacks[case.key]

    def _integer(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))


def _train(model: nn.Module, crops: _Crops, round_: int) -> float:
    """Plain steps; returns the mean loss."""
    run = crops.run
    optimizer = _optimizer(model, run)
    total = 0.0
    for step in range(run.training.local_steps):
        _set_rate(optimizer, run, round_, step)
        images, labels = crops.batch()
        loss = dice_ce(model(images), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _not_finite("the loss")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        total += value
    return total / run.training.local_steps


def _train_privately(model: nn.Module, crops: _Crops, privacy: PrivacyConfig, round_: int, declared_size: int) -> None:
    """Private steps, as many as the ledger was charged for, whatever the sampling brings."""
    run = crops.run
    budget = plan(run, declared_size)
    inner = _optimizer(model, run)
    optimizer = private_optimizer(
        model,
        inner,
        noise_multiplier=budget.noise_multiplier,
        clipping_norm=privacy.clipping_norm,
        expected_patients=budget.expected_patients,
    )
    if privacy.adaptive_clipping is not None:
        adapt_clipping(optimizer, privacy.adaptive_clipping, expected_patients=budget.expected_in_training)
    for step in range(budget.steps_per_round):
        _set_rate(inner, run, round_, step)
        chosen = sample_patients(len(crops.patients), budget.sampling_rate)
        batch = (crops.of([patient] * privacy.crops_per_patient) for patient in chosen)
        private_step(model, optimizer, batch, dice_ce)


def _counts(model: nn.Module, case: Case, run: RunConfig, device: torch.device | str) -> Tensor:
    """(K+1, K+1) confusion matrix of one case, over all its slices."""
    labels = predict_stack(model, case.images, run, device)
    return confusion(labels, case.labels, len(run.data.classes))


def _optimizer(model: nn.Module, run: RunConfig) -> torch.optim.Optimizer:
    training = run.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(trained, training.learning_rate, training.momentum, weight_decay=training.weight_decay)
    return torch.optim.AdamW(trained, training.learning_rate, weight_decay=training.weight_decay)


def _set_rate(optimizer: torch.optim.Optimizer, run: RunConfig, round_: int, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(run, (round_ - 1) * run.training.local_steps + step)


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
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(run.deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _not_finite(what: str) -> WardroundError:
    return WardroundError(
        f"{what} is no longer a finite number. The learning rate is the likely cause: lower [training] learning-rate.",
        ErrorCode.NOT_FINITE,
    )


__all__ = ["evaluate", "train_round"]
