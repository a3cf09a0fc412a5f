"""A site scores one model a round, once, in order, and says the same again; with privacy its scores have noise that is
paid for. Through the app that every way of running uses."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dp_accounting import pld

from client.site import Site, open_site
from client.train import training
from client.train.answer import answer
from common.config import PolicyConfig, RunConfig, sha256_of
from common.config.rundocument import issue
from common.errors import DataError, ErrorCode, WardroundError
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.privacy import scores as private_scores
from common.wire.messages import EvaluateReply, EvaluateRequest, Phase, Request, TrainReply, TrainRequest
from simulations.scenarios.homes import make_site
from tests.simulations.tiny import tiny_run, tiny_run_of_format, tiny_site

ROUNDS = 6
PLAIN = tiny_run(federation={"rounds": ROUNDS, "evaluate-every": 2})
PRIVATE = tiny_run(
    privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1}, federation={"rounds": ROUNDS}
)
# As a hospital's, but for the few patients that a test has.
POLICY = (
    "require-privacy = false\nmin-patients = 1\nmin-held-out = 1\nmax-clipping = 1000.0\nlifetime-epsilon = 100.0\n"
)


def hospital(folder: Path, policy: str = POLICY, patients: int = 10, declared: int | None = None) -> Site:
    config = tiny_site(folder / "data", "north", patients=patients)
    home = make_site(folder, config.model_copy(update={"cohort_size": declared})).home
    (home / "policy.toml").write_text(policy)
    return open_site(home)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return hospital(tmp_path)


def model(number: int = 0) -> bytes:
    """Weights of the run's network; another number gives others."""
    return pack(build_model(PLAIN.model_copy(update={"seed": 100 + number})).state_dict())


def ask(site: Site, request: Request, run: RunConfig) -> object:
    """The reply, or the code that would leave."""
    try:
        return answer(request, issue(run), site, "attempt")
    except WardroundError as error:
        return error.code


def score(site: Site, run: RunConfig, round_: int, number: int = 0, phase: Phase = "validation") -> object:
    return ask(site, EvaluateRequest(sha256_of(run), round_, phase, {"weights": model(number)}), run)


def train(site: Site, run: RunConfig, round_: int, number: int = 0) -> object:
    return ask(site, TrainRequest(sha256_of(run), round_, {"weights": model(number)}), run)


# One model a round, in order


def test_a_second_model_in_a_round_is_not_scored(site: Site) -> None:
    assert isinstance(score(site, PLAIN, 2, 0), EvaluateReply)
    assert [score(site, PLAIN, 2, number) for number in (1, 2, 3)] == [ErrorCode.ROUND_REPEATED] * 3


def test_the_same_question_gets_the_same_answer_and_is_not_computed_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score(site, PLAIN, 2)
    monkeypatch.setattr(training, "evaluate", lambda *_: pytest.fail("scored again"))
    assert score(site, PLAIN, 2) == first
    assert score(open_site(site.home), PLAIN, 2) == first


def test_only_rounds_that_are_due_are_scored(site: Site) -> None:
    assert [score(site, PLAIN, round_) for round_ in (1, 3, 5, ROUNDS + 2)] == [ErrorCode.WRONG_RUN] * 4
    assert [score(site, PLAIN, round_, phase="test") for round_ in (1, 2, 4)] == [ErrorCode.WRONG_RUN] * 3
    assert isinstance(score(site, PLAIN, 2), EvaluateReply)
    assert isinstance(score(site, PLAIN, ROUNDS), EvaluateReply)
    assert isinstance(score(site, PLAIN, ROUNDS, phase="test"), EvaluateReply)


def test_with_privacy_only_the_last_round_is_due_unless_the_run_says_otherwise(tmp_path: Path) -> None:
    site = hospital(tmp_path, declared=100)
    assert [score(site, PRIVATE, round_) for round_ in (1, 2, 4)] == [ErrorCode.WRONG_RUN] * 3
    assert PRIVATE.evaluations == 2
    assert PLAIN.evaluations == 4
    assert isinstance(score(site, PRIVATE, ROUNDS), EvaluateReply)


