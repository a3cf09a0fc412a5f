"""What a hospital does with a run whose clipping adapts: policy, charge and training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from client.data.cohort import Case, Cohort
from client.home.offer import Offer
from client.rules import policy
from client.rules.policy import Purpose
from client.train import training
from client.train.training import train_round
from common.config import PolicyConfig, RunConfig, SiteConfig, validate
from common.config.rundocument import issue
from common.errors import ErrorCode, PolicyError, PrivacyError
from common.learning.network import build_model
from common.privacy.engine import private_step
from common.privacy.guarantee import charge_round, plan
from simulations.scenarios.homes import make_site

ADAPTIVE = {"quantile": 0.5, "learning-rate": 0.3, "count-noise": 6.0}


def a_run(adaptive: dict[str, float] | None = ADAPTIVE, **privacy: float) -> RunConfig:
    table: dict[str, Any] = {"target-epsilon": 8.0, "sampling-rate": 0.5, "clipping-norm": 0.5} | privacy
    if adaptive is not None:
        table["adaptive-clipping"] = adaptive
    return validate(
        RunConfig,
        {
            "name": "test",
            "model": {"channels": [4, 8, 16]},
            "data": {"modality": "CT", "classes": ["disc"], "validation-fraction": 0.1, "test-fraction": 0.2},
            "training": {"patch-size": [32, 32], "local-steps": 3},
            "federation": {"rounds": 2},
            "deterministic": True,
            "privacy": table,
        },
    )


def a_cohort(patients: int = 2) -> Cohort:
    generator = torch.Generator().manual_seed(0)
    cases = tuple(
        Case(str(number), str(number), "train", torch.rand(2, 1, 32, 32, generator=generator), label)
        for number in range(patients)
        for label in [(torch.rand(2, 32, 32, generator=generator) > 0.5).to(torch.uint8)]
    )
    return Cohort(cases, (), "cohort", 20)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (PolicyConfig(max_clipping=49.0), "adaptive clipping-norm 50 exceeds max-clipping 49"),
        (PolicyConfig(min_clipping=0.006), "adaptive clipping-norm 0.005 is below min-clipping 0.006"),
    ],
)
def test_a_policy_limits_the_norms_that_may_be_reached_not_only_the_first(rules: PolicyConfig, named: str) -> None:
    policy.decide(a_run(None), rules, Purpose.APPROVAL).enforce()
    with pytest.raises(PolicyError, match=named):
        policy.decide(a_run(), rules, Purpose.APPROVAL).enforce()


def test_a_policy_that_allows_both_bounds_allows_the_run() -> None:
    rules = PolicyConfig(min_clipping=0.005, max_clipping=50.0)
    policy.decide(a_run(), rules, Purpose.APPROVAL).enforce()


def test_the_charge_is_that_of_a_fixed_norm(tmp_path: Path) -> None:
    charges: list[Any] = []
    for name, run in (("fixed", a_run(None)), ("adaptive", a_run())):
        ledger = make_site(tmp_path, SiteConfig(name=name)).ledger
        charge_round(ledger, issue(run), cohort="c", cohort_size=20, round_=1, attempt="a", lifetime_epsilon=8.0)
        charges.append([(one.noise_multiplier, one.sampling_rate, one.steps) for one in ledger.entries()])
    assert charges[0] == charges[1]
    assert len(charges[0]) == 1


def test_a_site_refuses_a_count_whose_noise_cannot_pay_for_it() -> None:
    offer = Offer(20, 20, "cohort", 20, {}, {"weights": {"w": (10,)}}, training=14)
    run = a_run(ADAPTIVE | {"count-noise": 0.1})
    with pytest.raises(PrivacyError, match="count-noise") as caught:
        policy.decide(run, PolicyConfig(), Purpose.APPROVAL, offer=offer)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_training_raises_the_noise_and_starts_each_round_from_the_first_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = a_run(), []
    real = private_step

    def record(model: Any, optimizer: Any, *rest: Any, **options: Any) -> Any:
        seen.append((optimizer.max_grad_norm, optimizer.noise_multiplier, optimizer.clipping_rule.expected_patients))
        return real(model, optimizer, *rest, **options)

    monkeypatch.setattr(training, "private_step", record)
    model = build_model(run)
    for round_ in (1, 2):
        train_round(model, a_cohort(), issue(run), round_=round_, site="north", device="cpu")
    budget = plan(run, 20)
    norms = [norm for norm, _, _ in seen]
    assert len(norms) == 6
    assert norms[0] == norms[3] == 0.5
    assert len(set(norms)) == 5
    assert {noise for _, noise, _ in seen} == {budget.gradient_noise_multiplier}
    assert budget.gradient_noise_multiplier > budget.noise_multiplier
    # Half of 20 declared patients are sampled, of whom the run holds out three tenths.
    assert [expected for _, _, expected in seen] == pytest.approx([7.0] * 6)
