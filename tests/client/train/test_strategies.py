"""The client halves: what steers a step, without privacy and with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.train import optimizer, training
from client.train.strategies import Kept, Local, local_of
from client.train.training import train_round
from common.config import RunConfig, validate
from common.config.rundocument import issue
from common.errors import ConfigError
from common.learning.network import build_model, weights_of
from common.privacy import engine, noise
from common.privacy.guarantee import plan, why_void
from common.strategies import STRATEGY_CHOICE
from common.strategies.fedprox import FedProx
from server.federation.strategies import aggregation_of
from tests.client.train.test_adaptive_clipping import a_cohort

PRIVATE = {"target-epsilon": 8.0, "sampling-rate": 0.5, "clipping-norm": 0.5}


def a_run(kind: str = "fedprox", *, privacy: Mapping[str, float] | None = None, **keys: float) -> RunConfig:
    return validate(
        RunConfig,
        {
            "format": 2,
            "name": "test",
            "model": {"channels": [4, 8, 16]},
            "data": {"modality": "CT", "classes": ["disc"]},
            "training": {
                "patch-size": [32, 32],
                "local-steps": 3,
                "optimizer": "sgd",
                "learning-rate": 0.05,
                "momentum": 0.0,
                "weight-decay": 0.0,
            },
            "federation": {"rounds": 2},
            "deterministic": True,
            "strategy": {"kind": kind, **keys},
            "privacy": privacy,
        },
    )


class Quadratic(nn.Module):
    """a / 2 (w - b)^2."""

    def __init__(self, a: float, b: float, start: float) -> None:
        super().__init__()
        self.w, self.a, self.b = nn.Parameter(torch.tensor([start], dtype=torch.float64)), a, b

    def forward(self) -> Tensor:
        return self.a / 2 * (self.w - self.b).square().sum()


def descended(model: Quadratic, mu: float, steps: int, rate: float = 0.1) -> float:
    local = local_of(FedProx(mu=mu), model, {})
    for _ in range(steps):
        model.zero_grad()
        model().backward()
        local.steer()
        torch.optim.SGD(model.parameters(), rate).step()
    return model.w.item()


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
def test_steps_on_a_quadratic_go_where_a_formula_says(mu: float) -> None:
    """The optimum of a/2 (w - b)^2 + mu/2 (w - s)^2 is (a b + mu s) / (a + mu); a step leaves 1 - rate (a + mu)."""
    a, b, start, rate = 2.0, 3.0, -1.0, 0.1
    optimum = (a * b + mu * start) / (a + mu)
    expected = optimum + (1 - rate * (a + mu)) ** 7 * (start - optimum)
    assert descended(Quadratic(a, b, start), mu, 7, rate) == pytest.approx(expected, rel=1e-12)


def test_two_unlike_sites_settle_where_the_formula_of_fedprox_says() -> None:
    """Solved to the end at each site, a round takes x to the mean of (a b + mu x) / (a + mu), with one fixed point."""
    sites, mu, x = [(1.0, 0.0), (4.0, 10.0)], 2.0, 5.0
    shares = [a / (a + mu) for a, _ in sites]
    fixed = sum(share * b for share, (_, b) in zip(shares, sites, strict=True)) / sum(shares)
    for _ in range(30):
        x = sum(descended(Quadratic(a, b, x), mu, 60) for a, b in sites) / len(sites)
    assert x == pytest.approx(fixed, rel=1e-6)


def after_a_round(run: RunConfig, local: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = build_model(run)
    half = local_of(run.strategy, model, {}) if local else None
    train_round(model, a_cohort(), issue(run), round_=1, site="north", device="cpu", site_key=b"k" * 32, local=half)
    return weights_of(model)


def distance(state: Mapping[str, Tensor], run: RunConfig) -> float:
    torch.manual_seed(0)
    start = weights_of(build_model(run))
    return float(sum((state[name] - one).square().sum() for name, one in start.items()) ** 0.5)


def test_with_mu_0_it_is_fedavg_bit_for_bit() -> None:
    plain, prox = after_a_round(a_run("fedavg"), local=False), after_a_round(a_run(mu=0.0))
    assert all(torch.equal(plain[name], one) for name, one in prox.items())


def test_the_larger_mu_the_nearer_a_round_stays_to_what_was_sent() -> None:
    runs = [a_run(mu=mu) for mu in (0.0, 5.0, 15.0)]
    none, some, much = (distance(after_a_round(run), run) for run in runs)
    assert none > 1.1 * some > 1.1 * 1.1 * much


UNLIKE = [(1.0, 0.0), (4.0, 10.0)]  # a and b of two sites


def settled(run: RunConfig, rounds: int, absent: Sequence[int] = ()) -> float:
    """Where rounds on two unlike quadratics come to lie; in rounds that are absent the second site takes no part."""
    training, server = run.training, aggregation_of(run)
    server.start({"weights": {"w": torch.tensor([5.0], dtype=torch.float64)}})
    kept: dict[int, Kept] = {}
    for number in range(1, rounds + 1):
        for place, (a, b) in enumerate(UNLIKE):
            if place == 1 and number in absent:
                continue
            model = Quadratic(a, b, server.held["weights"]["w"].item())
            local = local_of(run.strategy, model, {})
            local.remember(run, number, kept.get(place))
            optimizer = torch.optim.SGD(model.parameters(), training.learning_rate, momentum=training.momentum)
            for _ in range(training.local_steps):
                model.zero_grad()
                model().backward()
                local.steer()
                optimizer.step()
            server.add({"weights": weights_of(model)}, 1.0)
            kept[place] = Kept(number, local.kept())
        server.finish(number)
    return server.held["weights"]["w"].item()


def on_quadratics(kind: str, rounds: int, **keys: float) -> RunConfig:
    run = a_run(kind, privacy=None, **keys)
    changes = {"local_steps": 10, "momentum": 0.5, "schedule": "constant"}
    training = run.training.model_copy(update=changes)
    federation = run.federation.model_copy(update={"rounds": rounds})
    return run.model_copy(update={"training": training, "federation": federation})


@pytest.mark.parametrize(("kind", "keys"), [("scaffold", {}), ("feddyn", {"alpha": 0.5})])
def test_unlike_sites_settle_at_the_optimum_of_all_where_fedavg_does_not(kind: str, keys: dict[str, float]) -> None:
    """Of a/2 (w - b)^2 for both that is (1 * 0 + 4 * 10) / (1 + 4) = 8."""
    assert abs(settled(on_quadratics("fedavg", 60), 60) - 8) > 0.5
    assert settled(on_quadratics(kind, 60, **keys), 60) == pytest.approx(8, abs=1e-6)


@pytest.mark.parametrize(("kind", "keys"), [("scaffold", {}), ("feddyn", {"alpha": 0.5})])
def test_a_site_may_miss_a_round_of_a_settled_run_and_early_ones_cost_less_than_fedavg(
    kind: str, keys: dict[str, float]
) -> None:
    run = on_quadratics(kind, 120, **keys)
    assert settled(run, 120, absent=[60]) == pytest.approx(8, abs=1e-3)
    if kind == "scaffold":
        assert settled(run, 120, absent=[4, 5, 9]) == pytest.approx(8, abs=1e-3)
    assert abs(settled(run, 120, absent=[4, 5, 9]) - 8) < 0.3 < abs(settled(on_quadratics("fedavg", 60), 60) - 8) / 4


def test_scaffold_with_an_optimizer_whose_steps_are_not_linear_is_refused() -> None:
    values = a_run().model_dump(by_alias=True)
    values["training"]["optimizer"] = "adamw"
    with pytest.raises(ConfigError, match=r"strategy.kind 'scaffold' is worked out for plain steps: set training"):
        validate(RunConfig, values | {"strategy": {"kind": "scaffold"}})


class _Watching(Local[FedProx]):
    """Remembers the gradients that it finds."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.found: list[dict[str, Tensor]] = []

    def steer(self) -> None:
        gradients = {name: one.grad for name, one in self.model.named_parameters()}
        self.found.append({name: one.clone() for name, one in gradients.items() if one is not None})


