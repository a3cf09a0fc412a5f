"""Only an update that is the run's own tensors, finite, near and fairly counted may enter the average."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config import RunConfig, sha256_of
from common.errors import ErrorCode, UpdateError
from common.learning.checkpoint import pack
from common.wire.messages import EvaluateReply, Phase, TrainReply
from server.federation.checks import MAX_PATIENTS, check_scores, check_update
from server.federation.price import check_price
from tests.server.fakes import a_run, price

RUN = a_run()
HASH = sha256_of(RUN)
GLOBAL = {"bias": torch.zeros(4), "weight": torch.ones(4, 4)}


def check(state: dict[str, Tensor], run: RunConfig = RUN, **changes: Any) -> dict[str, Tensor]:
    good = TrainReply(sha256_of(run), 3, {"weights": pack(state)}, 7)
    return dict(check_update(replace(good, **changes), run, sha256_of(run), 3, GLOBAL).parts["weights"])


def refusal_of(state: dict[str, Tensor], run: RunConfig = RUN, **changes: Any) -> ErrorCode:
    with pytest.raises(UpdateError) as caught:
        check(state, run, **changes)
    return caught.value.code


def test_good_update_comes_back_bit_equal() -> None:
    state = {"bias": torch.arange(4.0), "weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))}
    checked = check(state)
    assert checked.keys() == state.keys()
    assert all(torch.equal(checked[name], state[name]) for name in state)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_refuses_the_update(value: float) -> None:
    weight = torch.ones(4, 4)
    weight[2, 1] = value
    assert refusal_of({**GLOBAL, "weight": weight}) is ErrorCode.NOT_FINITE


def test_infinities_of_both_signs_do_not_cancel() -> None:
    weight = torch.ones(4, 4)
    weight[0, 0], weight[0, 1] = math.inf, -math.inf
    assert refusal_of({**GLOBAL, "weight": weight}) is ErrorCode.NOT_FINITE


@pytest.mark.parametrize(
    "state",
    [
        {**GLOBAL, "weight": torch.ones(4, 1)},  # would broadcast
        {**GLOBAL, "weight": torch.ones(16)},
        {**GLOBAL, "weight": torch.ones(4, 4, dtype=torch.float64)},
        {**GLOBAL, "weight": torch.ones(4, 4, dtype=torch.int64)},
        {**GLOBAL, "extra": torch.ones(1)},
        {"weight": GLOBAL["weight"]},
        {"Weight": GLOBAL["weight"], "bias": GLOBAL["bias"]},
        {},
    ],
    ids=["broadcast", "flat", "float64", "int64", "extra", "missing", "renamed", "empty"],
)
def test_other_tensors_than_the_runs_are_refused(state: dict[str, Tensor]) -> None:
    assert refusal_of(state) is ErrorCode.WRONG_TENSORS


STATISTICS = {"counted-patients": 40.0, "class-share-lesion": 0.5, "intensity-mean-1": -3.0}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"counted-patients": 0.0}, ErrorCode.BAD_COUNT),
        ({"counted-patients": 2.0 * MAX_PATIENTS}, ErrorCode.BAD_COUNT),
        ({"counted-patients": 1.0}, ErrorCode.BAD_COUNT),
        ({"counted-patients": 10.5}, ErrorCode.BAD_COUNT),
        ({"counted-patients": 12.0}, ErrorCode.BAD_COUNT),
        ({"class-share-lesion": 0.123}, ErrorCode.BAD_REQUEST),
        ({"intensity-mean-spread-1": 1e-160}, ErrorCode.BAD_REQUEST),
        ({"class-share-lesion": 1.01}, ErrorCode.BAD_REQUEST),
        ({"class-share-other": 0.5}, ErrorCode.BAD_REQUEST),
        ({"intensity-mean-2": 0.5}, ErrorCode.BAD_REQUEST),  # the run has one channel
        ({"intensity-mean-spread-1": -0.1}, ErrorCode.BAD_REQUEST),
        ({"intensity-mean-1": math.inf}, ErrorCode.NOT_FINITE),
    ],
)
def test_statistics_that_were_not_asked_for_or_cannot_be_are_refused(
    changes: dict[str, float], code: ErrorCode
) -> None:
    run = a_run(format_=2, federation={"statistics": True})
    assert check(GLOBAL, run, metrics=STATISTICS)
    assert refusal_of(GLOBAL, run, metrics={**STATISTICS, **changes}) is code
    assert refusal_of(GLOBAL, metrics=STATISTICS) is ErrorCode.BAD_REQUEST
    without = {name: value for name, value in STATISTICS.items() if name != "counted-patients"}
    assert refusal_of(GLOBAL, run, metrics=without) is ErrorCode.BAD_COUNT


def test_parts_that_were_not_sent_are_refused() -> None:
    packed = pack(GLOBAL)
    for parts in ({}, {"control": packed}, {"weights": packed, "control": packed}):
        assert refusal_of(GLOBAL, parts=parts) is ErrorCode.WRONG_TENSORS


def test_bytes_that_are_not_safetensors_are_refused() -> None:
    assert refusal_of(GLOBAL, parts={"weights": b"\x80\x04 pickle?"}) is ErrorCode.WRONG_TENSORS
    assert refusal_of(GLOBAL, parts={"weights": b""}) is ErrorCode.WRONG_TENSORS


def test_update_just_within_the_norm_enters_and_just_beyond_is_refused() -> None:
    run = a_run(federation={"max-update-norm": 5.0})
    # 3-4-5: moved by 3 in one tensor and 4 in the other, the whole update lies 5 away.
    moved = {"bias": torch.tensor([3.0, 0, 0, 0]), "weight": torch.ones(4, 4)}
    moved["weight"][0, 0] += 4
    check(moved, run)
    moved["weight"][0, 0] += 0.01
    assert refusal_of(moved, run) is ErrorCode.UPDATE_TOO_LARGE


def test_values_whose_squares_overflow_float32_are_too_large_not_infinite() -> None:
    assert refusal_of({**GLOBAL, "bias": torch.full((4,), 1e30)}) is ErrorCode.UPDATE_TOO_LARGE


@pytest.mark.parametrize("patients", [0, -1, MAX_PATIENTS + 1])
def test_count_a_hospital_cannot_have_is_refused(patients: int) -> None:
    assert refusal_of(GLOBAL, patients=patients) is ErrorCode.BAD_COUNT


def test_count_of_zero_is_right_where_sites_weigh_the_same() -> None:
    check(GLOBAL, a_run(federation={"weighting": "equal"}), patients=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": None},
        {"delta": None},
        {"steps": None},
        {"epsilon": -1.0},
        {"epsilon": 0.0},  # less than the round itself costs
        {"epsilon": 9.0},  # more than the run may spend
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": 0.0049},  # between 1 / (10 * 20) and 1 / (10 * 21)
        {"delta": 1e-9},  # of more patients than there are
        {"steps": 0.0},
        {"steps": 1000.0},
    ],
    ids=str,
)
def test_private_update_whose_price_does_not_fit_the_run_is_refused(wrong: dict[str, float | None]) -> None:
    run = a_run(privacy={"target-epsilon": 8.0}, training={"local-steps": 3})
    right = price(run, rounds=1)
    check(GLOBAL, run, patients=0, metrics=right)
    stated = {name: value for name, value in {**right, **wrong}.items() if value is not None}
    assert refusal_of(GLOBAL, run, patients=0, metrics=stated) is ErrorCode.BAD_REQUEST


def test_price_counts_the_rounds_that_came_before_and_allows_for_those_that_were_lost() -> None:
    run = a_run(rounds=4, privacy={"target-epsilon": 8.0}, training={"local-steps": 5})
    costs = [price(run, rounds) for rounds in range(1, 5)]
    same, other = costs[0]["delta"], price(run, 1, patients=50)["delta"]
    for made, stated in enumerate(costs, start=1):
        check_price(stated, run, [same] * (made - 1))
        check_price(stated, run, [])  # it trained before, and this is the first update that came
        if made < 4:
            with pytest.raises(UpdateError, match=f"after {made + 1} rounds"):
                check_price(stated, run, [same] * made)
    # A site that declared another number since: its rounds of before cost less at this delta, or more.
    check_price(costs[0], run, [other] * 3)


def test_delta_of_a_run_that_names_its_own_is_that_and_no_other() -> None:
    run = a_run(privacy={"target-epsilon": 8.0, "delta": 1e-5})
    right = price(run, rounds=1)
    check_price(right, run)
    for delta in (1e-4, 9e-6, 0.005):
        with pytest.raises(UpdateError, match="delta"):
            check_price({**right, "delta": delta}, run)


def test_update_of_another_run_or_round_is_refused() -> None:
    assert refusal_of(GLOBAL, run_hash="0" * 64) is ErrorCode.WRONG_RUN
    assert refusal_of(GLOBAL, round=2) is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("name", ["Train Loss", "a\nb", "", "x" * 65, "-"])
def test_metric_name_that_could_mislead_a_reader_is_refused(name: str) -> None:
    assert refusal_of(GLOBAL, metrics={name: 1.0}) is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    "name", ["refused", "bytes-up", "bytes-down", "missing", "moves", "suspicious", "time", "site"]
)
def test_metric_that_would_be_read_as_an_entry_of_the_journal_is_refused(name: str) -> None:
    assert refusal_of(GLOBAL, metrics={name: 1e38}) is ErrorCode.BAD_REQUEST
    with pytest.raises(UpdateError, match=f"a metric is named {name}, as an entry of the run's journal is"):
        check_scores(EvaluateReply(HASH, 3, "test", 7, {"dice": 0.5, name: 1e38}), HASH, 3, "test")
    check(GLOBAL, metrics={"seconds": 4.0, "steps": 5.0, "train-loss": 1.0})  # what an honest site tells


def test_flood_of_metrics_is_refused() -> None:
    assert refusal_of(GLOBAL, metrics={f"m{index}": 0.0 for index in range(1000)}) is ErrorCode.BAD_REQUEST


def test_scores_of_another_phase_round_or_run_are_refused() -> None:
    good = EvaluateReply(HASH, 3, "test", 5, {"dice": 0.5})
    check_scores(good, HASH, 3, "test")
    others: list[tuple[str, int, Phase]] = [("0" * 64, 3, "test"), (HASH, 2, "test"), (HASH, 3, "validation")]
    for other in others:
        with pytest.raises(UpdateError):
            check_scores(good, *other)
