"""One patient more adds that patient's own contribution to a private step's sum, and moves nothing else by one bit.

Noise is taken out where the engine adds it: what it was asked to hide is recorded, and the weights stay where they are,
so that every step of the round starts from the same model. Settings are the shipped ones: augmentation, crops smaller
than the image, several of them, dropout.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from client.data.cohort import Case, Cohort
from client.train import optimizer, training
from client.train.training import train_round
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import WardroundError
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.models import NETWORK_CHOICE, NETWORKS
from common.privacy import autotune, engine
from common.privacy.gradients import Strategy

KEY = bytes(range(32))
CLIP = 0.02  # far below any gradient here, so that each patient adds a whole clip
STEPS = 2
NAMES = ("anna", "bert", "carl", "dora", "emil")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The sums of clipped gradients, one for each step, in place of their release; everybody is sampled."""
    seen: list[Tensor] = []

    def silent(sums: Any, **_: float) -> list[Tensor]:
        seen.append(torch.cat([one.double().flatten() for one in sums]))
        return [torch.zeros_like(one) for one in sums]

    monkeypatch.setattr(engine, "noised", silent)
    monkeypatch.setattr(training, "sample_patients", lambda count, _rate: list(range(count)))
    monkeypatch.setattr(autotune, "_remembered", {})
    return seen


@pytest.fixture
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def a_run(*, dims: int = 2, crops: int = 4, dropout: float = 0.0, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "name": "apart",
        "model": {"dims": dims, "channels": (4, 8, 16), "dropout": dropout},
        "data": {"modality": "CT", "classes": ("disc",)},
        "training": {"patch_size": (16,) * dims, "local_steps": STEPS},
        "federation": {"rounds": 2},
        "privacy": {"target_epsilon": 8.0, "sampling_rate": 1.0, "crops_per_patient": crops, "clipping_norm": CLIP},
    }
    return RunConfig.model_validate({**values, **changes})


def a_case(patient: str, dims: int, number: int = 0) -> Case:
    """A disc or a ball on noise, larger than a crop; who is first in the alphabet has nothing marked."""
    generator = torch.Generator().manual_seed(sum(patient.encode()) + number)
    shape = (3, 40, 36) if dims == 2 else (1, 22, 24, 20)
    grid = torch.meshgrid(*(torch.arange(edge) for edge in shape[1:]), indexing="ij")
    distance = torch.stack([(axis - edge / 2) ** 2 for axis, edge in zip(grid, shape[1:], strict=True)]).sum(0)
    labels = ((distance < 6**2) & (patient != NAMES[0])).to(torch.uint8).expand(shape).clone()
    images = torch.rand(shape, generator=generator) + 0.5 * labels
    return Case(patient, f"{patient}-{number}", "train", images.unsqueeze(1), labels)


def sums_of(names: tuple[str, ...], run: RunConfig, steps: list[Tensor], **changes: Case) -> list[Tensor]:
    """Each step's sum for a cohort of these patients; one of them may bring another case than usual."""
    cases = [changes.get(name, a_case(name, run.model.dims, number)) for name in names for number in range(2)]
    if run.data.channels == 3:
        cases = [
            replace(case, images=case.images * torch.tensor([0.9, 0.6, 0.3]).view(3, *[1] * run.model.dims))
            for case in cases
        ]
    steps.clear()
    cohort = Cohort(tuple(cases), (), "cohort", 10)
    train_round(build_model(run), cohort, issue(run), round_=1, site="north", device="cpu", site_key=KEY)
    return list(steps)


