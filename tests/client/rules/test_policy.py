"""Each rule of policy.toml refuses what it forbids, and says so."""

import dataclasses
import datetime
import math
from typing import Any

import pytest

from client.home.offer import Offer
from client.rules import policy
from client.rules.policy import Purpose
from common.config import InitialConfig, PolicyConfig, RunConfig, validate
from common.errors import ConfigError, ErrorCode, PolicyError
from common.identity.operators import Signer


def a_run(*, privacy: dict[str, float] | None = None, rounds: int = 3, local_steps: int = 20) -> RunConfig:
    values: dict[str, object] = {
        "name": "lesions",
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [32, 32], "local-steps": local_steps},
        "federation": {"rounds": rounds},
    }
    return validate(RunConfig, values | ({"privacy": privacy} if privacy else {}))


def an_offer(*, patients: int = 10, parameters: int = 1000) -> Offer:
    return Offer(
        patients,
        5 * math.ceil(patients / 5),
        "cohort",
        patients,
        {},
        {"weights": {"w": (parameters,)}},
        training=max(0, patients - 4),
    )


PRIVATE = a_run(privacy={"target-epsilon": 10.0})
FROM_WEIGHTS = PRIVATE.model_copy(update={"initial": InitialConfig(sha256="0" * 64)})
STRICT = PolicyConfig()
OPEN = PolicyConfig(require_privacy=False)


def check(run: RunConfig, rules: PolicyConfig, offer: Offer | None = None) -> None:
    policy.decide(run, rules, Purpose.APPROVAL, offer=offer).enforce()


def test_private_run_at_every_limit_is_allowed() -> None:
    rules = PolicyConfig(max_rounds=3, max_local_steps=20, max_parameters=1000, min_patients=10)
    check(PRIVATE, rules, an_offer())


@pytest.mark.parametrize(
    ("run", "rules", "offer", "named"),
    [
        (a_run(), STRICT, None, "require-privacy"),
        (FROM_WEIGHTS, STRICT, None, "nobody declares to be public"),
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
        (PRIVATE, STRICT, an_offer(patients=5), "5 patients are declared for it, fewer than min-patients 10"),
        (a_run(), OPEN, an_offer(patients=9), "9 patients are usable for it, fewer than min-patients 10"),
        (PRIVATE, PolicyConfig(architectures=("segnet",)), None, "architectures segnet"),
        (PRIVATE, PolicyConfig(modalities=("MR", "US")), None, "modalities MR, US"),
        (PRIVATE, PolicyConfig(max_learning_rate=9e-4), None, "max-learning-rate 0.0009"),
        (PRIVATE, PolicyConfig(min_learning_rate=2e-3), None, "min-learning-rate 0.002"),
        (PRIVATE, PolicyConfig(max_run_epsilon=9.0), None, "max-run-epsilon 9"),
        (PRIVATE, PolicyConfig(max_clipping=0.9), None, "max-clipping 0.9"),
        (PRIVATE, PolicyConfig(max_delta=0.009), an_offer(), "max-delta 0.009"),
        (
            a_run(privacy={"target-epsilon": 10.0, "delta": 0.005}),
            PolicyConfig(max_delta=0.004),
            None,
            "max-delta 0.004",
        ),
        (PRIVATE, PolicyConfig(min_noise_multiplier=50.0), an_offer(), "min-noise-multiplier 50"),
    ],
)
def test_one_step_beyond_a_limit_is_refused_by_name(
    run: RunConfig, rules: PolicyConfig, offer: Offer | None, named: str
) -> None:
    with pytest.raises(PolicyError, match=named):
        check(run, rules, offer)


def test_all_reasons_are_named_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        check(a_run(rounds=501, local_steps=1001), STRICT, an_offer(patients=1))
    text = str(caught.value)
    assert all(rule in text for rule in ("require-privacy", "max-rounds", "max-local-steps", "min-patients"))
    assert caught.value.code == ErrorCode.POLICY_REFUSED


def test_too_few_patients_alone_has_its_own_code() -> None:
    with pytest.raises(PolicyError) as caught:
        check(PRIVATE, STRICT, an_offer(patients=5))
    assert caught.value.code == ErrorCode.TOO_FEW_PATIENTS


