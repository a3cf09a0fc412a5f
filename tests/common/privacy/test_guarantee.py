"""The plan of a private run and the guarantee printed with its model."""

import inspect
import json
import re
from pathlib import Path

import pytest

from client.rules.exit_gate import score_names, train_metrics
from client.site import open_site
from common.config import RunConfig, validate
from common.config.rundocument import issue
from common.errors import ConfigError, ErrorCode, PrivacyError
from common.privacy import noise
from common.privacy.accountant import epsilon
from common.privacy.guarantee import NOISE, PUBLIC, charge_round, guarantee, not_covered, plan
from common.privacy.ledger import Ledger
from simulations.scenarios.homes import make_site
from tests.client.data.cohorts import load_cohort
from tests.simulations.tiny import tiny_run, tiny_site


def run(**privacy: object) -> RunConfig:
    values = {
        "name": "phantoms",
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [64, 64], "local-steps": 20},
        "federation": {"rounds": 5},
        "privacy": {"target-epsilon": 4.0, "sampling-rate": 0.25, "clipping-norm": 0.5} | privacy,
    }
    return validate(RunConfig, values)


def test_a_plan_spends_the_target_over_the_whole_run_and_no_more():
    private = plan(run(), 80)
    spent = epsilon([(private.noise_multiplier, private.sampling_rate, 5 * private.steps_per_round)], private.delta)
    assert 0.99 * 4 <= spent <= 4


def test_delta_follows_the_declared_cohort():
    assert plan(run(), 80).delta == pytest.approx(1 / 800)
    assert plan(run(), 1).delta == pytest.approx(1 / 10)


def test_expected_patients_follow_the_declared_cohort():
    assert plan(run(), 80).expected_patients == 20


@pytest.mark.parametrize("delta", [1e-11, 1e-30, 1e-100, 1e-306, 5e-324])
def test_delta_that_the_accountant_cannot_resolve_is_no_setting(delta):
    """At 1e-100 it failed with an IndexError, which ended the agent when the run was proposed."""
    with pytest.raises(ConfigError, match="delta"):
        run(delta=delta)


@pytest.mark.parametrize("target", [1e-3, 0.05, 1.0, 9.9])
@pytest.mark.parametrize("rate", [1e-300, 1e-9, 0.25, 0.999999, 1.0])
def test_whatever_can_be_written_is_planned_or_refused(target, rate):
    try:
        private = plan(run(**{"target-epsilon": target, "sampling-rate": rate, "delta": 1e-10}), 80)
    except PrivacyError:
        return
    steps = 5 * private.steps_per_round
    assert epsilon([(private.noise_multiplier, private.sampling_rate, steps)], private.delta) <= target


def test_a_smaller_delta_is_used_and_needs_more_noise():
    strict = plan(run(delta=1e-6), 80)
    assert strict.delta == 1e-6
    assert strict.noise_multiplier > plan(run(), 80).noise_multiplier


def test_a_larger_delta_is_refused():
    assert plan(run(delta=1 / 800), 80).delta == 1 / 800
    with pytest.raises(PrivacyError, match=r"1 / \(10 N\) = 0\.00125") as caught:
        plan(run(delta=0.00126), 80)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_a_cohort_without_patients_is_refused():
    with pytest.raises(PrivacyError) as caught:
        plan(run(), 0)
    assert caught.value.code is ErrorCode.TOO_FEW_PATIENTS


def test_a_run_without_privacy_has_no_plan_and_no_guarantee():
    plain = run().model_copy(update={"privacy": None})
    with pytest.raises(PrivacyError, match=r"no \[privacy\] table"):
        plan(plain, 80)
    with pytest.raises(PrivacyError, match="no guarantee"):
        guarantee(plain, epsilon=1.0, delta=1e-3, steps=1)


def test_plans_are_repeatable():
    assert plan(run(), 35) == plan(run(), 35)