def test_rounds_are_scored_in_order(site: Site) -> None:
    assert isinstance(score(site, PLAIN, 4), EvaluateReply)
    assert score(site, PLAIN, 2) is ErrorCode.ROUND_REPEATED
    train(site, PLAIN, 6)
    assert isinstance(score(site, PLAIN, 6, 1), EvaluateReply)


def test_a_round_that_training_has_left_behind_is_not_scored(site: Site) -> None:
    assert isinstance(train(site, PLAIN, 5), TrainReply)
    assert score(site, PLAIN, 4) is ErrorCode.ROUND_REPEATED


def test_the_next_round_must_start_from_the_model_that_was_scored(site: Site) -> None:
    assert isinstance(score(site, PLAIN, 2, 0), EvaluateReply)
    assert train(site, PLAIN, 3, 1) is ErrorCode.WRONG_RUN
    assert isinstance(train(site, PLAIN, 3, 0), TrainReply)


def test_an_average_that_is_scored_need_not_be_what_the_next_round_starts_from(tmp_path: Path) -> None:
    site, run = hospital(tmp_path), tiny_run(federation={"rounds": 3, "averaging": 0.5})
    assert isinstance(score(site, run, 1, 7), EvaluateReply)
    assert isinstance(train(site, run, 2, 1), TrainReply)
    assert isinstance(score(site, run, 2, 8), EvaluateReply)
    assert score(site, run, 2, 9) is ErrorCode.ROUND_REPEATED


def test_validation_and_test_of_the_last_round_name_one_model(site: Site) -> None:
    assert isinstance(score(site, PLAIN, ROUNDS, 0, "validation"), EvaluateReply)
    assert score(site, PLAIN, ROUNDS, 1, "test") is ErrorCode.ROUND_REPEATED
    assert isinstance(score(site, PLAIN, ROUNDS, 0, "test"), EvaluateReply)


def choosing(**federation: object) -> RunConfig:
    return tiny_run_of_format(2, federation={"rounds": ROUNDS, "evaluate-every": 2, **federation})


def test_a_run_that_keeps_its_best_is_tested_with_the_model_that_was_scored_in_that_round(site: Site) -> None:
    run = choosing(keep="best")
    assert isinstance(score(site, run, 2, 1), EvaluateReply)
    assert isinstance(train(site, run, 3, 1), TrainReply)
    assert isinstance(score(site, run, 4, 2), EvaluateReply)
    assert score(site, run, 2, 3, "test") is ErrorCode.ROUND_REPEATED  # another model than was scored then
    assert score(site, run, 3, 1, "test") is ErrorCode.WRONG_RUN  # of a round that was never due
    found = score(site, run, 2, 1, "test")
    assert isinstance(found, EvaluateReply)
    assert score(site, run, 2, 1, "test") == found
    assert score(site, run, 4, 2, "test") is ErrorCode.ROUND_REPEATED  # a run has one test
    assert score(site, run, ROUNDS, 4, "test") is ErrorCode.ROUND_REPEATED


def test_a_round_that_is_over_and_was_not_scored_here_is_not_tested(site: Site) -> None:
    """The hospital was away then, and cannot know which model was the round's."""
    run = choosing(keep="best")
    assert isinstance(score(site, run, 4, 2), EvaluateReply)
    assert score(site, run, 2, 1, "test") is ErrorCode.ROUND_REPEATED


def test_a_run_that_may_stop_is_tested_where_it_stands_and_not_behind(site: Site) -> None:
    run = choosing(patience=1)
    assert isinstance(score(site, run, 2, 1), EvaluateReply)
    assert isinstance(score(site, run, 4, 2), EvaluateReply)
    assert score(site, run, 2, 1, "test") is ErrorCode.ROUND_REPEATED
    assert isinstance(score(site, run, 4, 2, "test"), EvaluateReply)


def test_a_run_that_chooses_nothing_is_tested_after_its_last_round_alone(site: Site) -> None:
    assert isinstance(score(site, PLAIN, 2, 1), EvaluateReply)
    assert score(site, PLAIN, 2, 1, "test") is ErrorCode.WRONG_RUN