@pytest.mark.parametrize("declared", [5, 10, 40])
def test_refusal_of_a_private_run_depends_on_the_declared_number_and_on_no_patient(declared: int) -> None:
    def refusal(patients: int) -> str:
        offer = dataclasses.replace(an_offer(patients=patients), declared_size=declared)
        try:
            check(PRIVATE, STRICT, offer)
        except PolicyError as error:
            return f"{error.code}: {error}"
        return "allowed"

    assert len({refusal(patients) for patients in (1, 9, 10, 11, 40, 41, 1000)}) == 1
    assert (refusal(10) == "allowed") == (declared >= 10)


def test_default_policy_refuses_a_run_without_privacy_and_asks_a_person() -> None:
    assert STRICT.require_privacy
    assert not STRICT.auto_approve


SIGNERS = (Signer("maria", "ab" * 32), Signer("ines", "cd" * 32))
# Everything refuses.
CLOSED = PolicyConfig(
    participate=False,
    operators=3,
    max_rounds=2,
    hours="20:00-06:00",
    max_rounds_per_day=1,
    max_parameters=999,
    min_patients=11,
    min_held_out=5,
)


def moment(
    rules: PolicyConfig, time: str = "12:00", rounds_today: int = 0, purpose: Purpose = Purpose.TRAINING
) -> None:
    now = datetime.time.fromisoformat(time)
    policy.decide(
        PRIVATE, rules, purpose, signers=SIGNERS, offer=an_offer(), rounds_today=rounds_today, now=now
    ).enforce()


@pytest.mark.parametrize(
    "purpose", [Purpose.APPROVAL, Purpose.EXCHANGE, Purpose.TRAINING, Purpose.EVALUATION, Purpose.WORK]
)
def test_switch_stops_everything(purpose: Purpose) -> None:
    moment(PolicyConfig(), purpose=purpose)
    with pytest.raises(PolicyError, match="participate = false"):
        moment(PolicyConfig(participate=False), purpose=purpose)


def test_a_pause_is_no_answer_to_a_run() -> None:
    moment(PolicyConfig(participate=False), purpose=Purpose.REFUSAL)
    with pytest.raises(PolicyError, match="max-rounds"):
        moment(PolicyConfig(participate=False, max_rounds=2), purpose=Purpose.REFUSAL)


@pytest.mark.parametrize(
    ("purpose", "codes"),
    [
        (Purpose.PROPOSAL, ["not-approved"]),
        (Purpose.REFUSAL, ["not-approved", "policy-refused"]),
        (Purpose.APPROVAL, ["policy-refused", "not-approved", *2 * ("policy-refused",), "too-few-patients"]),
        (Purpose.EXCHANGE, ["policy-refused", "not-approved", "policy-refused"]),
        (
            Purpose.TRAINING,
            [
                *("policy-refused", "not-approved", "policy-refused", "outside-hours", "rate-limited"),
                *("policy-refused", "too-few-patients"),
            ],
        ),
        (
            Purpose.EVALUATION,
            [
                *("policy-refused", "not-approved", "policy-refused", "outside-hours"),
                *("policy-refused", "too-few-patients"),
            ],
        ),
        (Purpose.WORK, [*3 * ("policy-refused",), *2 * ("too-few-patients",)]),
    ],
)
def test_each_purpose_asks_its_rules_and_says_all_that_refuse_with_their_codes(
    purpose: Purpose, codes: list[str]
) -> None:
    decision = policy.decide(
        PRIVATE,
        CLOSED,
        purpose,
        signers=SIGNERS,
        offer=an_offer(),
        rounds_today=1,
        held_out=4,
        now=datetime.time(12, 0),
    )
    assert [str(one.code) for one in decision.refused] == codes
    assert (decision.allowed, str(decision.code)) == (False, codes[0])
    with pytest.raises(PolicyError) as caught:
        decision.enforce()
    assert str(caught.value.code) == codes[0]
    assert all(one.why in str(caught.value) for one in decision.refused)