def test_the_guarantee_says_all_it_rests_on():
    private = plan(run(), 80)
    stated = json.loads(json.dumps(guarantee(run(), epsilon=1.25, delta=private.delta, steps=40).as_dict()))
    assert stated["public"]
    assert stated["not-covered"]
    assert stated == {
        "epsilon": 1.25,
        "delta": 1 / 800,
        "unit": "patient",
        "cohort-size-class": "50-99",
        "sampling": "Poisson: each patient in each step with probability 0.25",
        "sampling-rate": 0.25,
        "steps": 40,
        "noise-multiplier": private.noise_multiplier,
        "gradient-noise-multiplier": private.noise_multiplier,
        "clipping-norm": 0.5,
        "clipping": "fixed norm 0.5",
        "noise": NOISE,
        "accountant": "PRV",
        "held-out": "no scores",
        "public": stated["public"],
        "not-covered": stated["not-covered"],
    }
    assert "a patient with data at several sites" in stated["not-covered"]


def test_the_guarantee_says_whether_held_out_patients_have_one():
    def said(scores):
        return guarantee(run(), epsilon=1.25, delta=1 / 800, steps=40, scores=scores).held_out

    noised = {"dice": 0.8, "score-noise": 0.05, "scores-epsilon": 0.987, "scores-delta": 1 / 800}
    assert said(noised) == "noised scores: epsilon 0.987 at delta 0.0013 for a held-out patient in this run"
    assert said({"dice": 0.8}) == "exact scores: no guarantee covers a held-out patient"
    assert any("exact ones" in text for text in not_covered(run().task))
    # A patient's place follows from the patient alone, so it is no longer something that has to be public.
    assert not any("held out for" in text for text in PUBLIC)


def adaptive(**changes: float) -> RunConfig:
    return run(**{"adaptive-clipping": {"quantile": 0.6, "learning-rate": 0.3, "count-noise": 4.5} | changes})


def test_the_guarantee_says_how_clipping_adapts_and_what_noise_the_gradients_got():
    fixed, private = plan(run(), 80), plan(adaptive(), 80)
    stated = guarantee(adaptive(), epsilon=1.25, delta=private.delta, steps=40).as_dict()
    assert stated["noise-multiplier"] == fixed.noise_multiplier
    assert stated["gradient-noise-multiplier"] == private.gradient_noise_multiplier
    # One over the square of each: what gradients and count may cost adds up to the charge.
    parts = private.gradient_noise_multiplier**-2 + (2 * 4.5) ** -2
    assert parts == pytest.approx(fixed.noise_multiplier**-2)
    assert stated["clipping-norm"] == 0.5
    for said in ("adaptive from 0.5 in each round", "quantile 0.6", "within 0.005 and 50", "deviation 4.5 patients"):
        assert said in str(stated["clipping"])


def test_adaptive_clipping_changes_nothing_that_is_charged():
    fixed, private = plan(run(), 80), plan(adaptive(), 80)
    for name in ("noise_multiplier", "delta", "sampling_rate", "steps_per_round", "expected_patients"):
        assert getattr(private, name) == getattr(fixed, name)


def test_a_count_that_would_take_the_charge_is_refused_by_plan_and_guarantee():
    for stated in (lambda run: plan(run, 80), lambda run: guarantee(run, epsilon=1.0, delta=1 / 800, steps=20)):
        with pytest.raises(PrivacyError, match="count-noise"):
            stated(adaptive(**{"count-noise": 0.5}))


@pytest.mark.parametrize(
    ("data", "fraction"),
    [
        ({"validation-fraction": 0.1, "test-fraction": 0.2}, 0.7),
        ({"validation-fraction": 0.1, "test-fraction": 0.9, "folds": 5}, 0.7),
        ({"validation-fraction": 0.0, "test-fraction": 0.0}, 1.0),
    ],
)
def test_patients_that_the_run_holds_out_are_not_expected_in_a_step(data, fraction):
    asked = validate(RunConfig, run().model_dump(by_alias=True) | {"data": {"modality": "CT", "classes": ["a"]} | data})
    assert plan(asked, 80).expected_in_training == pytest.approx(20 * fraction)