def without(name: str) -> tuple[str, ...]:
    return tuple(other for other in NAMES if other != name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("crops", [1, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_patient_more_adds_their_contribution_and_moves_nothing_else(
    steps: list[Tensor], dims: int, crops: int, dropout: float
) -> None:
    run = a_run(dims=dims, crops=crops, dropout=dropout)
    assert_apart(run, steps)


@pytest.mark.parametrize(("dims", "preset"), [(2, "guide"), (3, "nnunet"), (2, "photograph")])
def test_no_way_to_change_crops_couples_patients(steps: list[Tensor], dims: int, preset: str) -> None:
    data = {"modality": "photo", "channels": 3 if preset == "photograph" else 1, "classes": ("disc",)}
    changes = {"preset": preset, "elastic": 0.4, "probability": {"rotation": 1.0, "noise": 0.5}}
    training_ = {"patch_size": (16,) * dims, "local_steps": STEPS, "augmentation": changes}
    training_ |= {"foreground_classes": "balanced", "foreground_fraction": 0.9}
    assert_apart(a_run(dims=dims, crops=2, format=2, data=data, training=training_), steps)


@pytest.mark.parametrize(("dims", "loss"), [(3, "focal"), (2, "skeleton-recall")])
def test_classes_that_overlap_keep_patients_apart(steps: list[Tensor], dims: int, loss: str) -> None:
    """A disc that lies over half of the image: bits 1, 2 and 3, with crops that balance the classes."""
    run = a_run(
        dims=dims,
        crops=2,
        format=2,
        data={"modality": "CT", "classes": ("disc", "half")},
        task={"kind": "segmentation", "multi-label": True, "loss": {"kind": loss}},
        training={"patch_size": (16,) * dims, "local_steps": STEPS, "foreground_classes": "balanced"},
    )
    cases = {}
    for name in NAMES:
        case = a_case(name, dims)
        half = torch.zeros_like(case.labels)
        half[..., 14:] = 2
        cases[name] = replace(case, labels=case.labels + half)
    assert {int(value) for value in cases[NAMES[1]].labels.unique()} == {0, 1, 2, 3}
    assert_apart(run, steps, **cases)


DENSE = [network.model_fields["architecture"].default for network in NETWORKS if network.DENSE]
OF_IMAGES = [network.model_fields["architecture"].default for network in NETWORKS if not network.DENSE]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [(name, task) for name in OF_IMAGES for task in ({}, {"multi-label": True})]
    + [("cnn", {"of": "region"}), ("unet", {})],
)
def test_classification_keeps_patients_apart(steps: list[Tensor], architecture: str, task: dict[str, Any]) -> None:
    """Losses that weigh, focus and smooth; labels as each kind of task has them, of all images or of regions."""
    sizes = {"filters": 4, "depth": 10} if architecture == "resnet" else {"channels": (4, 8, 16)}
    weights = [0.5, 3.0] if task else [0.5, 1.0, 3.0]
    settings = {"kind": "classification", "class-weights": weights, "focal-gamma": 1.5, "label-smoothing": 0.1, **task}
    run = a_run(
        format=2,
        training={"patch_size": (24, 24), "local_steps": STEPS},
        model={"architecture": architecture, **sizes},
        task=settings,
        data={"modality": "CT", "classes": ("disc", "ring")},
    )
    cases = {}
    for place, name in enumerate(NAMES):
        case = a_case(name, 2)
        mark = 1 + place % 2 if task.get("of") == "region" else place % 3
        cases[name] = replace(case, labels=torch.full_like(case.labels, mark))
    assert_apart(run, steps, **cases)


@pytest.mark.parametrize("architecture", DENSE)
def test_volumes_that_shrink_to_two_slices_keep_patients_apart(steps: list[Tensor], architecture: str) -> None:
    """As the shipped precision computes them: where a level is two voxels deep, a kernel read memory of others."""
    sizes = {"plain-unet": {"filters": 4, "levels": 3}}.get(architecture, {"channels": (4, 8, 16)})
    model = {"architecture": architecture, "dims": 3, **sizes}
    deep = 2 * NETWORK_CHOICE.by_name[architecture].model_validate(model).stride  # type: ignore[attr-defined]
    training_ = {"patch_size": (deep, 16, 16), "local_steps": STEPS}
    assert_apart(a_run(dims=3, crops=2, model=model, training=training_), steps)


def test_patients_whose_studies_go_by_one_key_in_two_sources_keep_their_own_images(steps: list[Tensor]) -> None:
    """Such as image 1 of two tables, each of another patient."""
    run, anna, bert = a_run(), replace(a_case("anna", 2), key="1"), replace(a_case("bert", 2), key="1")

    def sums(*cases: Case) -> list[Tensor]:
        steps.clear()
        train_round(
            build_model(run),
            Cohort(cases, (), "cohort", 10),
            issue(run),
            round_=1,
            site="north",
            device="cpu",
            site_key=KEY,
        )
        return list(steps)

    for both, one, other in zip(sums(anna, bert), sums(anna), sums(bert), strict=True):
        assert torch.equal(both, one + other)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("dims", [2, 3])
def test_threads_do_not_couple_patients(steps: list[Tensor], dims: int) -> None:
    assert_apart(a_run(dims=dims), steps)


def assert_apart(run: RunConfig, steps: list[Tensor], **cases: Case) -> None:
    """With the first, a middle and the last patient left out, the sum lacks what they add alone, bit for bit."""
    everybody = sums_of(NAMES, run, steps, **cases)
    assert len(everybody) == STEPS
    for name in (NAMES[0], NAMES[2], NAMES[-1]):
        fewer, alone = sums_of(without(name), run, steps, **cases), sums_of((name,), run, steps, **cases)
        for together, rest, own in zip(everybody, fewer, alone, strict=True):
            assert torch.equal(together - rest, own)
            assert 0.9 * CLIP < float(own.norm()) <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_neither_precision_nor_the_way_of_computing_couples_patients(
    steps: list[Tensor], monkeypatch: pytest.MonkeyPatch, deterministic: bool, bf16: bool
) -> None:
    monkeypatch.setattr(training, "precision", lambda *_, **__: torch.autocast("cpu", torch.bfloat16, enabled=bf16))
    assert_apart(a_run(deterministic=deterministic), steps)


@pytest.mark.parametrize("way", list(Strategy), ids=str)
def test_each_way_that_is_chosen_keeps_patients_apart(
    steps: list[Tensor], monkeypatch: pytest.MonkeyPatch, way: Strategy
) -> None:
    """Whatever wins the trial: the others are made slow here."""

    def seconds(*work: Any) -> float:
        return 1.0 if work[-1] is way else 1000.0

    monkeypatch.setattr(training, "precision", lambda *_, **__: torch.autocast("cpu", torch.bfloat16, enabled=False))
    monkeypatch.setattr(autotune, "_seconds", seconds)
    assert_apart(a_run(), steps)


def test_the_order_of_patients_does_not_matter(steps: list[Tensor]) -> None:
    run = a_run()
    forwards, backwards = sums_of(NAMES, run, steps), sums_of(NAMES[::-1], run, steps)
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_adaptive_clipping_counts_each_patient_alone(steps: list[Tensor]) -> None:
    privacy = {"target_epsilon": 8.0, "sampling_rate": 1.0, "clipping_norm": CLIP, "adaptive_clipping": {}}
    run = a_run(privacy=privacy)
    everybody, fewer = sums_of(NAMES, run, steps), sums_of(without(NAMES[0]), run, steps)
    assert len(everybody) == 2 * STEPS  # of gradients and of the count, by turns
    assert all(abs(float(a - b)) == 0.5 for a, b in zip(everybody[1::2], fewer[1::2], strict=True))
    assert float((everybody[0] - fewer[0]).norm()) <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])