@pytest.mark.parametrize(
    ("purpose", "known", "named"),
    [
        (Purpose.PROPOSAL, {}, "signers"),
        (Purpose.EXCHANGE, {}, "signers"),
        (Purpose.TRAINING, {"offer": an_offer(), "rounds_today": 0}, "signers"),
        (Purpose.TRAINING, {"signers": SIGNERS, "rounds_today": 0}, "offer"),
        (Purpose.TRAINING, {"signers": SIGNERS, "offer": an_offer()}, "rounds_today"),
        (Purpose.EVALUATION, {"signers": SIGNERS}, "offer"),
        (Purpose.EVALUATION, {"offer": an_offer()}, "signers"),
        (Purpose.WORK, {}, "offer"),
    ],
)
def test_what_a_rule_must_know_is_not_left_out_by_mistake(purpose: Purpose, known: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        policy.decide(PRIVATE, PolicyConfig(), purpose, **known)


@pytest.mark.parametrize(
    ("signers", "wanted", "allowed"),
    [
        (SIGNERS, 2, True),
        (SIGNERS[:1], 2, False),
        ((SIGNERS[0], Signer("maria's other name", SIGNERS[0].key)), 2, False),
        ((SIGNERS[0], Signer(SIGNERS[0].name, "ef" * 32)), 2, False),
        ((), 1, False),
    ],
)
def test_as_many_people_must_have_signed_as_the_hospital_wants(
    signers: tuple[Signer, ...], wanted: int, allowed: bool
) -> None:
    decision = policy.decide(PRIVATE, PolicyConfig(operators=wanted), Purpose.PROPOSAL, signers=signers)
    assert decision.allowed == allowed
    assert decision.code == (None if allowed else ErrorCode.NOT_APPROVED)


@pytest.mark.parametrize(
    ("held_out", "code"), [(None, None), (10, None), (9, ErrorCode.TOO_FEW_PATIENTS), (0, ErrorCode.NO_DATA)]
)
def test_scores_of_few_held_out_patients_are_refused(held_out: int | None, code: ErrorCode | None) -> None:
    rules = PolicyConfig(min_held_out=10)
    assert policy.decide(PRIVATE, rules, Purpose.WORK, offer=an_offer(), held_out=held_out).code == code


@pytest.mark.parametrize(
    ("hours", "time", "open_"),
    [
        ("20:00-06:00", "19:59", False),
        ("20:00-06:00", "20:00", True),
        ("20:00-06:00", "00:00", True),
        ("20:00-06:00", "05:59", True),
        ("20:00-06:00", "06:00", False),
        ("08:00-17:30", "07:59", False),
        ("08:00-17:30", "17:29", True),
        ("08:00-17:30", "17:30", False),
    ],
)
def test_hours_hold_also_past_midnight(hours: str, time: str, open_: bool) -> None:
    rules = PolicyConfig(hours=hours)
    if open_:
        moment(rules, time)
        return
    with pytest.raises(PolicyError, match=hours) as caught:
        moment(rules, time)
    assert caught.value.code == ErrorCode.OUTSIDE_HOURS


def test_rounds_of_a_day_are_limited_and_scores_are_not_counted_among_them() -> None:
    moment(PolicyConfig(max_rounds_per_day=3), rounds_today=2)
    moment(PolicyConfig(max_rounds_per_day=3), rounds_today=3, purpose=Purpose.EVALUATION)
    with pytest.raises(PolicyError, match="max-rounds-per-day is 3") as caught:
        moment(PolicyConfig(max_rounds_per_day=3), rounds_today=3)
    assert caught.value.code == ErrorCode.RATE_LIMITED


@pytest.mark.parametrize("hours", ["8-17", "24:00-06:00", "20:00", "20:00-06:00 "])
def test_hours_of_another_form_are_refused(hours: str) -> None:
    with pytest.raises(ConfigError, match="hours"):
        validate(PolicyConfig, {"hours": hours})


def test_weights_that_are_declared_public_need_no_exception() -> None:
    declared = InitialConfig(sha256="0" * 64, public="trained on generated images alone")
    check(PRIVATE.model_copy(update={"initial": declared}), STRICT, an_offer())
    check(FROM_WEIGHTS, PolicyConfig(require_privacy=False), an_offer())