def test_every_number_that_the_exit_gate_lets_out_is_in_the_guarantee():
    leaves = train_metrics(run()) | score_names(run(), scores="noised") | score_names(run(), scores="exact")
    stated = set(re.findall(r"[\w-]+", " ".join((*PUBLIC, *not_covered(run().task)))))
    assert {name.replace("dice-lesion", "dice-CLASS") for name in leaves} <= stated
    # Under privacy no count leaves: sites weigh the same.
    assert run().weighting == "equal"


def test_the_noise_is_what_the_guarantee_says():
    said = {"Gaussian": "gaussian_steps", "AES-256": "AES256", "operating system": "os.urandom", "grid": "on_grid"}
    source = Path(noise.__file__).read_text(encoding="utf-8")
    assert all(word in NOISE and name in source for word, name in said.items())
    assert "seed" not in inspect.signature(noise.noised).parameters


def test_all_sources_of_a_site_share_one_budget(tmp_path: Path) -> None:
    """Other images, labels or classes are another data set, but may be of the same patients."""
    key = b"k" * 32
    ledger = Ledger(tmp_path / "ledger.sqlite", key)
    home = make_site(tmp_path, tiny_site(tmp_path / "a", "north", patients=3)).home
    other = make_site(tmp_path, tiny_site(tmp_path / "b", "south", patients=4)).home
    cohorts = []
    for folder, config in ((home, open_site(home).config), (other, open_site(other).config)):
        for label in ("disc", "ring"):
            wanted = tiny_run(data={"classes": [label]})
            cohorts.append(load_cohort(config, wanted, root=folder, site_key=key).cohort_id)
    assert len(set(cohorts)) == 1
    for number, cohort in enumerate(cohorts):
        asked = run(**{"target-epsilon": 4.0 - number / 10})
        if number == 0:
            charge_round(
                ledger, issue(asked), cohort=cohort, cohort_size=80, round_=1, attempt="a", lifetime_epsilon=4.5
            )
        else:
            with pytest.raises(PrivacyError, match="beside what other runs have reserved"):
                charge_round(
                    ledger, issue(asked), cohort=cohort, cohort_size=80, round_=1, attempt="a", lifetime_epsilon=4.5
                )


@pytest.mark.parametrize(
    ("patients", "expected"),
    [(1, "1-9"), (9, "1-9"), (10, "10-19"), (49, "20-49"), (9999, "5000-9999"), (10_000, "10000 or more")],
)
def test_cohort_size_is_stated_as_a_class(patients, expected):
    delta = plan(run(), patients).delta
    assert guarantee(run(), epsilon=1.0, delta=delta, steps=20).cohort_size_class == expected


def test_a_delta_of_the_run_says_nothing_of_the_cohort():
    assert guarantee(run(delta=1e-6), epsilon=1.0, delta=1e-6, steps=20).cohort_size_class == "not stated"


def charged(ledger: Ledger, round_: int, attempt: str, lifetime_epsilon: float) -> None:
    charge_round(
        ledger,
        issue(run()),
        cohort="c",
        cohort_size=80,
        round_=round_,
        attempt=attempt,
        lifetime_epsilon=lifetime_epsilon,
    )


def test_a_run_that_would_pass_the_lifetime_budget_is_refused_before_its_first_round(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", bytes(32))
    with pytest.raises(PrivacyError, match="would fit") as caught:
        charged(ledger, 1, "a", lifetime_epsilon=3.0)
    assert caught.value.code is ErrorCode.BUDGET_SPENT
    assert ledger.entries() == ()


def test_all_rounds_of_a_run_that_fits_are_charged_once_whoever_charges_first(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", bytes(32))
    for round_ in range(1, 6):
        for _ in ("agent", "worker"):
            charged(ledger, round_, f"message-{round_}", lifetime_epsilon=4.0)
    assert [entry.round for entry in ledger.entries()] == [1, 2, 3, 4, 5]
    assert 0.99 * 4 <= ledger.spent("c", plan(run(), 80).delta) <= 4