def test_in_a_private_run_it_finds_the_noisy_mean_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: what the noise made of the clipped sum, over the expected number of patients."""
    run = a_run(privacy=PRIVATE)
    model = build_model(run)
    noisy: list[list[Tensor]] = []
    noised = noise.noised

    def remembered(*given: Any, **named: Any) -> list[Tensor]:
        noisy.append(noised(*given, **named))
        return noisy[-1]

    monkeypatch.setattr(engine, "noised", remembered)
    watching = _Watching(run.strategy, model, {})
    train_round(model, a_cohort(), issue(run), round_=1, site="north", device="cpu", local=watching)
    budget = plan(run, a_cohort().declared_size)
    assert len(watching.found) == len(noisy) == budget.steps_per_round
    for found, sums in zip(watching.found, noisy, strict=True):
        for gradient, total in zip(found.values(), sums, strict=True):
            torch.testing.assert_close(
                gradient, (total / budget.expected_patients).to(gradient.dtype).view_as(gradient)
            )


def test_in_a_private_run_what_is_steered_moves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise or patients: from a model that was moved by 1, a step goes back by rate * mu."""
    run = a_run(privacy=PRIVATE, mu=2.0)
    torch.manual_seed(0)
    model = build_model(run)
    local = local_of(run.strategy, model, {})
    sent = {name: one.clone() for name, one in weights_of(model).items()}
    with torch.no_grad():
        for one in model.parameters():
            one.add_(1.0)
    monkeypatch.setattr(engine, "noised", lambda sums, **_: [torch.zeros_like(one) for one in sums])
    monkeypatch.setattr(training, "sample_patients", lambda *_: [])
    monkeypatch.setattr(optimizer, "learning_rate", lambda *_: 0.1)
    train_round(model, a_cohort(), issue(run), round_=1, site="north", device="cpu", local=local)
    steps = plan(run, a_cohort().declared_size).steps_per_round
    for name, after in weights_of(model).items():
        torch.testing.assert_close(after - sent[name], torch.full_like(after, (1 - 0.1 * 2.0) ** steps))


@pytest.mark.parametrize("kind", sorted(STRATEGY_CHOICE.by_name.keys() - {"fedpid"}))
def test_every_strategy_may_train_with_privacy(kind: str) -> None:
    """At the coordinator it works with what was released; at a site after the noise. One is refused by name."""
    values = a_run(privacy=PRIVATE).model_dump(by_alias=True)
    values["federation"]["quorum"] = 7
    assert why_void(validate(RunConfig, values | {"strategy": {"kind": kind}})) is None
