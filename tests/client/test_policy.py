"""Each rule of policy.toml refuses what it forbids, and says so."""

import pytest

from client import policy
from client.pipe import Offer
from common.config import PolicyConfig, RunConfig, validate
from common.errors import ErrorCode, PolicyError


def a_run(*, privacy: dict[str, float] | None = None, rounds: int = 3, local_steps: int = 20) -> RunConfig:
    values: dict[str, object] = {
        "name": "lesions",
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [32, 32], "local-steps": local_steps},
        "federation": {"rounds": rounds},
    }
    return validate(RunConfig, values | ({"privacy": privacy} if privacy else {}))


def an_offer(*, patients: int = 10, parameters: int = 1000) -> Offer:
    return Offer(patients, patients, "cohort", patients, {}, parameters)


PRIVATE = a_run(privacy={"target-epsilon": 10.0})
STRICT = PolicyConfig()


def test_private_run_at_every_limit_is_allowed() -> None:
    rules = PolicyConfig(max_rounds=3, max_local_steps=20, max_parameters=1000, min_patients=10)
    policy.check(PRIVATE, rules, an_offer())


@pytest.mark.parametrize(
    ("run", "rules", "offer", "named"),
    [
        (a_run(), STRICT, None, "require-privacy"),
        (a_run(privacy={"target-epsilon": 10.1}), STRICT, None, "lifetime-epsilon 10"),
        (
            a_run(privacy={"target-epsilon": 1.0, "clipping-norm": 0.5}),
            PolicyConfig(min_clipping=0.6),
            None,
            "min-clipping 0.6",
        ),
        (PRIVATE, PolicyConfig(max_rounds=2), None, "max-rounds 2"),
        (PRIVATE, PolicyConfig(max_local_steps=19), None, "max-local-steps 19"),
        (PRIVATE, PolicyConfig(max_parameters=999), an_offer(), "max-parameters 999"),
        (PRIVATE, STRICT, an_offer(patients=9), "min-patients 10"),
    ],
)
def test_one_step_beyond_a_limit_is_refused_by_name(
    run: RunConfig, rules: PolicyConfig, offer: Offer | None, named: str
) -> None:
    with pytest.raises(PolicyError, match=named):
        policy.check(run, rules, offer)


def test_all_reasons_are_named_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        policy.check(a_run(rounds=501, local_steps=1001), STRICT, an_offer(patients=1))
    text = str(caught.value)
    assert all(rule in text for rule in ("require-privacy", "max-rounds", "max-local-steps", "min-patients"))
    assert caught.value.code == ErrorCode.POLICY_REFUSED


def test_too_few_patients_alone_has_its_own_code() -> None:
    with pytest.raises(PolicyError) as caught:
        policy.check(PRIVATE, STRICT, an_offer(patients=9))
    assert caught.value.code == ErrorCode.TOO_FEW_PATIENTS


def test_default_policy_refuses_a_run_without_privacy_and_asks_a_person() -> None:
    assert STRICT.require_privacy
    assert not STRICT.auto_approve