def test_no_round_is_trained_after_its_model_was_scored_nor_from_two_starts(site: Site) -> None:
    assert isinstance(train(site, PLAIN, 1, 0), TrainReply)
    assert train(site, PLAIN, 1, 1) is ErrorCode.ROUND_REPEATED
    assert isinstance(train(site, PLAIN, 1, 0), TrainReply)  # asked again, after the worker died
    assert isinstance(score(site, PLAIN, 4), EvaluateReply)
    assert train(site, PLAIN, 4) is ErrorCode.ROUND_REPEATED
    assert train(site, PLAIN, 3) is ErrorCode.ROUND_REPEATED


def test_an_answer_that_never_came_to_be_can_be_asked_again_for_the_same_model_only(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(training, "evaluate", dies)
        with pytest.raises(RuntimeError):
            score(site, PLAIN, 2, 0)
    assert score(site, PLAIN, 2, 1) is ErrorCode.ROUND_REPEATED
    assert isinstance(score(site, PLAIN, 2, 0), EvaluateReply)


def test_days_limit_counts_the_models_of_all_runs_and_no_repetition(tmp_path: Path) -> None:
    site = hospital(tmp_path, POLICY + "max-evaluations-per-day = 3\n")
    other = PLAIN.model_copy(update={"name": "other"})
    first = score(site, PLAIN, 2)
    assert isinstance(first, EvaluateReply)
    assert isinstance(score(site, PLAIN, 4), EvaluateReply)
    assert isinstance(score(site, other, 2), EvaluateReply)
    assert score(site, other, 4) is ErrorCode.RATE_LIMITED
    assert score(site, PLAIN, ROUNDS) is ErrorCode.RATE_LIMITED
    assert score(site, PLAIN, ROUNDS, phase="test") is ErrorCode.RATE_LIMITED
    site = hospital(tmp_path, POLICY + "max-evaluations-per-day = 4\n")
    assert isinstance(score(site, PLAIN, ROUNDS), EvaluateReply)


def test_tampered_record_of_scores_stops_scoring(site: Site) -> None:
    score(site, PLAIN, 2)
    (path,) = (site.home / "state" / "evaluations").glob("*.sealed")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert score(site, PLAIN, 4) is ErrorCode.BAD_REQUEST


def test_record_of_scores_is_sealed(site: Site) -> None:
    reply = score(site, PLAIN, 2)
    assert isinstance(reply, EvaluateReply)
    (path,) = (site.home / "state" / "evaluations").glob("*.sealed")
    assert b"validation" not in path.read_bytes()
    assert hashlib.sha256(model()).hexdigest().encode() not in path.read_bytes()


def test_only_exact_scores_can_be_free_of_these_rules() -> None:
    with pytest.raises(ValueError, match="free"):
        PolicyConfig(evaluations="free")
    assert PolicyConfig().evaluations == "bound"
    assert PolicyConfig().scores == "noised"
    assert PolicyConfig(evaluations="free", scores="exact").min_held_out == 10


# The first weights


def named(number: int = 0, **tables: object) -> RunConfig:
    return tiny_run(initial={"sha256": hashlib.sha256(model(number)).hexdigest()}, **tables)  # type: ignore[arg-type]


@pytest.mark.parametrize("round_", [2, ROUNDS])
def test_a_run_that_names_its_weights_is_first_heard_of_in_round_one(site: Site, round_: int) -> None:
    run = named(federation={"rounds": ROUNDS})
    assert train(site, run, round_) is ErrorCode.POLICY_REFUSED
    assert score(site, run, round_) is ErrorCode.POLICY_REFUSED
    assert train(site, run, 1, 1) is ErrorCode.WRONG_RUN
    assert train(site, run, round_) is ErrorCode.POLICY_REFUSED  # what was refused is no start
    assert isinstance(train(site, run, 1, 0), TrainReply)
    assert isinstance(train(site, run, round_, 1), TrainReply)


def test_a_hospital_may_let_a_run_that_names_its_weights_begin_late(tmp_path: Path) -> None:
    site = hospital(tmp_path, POLICY + "late-start = true\n")
    run = named()
    assert isinstance(train(site, run, 2, 1), TrainReply)
    assert train(site, run, 1, 1) is ErrorCode.WRONG_RUN


def test_a_run_from_random_weights_may_be_joined_late(site: Site) -> None:
    assert isinstance(train(site, PLAIN, 3), TrainReply)


# How much a score tells


def test_split_of_fewer_than_ten_patients_leaves_no_score_by_default(tmp_path: Path) -> None:
    strict = POLICY.replace("min-held-out = 1\n", "")
    few = hospital(tmp_path / "few", strict, patients=49)  # 9.8 of 49
    assert len(few.cohort(PLAIN).patients("validation")) == 10
    assert isinstance(score(few, PLAIN, 2), EvaluateReply)
    fewer = hospital(tmp_path / "fewer", strict, patients=45)
    assert len(fewer.cohort(PLAIN).patients("validation")) == 9
    assert score(fewer, PLAIN, 2) is ErrorCode.TOO_FEW_PATIENTS


def test_policy_that_lets_no_scores_go_is_held_with_and_without_privacy(tmp_path: Path) -> None:
    for number, rules in enumerate(('scores = "none"\n', 'metrics = ["train-loss"]\n')):
        site = hospital(tmp_path / str(number), POLICY + rules, declared=100)
        assert score(site, PLAIN, 2) is ErrorCode.POLICY_REFUSED
        assert score(site, PRIVATE, ROUNDS) is ErrorCode.POLICY_REFUSED
        assert site.ledger.entries() == ()


def test_with_privacy_scores_have_noise_unless_the_policy_says_exact(tmp_path: Path) -> None:
    request = EvaluateRequest(sha256_of(PRIVATE), ROUNDS, "test", {"weights": model()})
    noised = answer(request, issue(PRIVATE), hospital(tmp_path / "a", declared=100), "x")
    again = answer(request, issue(PRIVATE), hospital(tmp_path / "b", declared=100), "x")
    exact = answer(request, issue(PRIVATE), hospital(tmp_path / "c", POLICY + 'scores = "exact"\n', declared=100), "x")
    assert isinstance(noised, EvaluateReply)
    assert isinstance(again, EvaluateReply)
    assert isinstance(exact, EvaluateReply)
    assert noised.metrics["dice-disc"] != again.metrics["dice-disc"]
    assert set(noised.metrics) == {"dice", "dice-disc", *private_scores.NOISE_NAMES}
    assert "iou" in exact.metrics
    assert "score-noise" not in exact.metrics
    assert noised.patients == 0


def test_noised_scores_are_charged_to_a_budget_of_their_own_once(tmp_path: Path) -> None:
    site = hospital(tmp_path, declared=100)
    first = score(site, PRIVATE, ROUNDS)
    assert score(site, PRIVATE, ROUNDS) == first
    assert isinstance(score(site, PRIVATE, ROUNDS, phase="test"), EvaluateReply)
    entries = site.ledger.entries()
    assert [(one.attempt, one.steps, one.sampling_rate) for one in entries] == [
        ("validation", 1, 1.0),
        ("test", 1, 1.0),
    ]
    assert {one.cohort for one in entries} == {private_scores.held_out_cohort(site.cohort(PRIVATE).cohort_id)}
    assert site.ledger.spent(site.cohort(PRIVATE).cohort_id, 1e-3) == 0


def test_what_scores_of_a_run_cost_is_what_another_accountant_says(tmp_path: Path) -> None:
    run = tiny_run(
        privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1},
        federation={"rounds": ROUNDS, "evaluate-every": 2},
    )
    site = hospital(tmp_path, POLICY + "run-scores-epsilon = 2.0\n", declared=100)
    last = None
    for round_, phase in ((2, "validation"), (4, "validation"), (ROUNDS, "validation"), (ROUNDS, "test")):
        last = score(site, run, round_, phase=phase)  # type: ignore[arg-type]
    assert isinstance(last, EvaluateReply)
    (noise,) = {one.noise_multiplier for one in site.ledger.entries()}
    oracle = pld.privacy_loss_distribution.from_gaussian_mechanism(noise).self_compose(4)
    assert last.metrics["scores-delta"] == pytest.approx(1 / 1000)
    assert oracle.get_epsilon_for_delta(1 / 1000) <= last.metrics["scores-epsilon"] <= 2.0
    assert last.metrics["scores-epsilon"] == pytest.approx(2.0, abs=0.05)