def test_a_gradient_that_is_not_finite_adds_nothing_and_raises_nothing(
    steps: list[Tensor], caplog: pytest.LogCaptureFixture, name: str, value: float
) -> None:
    run = a_run()
    usual = a_case(name, 2)
    broken = Case(name, usual.key, "train", torch.full_like(usual.images, value), usual.labels)
    with caplog.at_level(logging.WARNING):
        with_ = sums_of(NAMES, run, steps, **{name: broken})
    assert all(torch.equal(a, b) for a, b in zip(with_, sums_of(without(name), run, steps), strict=True))
    assert "left out of a private step" in caplog.text
    assert name not in caplog.text


def test_a_patient_who_cannot_be_cropped_adds_nothing_and_raises_nothing(steps: list[Tensor]) -> None:
    run, name = a_run(), NAMES[1]
    usual = a_case(name, 2)
    broken = Case(name, usual.key, "train", usual.images[:, :, :0], usual.labels)  # of no rows
    with_ = sums_of(NAMES, run, steps, **{name: broken})
    assert all(torch.equal(a, b) for a, b in zip(with_, sums_of(without(name), run, steps), strict=True))


@pytest.mark.parametrize("private", [True, False])
def test_weights_that_leave_the_finite_numbers_are_the_first_ones_again(
    monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    run = a_run() if private else a_run(privacy=None)
    model = build_model(run)
    before = pack(model.state_dict())
    cohort = Cohort((a_case("bert", 2),), (), "cohort", 5)
    monkeypatch.setattr(optimizer, "learning_rate", lambda *_: float("inf"))
    if private:
        metrics = train_round(model, cohort, issue(run), round_=1, site="north", device="cpu", site_key=KEY)
        assert metrics["steps"] == STEPS
        assert pack(model.state_dict()) == before
    else:
        with pytest.raises(WardroundError, match="no longer a finite number"):
            train_round(model, cohort, issue(run), round_=1, site="north", device="cpu")


@pytest.mark.parametrize(
    "changed",
    [
        {"site_key": bytes(32)},
        {"round_": 2},
        {"run": a_run(seed=7)},
        {"names": ("bertha",)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_patients_stream_is_of_site_run_round_step_and_patient(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    drawn: list[int] = []
    real: Callable[..., int] = training._Streams.seed

    def seed(streams: Any, step: int, patient: str, use: str) -> int:
        drawn.append(real(streams, step, patient, use))
        return drawn[-1]

    monkeypatch.setattr(training._Streams, "seed", seed)
    monkeypatch.setattr(training, "sample_patients", lambda count, _rate: list(range(count)))

    def seeds(
        *, site_key: bytes = KEY, round_: int = 1, run: RunConfig | None = None, names: tuple[str, ...] = ("bert",)
    ) -> list[int]:
        drawn.clear()
        run = run or a_run()
        cohort = Cohort(tuple(a_case(name, 2) for name in names), (), "cohort", 5)
        train_round(build_model(run), cohort, issue(run), round_=round_, site="north", device="cpu", site_key=site_key)
        return list(drawn)

    once, again, other = seeds(), seeds(), seeds(**changed)
    assert once == again
    assert len(set(once)) == 2 * STEPS  # crops and dropout have streams of their own, in each step others
    assert not set(once) & set(other)


def test_without_a_site_key_nothing_can_be_foretold(steps: list[Tensor]) -> None:
    run, seen = a_run(), []
    for _ in range(2):
        steps.clear()
        cohort = Cohort((a_case("bert", 2),), (), "cohort", 5)
        train_round(build_model(run), cohort, issue(run), round_=1, site="north", device="cpu")
        seen.append(torch.cat(steps))
    assert not torch.equal(*seen)
