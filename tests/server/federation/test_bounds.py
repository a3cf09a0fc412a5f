"""No update of a run leads farther than its training could; what honest training makes always stays within."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from client.data.cohort import Cohort
from client.train.training import train_round
from common.config import RunConfig, validate
from common.config.rundocument import issue
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model
from common.learning.schedule import rates_of_round
from common.privacy.guarantee import plan
from common.wire.messages import EvaluateReply, Request, TrainReply, TrainRequest
from server.federation.bounds import farthest
from server.federation.events import read_events
from server.federation.rounds import federate
from server.federation.strategies.weighing import capped, tempered
from tests.client.train.test_training import make_case, make_run
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run, price, trains

PRIVATE: dict[str, Any] = {"target_epsilon": 8.0, "sampling_rate": 0.5, "crops_per_patient": 2}


def norm_of(state: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in state.values()))


def honest(run: RunConfig, patients: int, declared: int, round_: int = 1) -> tuple[float, float]:
    """A round of real training: how far it led, and how far it could at most."""
    model = build_model(run)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cases = tuple(make_case(f"p{number}") for number in range(patients))
    train_round(model, Cohort(cases, (), "cohort", declared), issue(run), round_=round_, site="north", device="cpu")
    moved = norm_of({name: tensor - start[name] for name, tensor in model.state_dict().items()})
    delta = None if run.privacy is None else plan(run, declared).delta
    return moved, farthest(run, round_, norm_of(start), delta=delta)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"learning_rate": 0.1, "local_steps": 12},
        {"learning_rate": 0.1, "weight_decay": 2.0},
        {"trainable": "norm-and-head", "learning_rate": 0.01},
        {"schedule": "constant"},
    ],
    ids=str,
)
@pytest.mark.parametrize("privacy", [None, PRIVATE], ids=["plain", "private"])
def test_honest_adamw_stays_within_the_bound(training: dict[str, Any], privacy: Any) -> None:
    for round_ in (1, 2):
        moved, bound = honest(make_run(training, privacy=privacy), 2, 5, round_)
        assert 0.05 * bound < moved <= bound


@pytest.mark.parametrize(("patients", "declared"), [(1, 1), (3, 5), (6, 40)])
@pytest.mark.parametrize(
    "training",
    [
        {"momentum": 0.0},
        {"momentum": 0.9, "local_steps": 8},
        {"momentum": 0.9, "local_steps": 8, "nesterov": True, "warmup_steps": 3},
        {"momentum": 0.9, "weight_decay": 0.1, "learning_rate": 0.1},
        {"trainable": "norm-and-head"},
    ],
    ids=str,
)
def test_honest_private_sgd_stays_within_the_bound_and_the_bound_is_near(
    training: dict[str, Any], patients: int, declared: int
) -> None:
    run = make_run({"optimizer": "sgd", "learning_rate": 0.5, **training}, privacy=PRIVATE, format=2)
    for _ in range(3):  # the noise is another one each time
        moved, bound = honest(run, patients, declared)
        assert 0.1 * bound < moved <= bound


@pytest.mark.parametrize("nesterov", [False, True])
def test_honest_sgd_with_clipped_gradients_stays_within_the_bound(nesterov: bool) -> None:
    clipped = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 6, "gradient_clipping": 0.01}
    moved, bound = honest(make_run({**clipped, "nesterov": nesterov, "schedule": "constant"}, format=2), 2, 5)
    assert 0.3 * bound < moved <= bound


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_bound_is_reached_by_gradients_that_all_point_one_way(nesterov: bool) -> None:
    steps = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "gradient_clipping": 1.0, "local_steps": 7}
    run = make_run({**steps, "nesterov": nesterov, "cycles": 2}, format=2)
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1, 0.9, nesterov=nesterov)
    for rate in rates_of_round(run, 1):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    assert float(weight.detach().abs()) == pytest.approx(farthest(run, 1, 0.0), rel=2e-3)


def test_honest_adaptive_clipping_and_a_delta_of_the_runs_own_stay_within_the_bound() -> None:
    adaptive = {**PRIVATE, "clipping_norm": 0.01, "adaptive_clipping": {"quantile": 0.9, "learning_rate": 0.5}}
    for privacy in (adaptive, {**PRIVATE, "delta": 0.001}):
        run = make_run({"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 8}, privacy=privacy)
        for _ in range(5):
            moved, bound = honest(run, 3, 20)
            assert moved <= bound


def test_no_sequence_of_gradients_leads_adamw_beyond_the_bound() -> None:
    run = a_run(training={"optimizer": "adamw", "local-steps": 30, "learning-rate": 0.01, "weight-decay": 0.0})
    values = sum(parameter.numel() for parameter in build_model(run).parameters())
    bound = farthest(run, 1, 0.0) / math.sqrt(values)  # of one weight
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for kind in range(60):
        weight = torch.zeros(200, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], weight_decay=0.0)
        growth = torch.exp(torch.randn(200, generator=generator, dtype=torch.float64) * kind / 20)
        for step, rate in enumerate(rates_of_round(run, 1)):
            optimizer.param_groups[0]["lr"] = rate
            noise = torch.randn(200, generator=generator, dtype=torch.float64) if kind % 2 else 1.0
            weight.grad = growth**step * noise * torch.ones(200, dtype=torch.float64)
            optimizer.step()
        worst = max(worst, float(weight.detach().abs().max()))
    assert 0.9 * bound < worst <= bound


def test_an_update_that_replaces_the_model_is_refused_by_name(tmp_path: Path) -> None:
    # As the shipped defaults are: 20 steps of AdamW at 0.001. A model of norm 149 beside one of norm 25 took over.
    run = validate(
        RunConfig,
        {
            "name": "defaults",
            "data": {"modality": "CT", "classes": ["lesion"]},
            "training": {"patch-size": [32, 32]},
            "federation": {"rounds": 1, "round-timeout-s": 60.0, "join-timeout-s": 0.05},
        },
    )
    start = build_model(run).state_dict()
    assert 20 < norm_of(start) < 40
    grid = FakeGrid({"a": trains(nearly(0.001)), "b": trains(nearly(0.002)), "c": trains(lands_at(149.0))})
    summary = federate(grid, issue(run), tmp_path, wake=lambda _: None)
    assert summary.sites_by_round[0]["refused"] == {"c": "update-too-large"}


def test_an_update_far_beyond_the_median_of_the_round_is_refused_by_name(tmp_path: Path) -> None:
    # Plain SGD: nothing in the run bounds a step, so the others are what an update is held against.
    run = a_run(rounds=1, quorum=2, training={"optimizer": "sgd"})
    sites = {"a": nearly(0.010), "b": nearly(0.012), "c": nearly(0.030), "d": nearly(0.30)}
    grid = FakeGrid({name: trains(change) for name, change in sites.items()})
    summary = federate(grid, issue(run), tmp_path, wake=lambda _: None)
    assert summary.sites_by_round == (
        {
            "round": 1,
            "sites": ["a", "b", "c"],
            "refused": {"d": "update-too-large"},
            "refused-by-coordinator": ["d"],
            "missing": [],
        },
    )


def test_two_sites_have_no_median_and_both_enter(tmp_path: Path) -> None:
    run = a_run(rounds=1, training={"optimizer": "sgd"})
    grid = FakeGrid({"a": trains(nearly(0.001)), "b": trains(nearly(0.3))})
    assert federate(grid, issue(run), tmp_path, wake=lambda _: None).sites_by_round[0]["sites"] == ["a", "b"]


def test_a_count_of_a_million_does_not_outvote_the_others(tmp_path: Path) -> None:
    run = a_run(rounds=1, training={"optimizer": "sgd"})
    sites = {"a": (0.1, 30), "b": (0.1, 50), "c": (-0.1, 1_000_000)}
    grid = FakeGrid({name: trains(nearly(step), count) for name, (step, count) in sites.items()})
    federate(grid, issue(run), tmp_path, wake=lambda _: None)
    got = unpack((tmp_path / "model.safetensors").read_bytes())
    for name, start in build_model(run).state_dict().items():
        # By their counts alone c would decide: -0.1. At most it weighs what a and b weigh together: 0.
        torch.testing.assert_close(got[name], start, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ({"a": 30, "b": 50, "c": 1_000_000}, {"a": 30, "b": 50, "c": 80}),
        ({"a": 30, "b": 50, "c": 70}, {"a": 30, "b": 50, "c": 70}),
        ({"a": 10, "b": 1_000_000}, {"a": 10, "b": 40}),
        ({"a": 10, "b": 40}, {"a": 10, "b": 40}),
        ({"a": 1_000_000, "b": 1_000_000, "c": 5}, {"a": 1_000_000, "b": 1_000_000, "c": 5}),
        ({"a": 7}, {"a": 7}),
        ({}, {}),
    ],
)
def test_largest_weight_is_at_most_that_of_the_others_together(counts: Any, weights: Any) -> None:
    assert capped(counts) == weights


def states(run: RunConfig, patients: int, share: float, sign: float = 1.0) -> FakeSite:
    """A site of a private run that declares so many patients, and moves this share of what it then may."""
    start = build_model(run).state_dict()
    values = sum(tensor.numel() for tensor in start.values())
    limit = farthest(run, 1, norm_of(start), delta=plan(run, patients).delta)
    update = trains(nearly(sign * share * limit / math.sqrt(values)), patients=0)

    def site(request: Request) -> Said:
        reply = update(request)
        assert isinstance(reply, TrainReply | EvaluateReply)
        reply.metrics.update(price(run, 1, patients))
        return reply

    return site


def test_a_site_that_declares_one_patient_does_not_drown_the_others(tmp_path: Path) -> None:
    # Its honest noise would lead so far, so it is not refused; but nobody can check that it has one patient.
    run = a_run(rounds=1, privacy={"target-epsilon": 8.0}, training={"learning-rate": 1.0})
    start = build_model(run).state_dict()
    (honest_limit, hostile_limit) = (
        farthest(run, 1, norm_of(start), delta=plan(run, patients).delta) for patients in (200, 1)
    )
    assert hostile_limit > 5 * honest_limit
    grid = FakeGrid(
        {"a": states(run, 200, 0.3), "b": states(run, 200, 0.3), "c": states(run, 1, 0.9, sign=-1.0)},
    )
    summary = federate(grid, issue(run), tmp_path, wake=lambda _: None)
    assert summary.sites_by_round[0]["sites"] == ["a", "b", "c"]
    (line,) = [one for one in read_events(tmp_path / "metrics.jsonl") if one["event"] == "round"]
    assert line["capped"] == ["c"]
    got = unpack((tmp_path / "model.safetensors").read_bytes())
    moved = norm_of({name: tensor - start[name] for name, tensor in got.items()})
    # By hand: a and b pull one way, 0.3 limits each, and c the other way as far as five of them would.
    one, weight = 0.3 * honest_limit, 5 * 0.3 * honest_limit / (0.9 * hostile_limit)
    assert moved == pytest.approx((5 * one - 2 * one) / (2 + weight), rel=1e-3)


@pytest.mark.parametrize(
    ("distances", "weights"),
    [
        ({"a": 1.0, "b": 1.2, "c": 4.9}, {"a": 1.0, "b": 1.0, "c": 1.0}),
        ({"a": 1.0, "b": 1.0, "c": 50.0}, {"a": 1.0, "b": 1.0, "c": 0.1}),
        ({"a": 0.0, "b": 0.0, "c": 9.0}, {"a": 1.0, "b": 1.0, "c": 1.0}),
        ({"a": 1.0, "b": 100.0}, {"a": 1.0, "b": 1.0}),
    ],
)
def test_update_far_beyond_the_median_weighs_less_by_as_much(distances: Any, weights: Any) -> None:
    assert tempered(dict.fromkeys(distances, 1.0), distances, timed=False) == pytest.approx(weights)


def nearly(step: float) -> Any:
    """An update that moves each weight by `step`."""

    def change(request: TrainRequest) -> bytes:
        return pack({name: tensor + step for name, tensor in unpack(request.parts["weights"]).items()})

    return change


def lands_at(norm: float) -> Any:
    """A model of this norm instead of an update."""

    def change(request: TrainRequest) -> bytes:
        state = unpack(request.parts["weights"])
        return pack({name: tensor * (norm / norm_of(state)) for name, tensor in state.items()})

    return change