def test_budget_of_held_out_patients_ends(tmp_path: Path) -> None:
    site = hospital(tmp_path, POLICY + "lifetime-scores-epsilon = 1.5\n", declared=100)
    assert isinstance(score(site, PRIVATE, ROUNDS), EvaluateReply)
    other = PRIVATE.model_copy(update={"name": "other"})
    assert score(site, other, ROUNDS) is ErrorCode.BUDGET_SPENT  # 1.5 is not enough for two runs of 1.0
    # What the first run has reserved for its test is still there.
    assert isinstance(score(site, PRIVATE, ROUNDS, phase="test"), EvaluateReply)


def test_noise_is_drawn_once_for_a_charge_even_if_the_kept_answer_is_lost(tmp_path: Path) -> None:
    site = hospital(tmp_path, declared=100)
    assert isinstance(score(site, PRIVATE, ROUNDS), EvaluateReply)
    for path in (site.home / "state" / "evaluations").glob("*.sealed"):
        path.unlink()
    assert score(site, PRIVATE, ROUNDS) is ErrorCode.BAD_REQUEST


def test_whether_there_is_a_noised_score_does_not_depend_on_the_patients_there_are(tmp_path: Path) -> None:
    strict = POLICY.replace("min-held-out = 1\n", "")
    seen = []
    for patients in (1, 12, 13):
        site = hospital(tmp_path / str(patients), strict, patients=patients, declared=50)
        seen.append(isinstance(score(site, PRIVATE, ROUNDS), EvaluateReply))
        assert score(site, PRIVATE.model_copy(update={"name": "x"}), ROUNDS, phase="test") is not ErrorCode.NO_DATA
    assert seen == [True] * 3
    small = hospital(tmp_path / "small", strict, patients=60, declared=40)  # 8 of 40 declared
    assert score(small, PRIVATE, ROUNDS) is ErrorCode.TOO_FEW_PATIENTS


