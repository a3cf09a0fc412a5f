"""One local round: it learns, repeats bit for bit, weighs patients alike, and says no when it must."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from client.data.cohort import Case, Cohort
from client.train.training import evaluate, train_round
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import DataError, ErrorCode, WardroundError
from common.learning.checkpoint import pack, sha256
from common.learning.network import build_model
from common.learning.schedule import learning_rate
from tests import ROOT

# 128 of a patient's 256 voxels found, nothing false, and another patient's all; means of the two.
SCORES = {
    "dice": (2 / 3 + 1) / 2,
    "iou": 0.75,
    "sensitivity": 0.75,
    "recall": 0.75,
    "precision": 1.0,
    "specificity": 1.0,
    "foreground-dice": (2 / 3 + 1) / 2,
    "dice-disc": (2 / 3 + 1) / 2,
}
PRIVACY = {"target_epsilon": 8.0, "sampling_rate": 0.5, "crops_per_patient": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_run(training: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "test",
            "model": {"dims": 2, "channels": (4, 8, 16)},
            "data": {"modality": "CT", "classes": ("disc",)},
            "training": {"patch_size": (32, 32), "local_steps": 3, "batch_size": 2, **(training or {})},
            "federation": {"rounds": 2},
            "deterministic": True,
            **changes,
        }
    )


def make_case(patient: str, key: str = "0", split: Any = "train", slices: int = 2, size: int = 40) -> Case:
    """A bright disc on noise."""
    generator = torch.Generator().manual_seed(sum((patient + key).encode()))
    centre = torch.randint(14, size - 14, (slices, 2, 1, 1), generator=generator)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 8**2).to(torch.uint8)
    noise = 0.1 * torch.rand(slices, size, size, generator=generator)
    return Case(patient, key, split, (0.5 * labels + noise).unsqueeze(1), labels)


def make_cohort(*cases: Case, declared_size: int = 5) -> Cohort:
    return Cohort(tuple(cases) or (make_case("a"), make_case("b")), (), "cohort", declared_size)


def train(run: RunConfig, cohort: Cohort | None = None, site: str = "north", round_: int = 1) -> str:
    model = build_model(run)
    train_round(model, cohort or make_cohort(), issue(run), round_=round_, site=site, device="cpu")
    return sha256(pack(model.state_dict()))


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_loop_overfits_one_phantom(deterministic: bool) -> None:
    training = {"patch_size": (40, 40), "local_steps": 100, "batch_size": 4, "learning_rate": 1e-2}
    run = make_run(training, deterministic=deterministic, federation={"rounds": 1})
    train_case = make_case("a", slices=1)
    held_out = Case("a", "0", "test", train_case.images, train_case.labels)
    model = build_model(run)
    metrics = train_round(model, make_cohort(train_case), issue(run), round_=1, site="north", device="cpu")
    patients, scores = evaluate(model, make_cohort(held_out), run, "test", "cpu")
    assert patients == 1
    assert scores["dice"] > 0.95
    assert set(metrics) == {"train-loss", "steps", "seconds"}
    assert metrics["steps"] == 100


def test_a_volume_is_learned_too() -> None:
    run = make_run(
        {"patch_size": (8, 16, 16), "local_steps": 2}, model={"dims": 3, "channels": (4, 8)}, deterministic=False
    )
    flat = make_case("a", slices=9, size=31)
    case = Case("a", "0", "train", flat.images.movedim(1, 0).unsqueeze(0), flat.labels.unsqueeze(0))
    model = build_model(run)
    assert train_round(model, make_cohort(case), issue(run), round_=1, site="north", device="cpu")["train-loss"] > 0
    test_case = Case("a", "0", "test", case.images, case.labels)
    assert 0 <= evaluate(model, make_cohort(test_case), run, "test", "cpu")[1]["dice"] <= 1


def moved(training: dict[str, Any], **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All weights before and after one step of plain SGD with rate 0.5, as one vector each."""
    steady = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5, "schedule": "constant"}
    run = make_run({**steady, "local_steps": 1, **training}, format=2, **changes)
    model = build_model(run)
    before = torch.cat([one.detach().flatten().clone() for one in model.parameters()])
    train_round(model, make_cohort(), issue(run), round_=1, site="north", device="cpu")
    return before, torch.cat([one.detach().flatten() for one in model.parameters()])


@pytest.mark.parametrize("norm", [0.01, 0.1])
def test_a_gradient_is_shortened_to_the_norm_and_keeps_its_direction(norm: float) -> None:
    start, plain = moved({})
    _, clipped = moved({"gradient_clipping": norm})
    assert float((plain - start).norm()) > 0.5 * 0.1
    assert float((clipped - start).norm()) == pytest.approx(0.5 * norm, rel=1e-3)
    assert float(torch.cosine_similarity(plain - start, clipped - start, dim=0)) > 0.9999


def test_a_short_gradient_is_left_alone() -> None:
    assert torch.equal(moved({"gradient_clipping": 1e6})[1], moved({})[1])


def test_l1_draws_each_weight_towards_zero_by_the_same_amount() -> None:
    start, plain = moved({})
    _, drawn = moved({"l1": 0.01})
    torch.testing.assert_close(plain - drawn, 0.5 * 0.01 * start.sign(), rtol=0, atol=1e-6)


def test_nesterov_steps_are_torchs() -> None:
    start, plain = moved({})
    _, ahead = moved({"momentum": 0.9, "nesterov": True})
    torch.testing.assert_close(ahead - start, 1.9 * (plain - start), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("training", [{"l1": 0.1}, {"gradient_clipping": 1.0}])
def test_private_runs_refuse_what_their_own_clipping_replaces(training: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"clipped to privacy\.clipping-norm"):
        make_run(training, format=2, privacy=PRIVACY)


def test_a_round_repeats_bit_for_bit_and_not_with_another_seed_site_or_round() -> None:
    run = make_run()
    first = train(run)
    torch.rand(3)
    assert train(run) == first
    others = [train(run, site="south"), train(run, round_=2), train(make_run(seed=1))]
    assert len({first, *others}) == 4


def test_another_process_gets_the_same_weights() -> None:
    program = (
        "import torch; torch.set_num_threads(1); from tests.client.train.test_training import make_run, train;"
        "print(train(make_run()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == train(make_run())


def test_dropout_repeats_too_and_the_global_random_state_is_left_alone() -> None:
    run = make_run(model={"dims": 2, "channels": (4, 8, 16), "dropout": 0.3})
    before = torch.random.get_rng_state()
    assert train(run) == train(run)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_first_step_is_the_gradient_step_worked_out_by_hand() -> None:
    still = {"flips": False, "rotation_degrees": 0, "scaling": 0, "intensity": 0}
    run = make_run(
        {
            "local_steps": 1,
            "batch_size": 1,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "weight_decay": 0,
            "augmentation": still,
        }
    )
    case = make_case("a", slices=1, size=32)
    model, reference = build_model(run), build_model(run)
    train_round(model, make_cohort(case), issue(run), round_=1, site="north", device="cpu")
    log_p = reference(case.images).log_softmax(1)
    truth, p = case.labels.float(), log_p[:, 1].exp()
    cross_entropy = -(log_p[:, 1] * truth + log_p[:, 0] * (1 - truth)).mean()
    (1 - 2 * (p * truth).sum() / (p.sum() + truth.sum()) + cross_entropy).backward()
    for trained, start in zip(model.parameters(), reference.parameters(), strict=True):
        assert start.grad is not None
        torch.testing.assert_close(trained, start - 0.1 * start.grad, atol=1e-6, rtol=1e-4)


def test_patients_are_drawn_alike_however_many_cases_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def record(stacks: Any, *_: Any) -> Any:
        drawn.extend(float(stack.images.flatten()[0]) for stack in stacks)
        raise InterruptedError

    monkeypatch.setattr("client.train.training.sample_crops", record)
    marks = [("a", "0", 0.0), ("b", "1", 1.0), ("b", "2", 2.0), ("b", "3", 3.0)]
    blank = torch.zeros(1, 32, 32, dtype=torch.uint8)
    cases = [Case(patient, key, "train", torch.full((1, 1, 32, 32), mark), blank) for patient, key, mark in marks]
    with pytest.raises(InterruptedError):
        train(make_run({"batch_size": 2000}), make_cohort(*cases))
    shares = [drawn.count(mark) / len(drawn) for *_, mark in marks]
    assert shares == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.05)


def test_held_out_cases_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    poison = Case("c", "0", "test", torch.full((1, 1, 32, 32), torch.nan), torch.zeros(1, 32, 32, dtype=torch.uint8))
    clean = make_cohort(make_case("a"), make_case("b"))
    assert train(make_run(), make_cohort(*clean.cases, poison)) == train(make_run(), clean)


def test_a_patient_is_scored_over_all_voxels_of_all_their_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.train.training.predict_stack", lambda _model, images, *_: images[:, 0].long())
    full, empty = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    truth = torch.ones(2, 8, 8, dtype=torch.uint8)
    cohort = make_cohort(
        Case("a", "0", "test", full, truth),
        Case("a", "1", "test", empty, truth),
        Case("b", "2", "test", full, truth),
        Case("c", "3", "validation", empty, truth),
    )
    run = make_run()
    # Patient a: 128 of 256 voxels found, nothing false: 2 * 128 / (256 + 128); patient b: 1.
    patients, scored = evaluate(build_model(run), cohort, run, "test", "cpu")
    assert patients == 2
    assert scored == pytest.approx(SCORES)
    assert evaluate(build_model(run), cohort, run, "validation", "cpu")[1]["dice"] == 0


def test_an_archive_of_single_slices_scores_as_its_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same three patients as volumes, and as a file per slice; half of the slices hold nothing."""
    monkeypatch.setattr("client.train.training.predict_stack", lambda _model, images, *_: images[:, 0].long())
    generator = torch.Generator().manual_seed(3)
    volumes, slices = [], []
    for patient in "abc":
        truth = torch.randint(2, (6, 8, 8), generator=generator, dtype=torch.uint8)
        truth[:3] = 0
        found = torch.randint(2, (6, 1, 8, 8), generator=generator).float()
        found[0] = 0
        volumes.append(Case(patient, patient, "test", found, truth))
        slices += [Case(patient, f"{patient}{z}", "test", found[z, None], truth[z, None]) for z in range(6)]
    run = make_run()
    whole, cut = (evaluate(build_model(run), make_cohort(*cases), run, "test", "cpu") for cases in (volumes, slices))
    assert whole == cut
    expected = [
        2 * float((case.images[:, 0] * case.labels).sum()) / float(case.images.sum() + case.labels.sum())
        for case in volumes
    ]
    assert whole[1]["dice"] == pytest.approx(sum(expected) / 3, abs=1e-9)


@pytest.mark.parametrize("every", [False, True])
def test_every_class_is_scored_whoever_the_patients_are_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, every: bool
) -> None:
    monkeypatch.setattr("client.train.training.predict_stack", lambda _model, images, *_: images[:, 0].long())
    run = make_run(data={"modality": "CT", "classes": ("liver", "tumour")})
    truth = torch.ones(1, 8, 8, dtype=torch.uint8)
    healthy, ill = (make_cohort(Case("a", "0", "test", truth[None].float(), truth * value)) for value in (1, 2))
    names = [set(evaluate(build_model(run), one, run, "test", "cpu", every_class=every)[1]) for one in (healthy, ill)]
    assert (names[0] == names[1]) == every
    assert ("dice-tumour" in names[0]) == every


def test_a_split_without_patients_has_no_scores() -> None:
    run = make_run()
    assert evaluate(build_model(run), make_cohort(), run, "test", "cpu") == (0, {})


def test_a_private_round_without_training_patients_is_one_of_noise_and_does_not_say_so() -> None:
    run = make_run(privacy={"target_epsilon": 8.0, "sampling_rate": 1.0})
    model = build_model(run)
    before = pack(model.state_dict())
    metrics = train_round(
        model, make_cohort(make_case("a", split="test")), issue(run), round_=1, site="north", device="cpu"
    )
    assert set(metrics) == {"steps", "seconds"}
    assert pack(model.state_dict()) != before


def test_a_site_without_training_patients_says_so() -> None:
    with pytest.raises(DataError, match="training split") as caught:
        train(make_run(), make_cohort(make_case("a", split="test")))
    assert caught.value.code is ErrorCode.NO_DATA


def test_a_loss_that_explodes_names_the_learning_rate() -> None:
    with pytest.raises(WardroundError, match=r"the loss.*learning-rate") as caught:
        train(make_run({"optimizer": "sgd", "learning_rate": 1e35}))
    assert caught.value.code is ErrorCode.NOT_FINITE


def test_weights_that_explode_in_the_last_step_are_noticed() -> None:
    with pytest.raises(WardroundError, match="weight") as caught:
        train(make_run({"optimizer": "sgd", "learning_rate": 1e38, "weight_decay": 100.0, "local_steps": 1}))
    assert caught.value.code is ErrorCode.NOT_FINITE


def test_the_cosine_runs_over_all_rounds_from_the_rate_to_a_hundredth() -> None:
    run = make_run({"learning_rate": 0.5, "local_steps": 10})
    rates = [learning_rate(run, step) for step in range(21)]
    assert rates[0] == 0.5
    assert rates[10] == pytest.approx(0.5 * 0.505)
    assert rates[20] == pytest.approx(0.005)
    assert rates == sorted(rates, reverse=True)


def test_a_round_takes_the_rates_of_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def record(_run: RunConfig, step: int) -> float:
        steps.append(step)
        return 0.01

    monkeypatch.setattr("client.train.optimizer.learning_rate", record)
    train(make_run(), round_=2)
    train(make_run(privacy=PRIVACY), round_=2)
    assert steps == [3, 4, 5, 3, 4, 5]


def test_a_constant_rate_stays() -> None:
    assert learning_rate(make_run({"schedule": "constant", "learning_rate": 0.5}), 17) == 0.5


@pytest.mark.parametrize("deterministic", [True, False])
def test_private_training_changes_the_weights_and_keeps_the_loss_to_itself(deterministic: bool) -> None:
    run = make_run(privacy=PRIVACY, deterministic=deterministic)
    model = build_model(run)
    before = pack(model.state_dict())
    metrics = train_round(model, make_cohort(), issue(run), round_=1, site="north", device="cpu")
    assert set(metrics) == {"steps", "seconds"}
    assert metrics["steps"] == 3
    assert pack(model.state_dict()) != before


def test_private_noise_never_repeats() -> None:
    run = make_run(privacy=PRIVACY)
    assert train(run) != train(run)


def test_a_private_step_samples_patients_not_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[tuple[int, ...]]] = []

    def record(_model: Any, _optimizer: Any, patients: Any, _loss: Any, **_: Any) -> None:
        batches.append([tuple(one.crops.shape) for one in patients])

    monkeypatch.setattr("client.train.training.private_step", record)
    monkeypatch.setattr(
        "client.train.training.sample_patients", lambda count, rate: [0, count - 1] if rate == 0.5 else []
    )
    train(make_run(privacy=PRIVACY), make_cohort(make_case("a"), make_case("b"), make_case("b", "1")))
    assert batches == [[(2, 1, 32, 32)] * 2] * 3


def test_a_private_step_without_patients_is_still_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.train.training.sample_patients", lambda *_: [])
    run = make_run(privacy=PRIVACY)
    assert train(run) != sha256(pack(build_model(run).state_dict()))