def test_patient_who_cannot_be_scored_shows_in_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = hospital(tmp_path, declared=100, patients=40)
    cohort = site.cohort(PRIVATE)
    bad = cohort.patients("test")[0]
    right = training.evaluate

    def fails_for_one(network: object, some: object, *rest: object) -> object:
        if bad in some.patients("test"):  # type: ignore[attr-defined]
            raise DataError("a series that nobody can read", ErrorCode.GEOMETRY_MISMATCH)
        return right(network, some, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "evaluate", fails_for_one)
    assert isinstance(score(site, PRIVATE, ROUNDS, phase="test"), EvaluateReply)


def test_one_patient_moves_the_sum_of_scores_by_no_more_than_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the noise taken out, through the app: with and without the first, a middle and the last patient."""

    def sums(cohort_of: object) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def watch(values: list[torch.Tensor], **_: object) -> list[torch.Tensor]:
            seen.extend(value.clone() for value in values)
            return values

        with monkeypatch.context() as patched:
            patched.setattr("common.privacy.noise.noised", watch)
            patched.setattr(Site, "cohort", cohort_of)
            site = hospital(tmp_path / f"{len(list(tmp_path.iterdir()))}", patients=30, declared=100)
            assert isinstance(score(site, PRIVATE, ROUNDS), EvaluateReply)
        return seen[0]

    held = make_site(tmp_path / "look", tiny_site(tmp_path / "look" / "data", "north", patients=30)).cohort(PRIVATE)
    whole = sums(lambda *_, **__: replace(held, declared_size=100))
    limit = private_scores.score_plan(PRIVATE, 100, "validation", 1.0).sensitivity
    assert limit == math.sqrt(1) / 2
    names = held.patients("validation")
    assert len(names) >= 3
    for gone in (names[0], names[len(names) // 2], names[-1]):
        cases = tuple(case for case in held.cases if case.patient != gone)
        without = sums(lambda *_, cases=cases, **__: replace(held, cases=cases, declared_size=100))
        moved = float((whole - without).norm())
        assert 0 < moved <= limit
