"""The exit gate lets the update and the scores through, and nothing else."""

import dataclasses
import json
import math
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from client.rules import exit_gate
from common.audit.entries import bucketed
from common.config import RunConfig, validate
from common.config.statistics import statistic_names
from common.errors import ErrorCode, UpdateError
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.strategies import Strategy
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, Request, TrainReply, TrainRequest
from common.wire.records import reply_to_record

RUN_HASH = "ab" * 32
PLANTED = "MUELLER^ANNA 1957-03-02"

Sent = TypeVar("Sent", TrainReply, EvaluateReply)


def a_run(**changes: object) -> RunConfig:
    values = {
        "name": "lesions",
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [32, 32]},
        "federation": {"rounds": 3},
    }
    return validate(RunConfig, values | changes)


def tensors(fill: float = 0.5) -> dict[str, np.ndarray]:
    return {"conv.weight": np.full((2, 1, 3, 3), fill, np.float32), "conv.bias": np.full(2, fill, np.float32)}


REQUEST = TrainRequest(RUN_HASH, 2, {"weights": save(tensors(0.0))})
UPDATE = TrainReply(RUN_HASH, 2, {"weights": save(tensors())}, 15, {"train-loss": 0.25, "steps": 20.0})
ASKED = EvaluateRequest(RUN_HASH, 2, "test", {"weights": REQUEST.parts["weights"]})


def leaving(reply: Sent, request: Request, run: RunConfig, **options: Any) -> Sent:
    """What leaves of a reply; it is of the same kind."""
    released = exit_gate.release(reply, request, run, **options)
    assert isinstance(released, type(reply))
    return released


def test_update_passes_with_the_same_values() -> None:
    released = leaving(UPDATE, REQUEST, a_run())
    assert isinstance(released, TrainReply)
    assert {name: value.tolist() for name, value in load(bytes(released.parts["weights"])).items()} == {
        name: value.tolist() for name, value in tensors().items()
    }
    assert (released.patients, released.metrics) == (15, {"steps": 20.0, "train-loss": 0.25})


def test_file_metadata_and_unknown_metrics_stay_here() -> None:
    hidden = dataclasses.replace(
        UPDATE, parts={"weights": save(tensors(), metadata={"note": PLANTED})}, metrics={PLANTED: 1.0, "steps": 3.0}
    )
    released = leaving(hidden, REQUEST, a_run())
    assert PLANTED.encode() in hidden.parts["weights"]
    assert PLANTED.encode() not in released.parts["weights"]
    assert PLANTED not in repr(reply_to_record(released))
    assert released.metrics == {"steps": 3.0}


def test_padding_in_the_file_header_stays_here() -> None:
    plain = save(tensors())
    length = int.from_bytes(plain[:8], "little")
    header = plain[8 : 8 + length] + b" " * 64  # the format allows trailing spaces
    padded = len(header).to_bytes(8, "little") + header + plain[8 + length :]
    released = leaving(dataclasses.replace(UPDATE, parts={"weights": padded}), REQUEST, a_run())
    assert released.parts["weights"] == plain


def with_a_gap() -> bytes:
    """The tensors, with bytes between them that belong to none."""
    plain = save(tensors())
    size = int.from_bytes(plain[:8], "little")
    header, values = json.loads(plain[8 : 8 + size]), plain[8 + size :]
    first, last = sorted((one for name, one in header.items()), key=lambda one: one["data_offsets"])
    cut = first["data_offsets"][1]
    last["data_offsets"] = [place + 8 for place in last["data_offsets"]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values[:cut] + b"Jane Doe" + values[cut:]


GAP = with_a_gap()


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"not safetensors",
        save({"conv.weight": tensors()["conv.weight"]}),
        save(tensors() | {"extra": np.zeros(1, np.float32)}),
        save(tensors() | {"conv.bias": np.zeros((2, 1), np.float32)}),
        save(tensors() | {"conv.bias": np.zeros(2, np.float64)}),
        save(tensors()) + b"x",
        GAP,
    ],
    ids=["empty", "garbage", "one missing", "one more", "other shape", "other type", "trailing byte", "gap"],
)
def test_other_tensors_than_the_requests_do_not_leave(weights: bytes) -> None:
    with pytest.raises(UpdateError) as caught:
        exit_gate.release(dataclasses.replace(UPDATE, parts={"weights": weights}), REQUEST, a_run())
    assert caught.value.code == ErrorCode.WRONG_TENSORS


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_do_not_leave(value: float) -> None:
    bad = tensors()
    bad["conv.weight"][1, 0, 2, 2] = value
    with pytest.raises(UpdateError) as caught:
        exit_gate.release(dataclasses.replace(UPDATE, parts={"weights": save(bad)}), REQUEST, a_run())
    assert caught.value.code == ErrorCode.NOT_FINITE


def test_run_hash_round_and_phase_are_the_requests() -> None:
    lying = EvaluateReply("cd" * 32, 77, "validation", 10, {"dice": 0.5})
    released = exit_gate.release(lying, ASKED, a_run())
    assert isinstance(released, EvaluateReply)
    assert (released.run_hash, released.round, released.phase) == (RUN_HASH, 2, "test")


def test_scores_are_those_of_the_runs_classes_finite_and_rounded_to_six_digits() -> None:
    metrics = {"dice": 2 / 3, "dice-lesion": 1.0, "dice-anna": 0.5, "iou": math.nan, "recall": math.inf}
    released = leaving(EvaluateReply(RUN_HASH, 2, "test", 10, metrics), ASKED, a_run())
    assert released.metrics == {"dice": 0.666667, "dice-lesion": 1.0}


def test_with_privacy_neither_counts_nor_the_training_loss_leave() -> None:
    private = a_run(privacy={"target-epsilon": 4.0})
    assert leaving(UPDATE, REQUEST, private).metrics == {"steps": 20.0}
    assert leaving(UPDATE, REQUEST, private).patients == 0
    exact = EvaluateReply(RUN_HASH, 2, "test", 10, {"dice": 0.5})
    assert leaving(exact, ASKED, private, scores="exact").patients == 0


def test_with_privacy_no_score_leaves_without_its_noise() -> None:
    private = a_run(privacy={"target-epsilon": 4.0})
    for metrics in ({"dice": 0.5}, {"dice": 0.5, "score-noise": 0.0}, {"dice": 0.5, "score-noise": math.nan}):
        with pytest.raises(UpdateError, match="no noise"):
            exit_gate.release(EvaluateReply(RUN_HASH, 2, "test", 0, metrics), ASKED, private)
    noised = {"dice": 0.5, "dice-lesion": 0.5, "iou": 0.4, "recall": 0.3, "score-noise": 0.1, "class-score-noise": 0.1}
    released = leaving(EvaluateReply(RUN_HASH, 2, "test", 0, noised), ASKED, private)
    assert isinstance(released, EvaluateReply)
    assert released.metrics == {"dice": 0.5, "dice-lesion": 0.5, "score-noise": 0.1, "class-score-noise": 0.1}
    kept = EvaluateReply(RUN_HASH, 2, "test", 0, noised)
    assert exit_gate.release(kept, ASKED, private, scores="exact") == released  # not shown as exact


def test_policy_without_scores_lets_none_go() -> None:
    for run in (a_run(), a_run(privacy={"target-epsilon": 4.0})):
        assert exit_gate.score_names(run, scores="none") == frozenset()
        assert exit_gate.score_names(run, ("train-loss",), scores="exact") == frozenset()


@pytest.mark.parametrize("patients", [-1, 0, 1, 5, 9, 11, 12, 10**9])
def test_impossible_count_does_not_leave(patients: int) -> None:
    with pytest.raises(UpdateError) as caught:
        exit_gate.release(dataclasses.replace(UPDATE, patients=patients), REQUEST, a_run())
    assert caught.value.code == ErrorCode.BAD_COUNT


def test_answer_to_another_question_does_not_leave() -> None:
    with pytest.raises(UpdateError):
        exit_gate.release(UPDATE, ASKED, a_run())
    with pytest.raises(UpdateError):
        exit_gate.release(EvaluateReply(RUN_HASH, 2, "test", 10, {}), REQUEST, a_run())


def test_refusal_is_a_code_and_nothing_else() -> None:
    released = exit_gate.release(Refusal(PLANTED, 5, ErrorCode.NO_DATA), REQUEST, a_run())
    assert released == Refusal(RUN_HASH, 2, ErrorCode.NO_DATA)
    with pytest.raises(ValueError, match="not a valid ErrorCode"):
        exit_gate.release(Refusal(RUN_HASH, 2, PLANTED), REQUEST, a_run())  # type: ignore[arg-type]  # no code


def test_released_update_is_what_the_models_own_packing_gives() -> None:
    """The same bytes, so that a deployed run has the hash of the simulated one."""
    packed = pack({name: torch.from_numpy(value) for name, value in tensors().items()})
    released = leaving(dataclasses.replace(UPDATE, parts={"weights": packed}), REQUEST, a_run())
    assert released.parts["weights"] == packed


def distinct() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {"conv.weight": rng.normal(size=(4, 2, 3, 3)).astype(np.float32), "conv.bias": np.zeros(4, np.float32)}


def test_update_with_other_parts_than_the_request_does_not_leave() -> None:
    packed = save(tensors())
    for parts in ({}, {"control": packed}, {"weights": packed, PLANTED: packed}):
        with pytest.raises(UpdateError, match="parts"):
            exit_gate.release(dataclasses.replace(UPDATE, parts=parts), REQUEST, a_run())


class Drift(Strategy):
    """Sends a second part both ways."""

    kind: Literal["drift"] = "drift"
    DOWN: ClassVar[tuple[str, ...]] = ("control",)
    UP: ClassVar[tuple[str, ...]] = ("control",)


def with_drift(**changes: object) -> RunConfig:
    return a_run(**changes).model_copy(update={"strategy": Drift()})


def test_each_part_of_an_update_is_held_against_the_tensors_of_the_model() -> None:
    request = dataclasses.replace(REQUEST, parts={"weights": save(tensors(0.0)), "control": save(tensors(0.0))})
    parts = {"weights": save(tensors()), "control": save(tensors(1.0), metadata={"note": PLANTED})}
    released = leaving(dataclasses.replace(UPDATE, parts=parts), request, with_drift())
    assert released.parts == {"weights": parts["weights"], "control": save(tensors(1.0))}
    other = {"c": np.ones(3, np.float32)}
    with pytest.raises(UpdateError, match="tensors"):
        exit_gate.release(dataclasses.replace(UPDATE, parts=parts | {"control": save(other)}), request, with_drift())
    for wrong in ({"weights": parts["weights"]}, parts | {"more": save(tensors())}):
        with pytest.raises(UpdateError, match="parts"):
            exit_gate.release(dataclasses.replace(UPDATE, parts=wrong), request, with_drift())


def test_no_part_leaves_a_private_run_that_its_guarantee_does_not_name() -> None:
    """Refused before a round is charged, and again when something would leave."""
    private = with_drift(privacy={"target-epsilon": 3.0})
    sent = TrainRequest(RUN_HASH, 2, {"weights": save(distinct()), "control": save(tensors(0.0))})
    shapes = {name: {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,)} for name in ("weights", "control")}
    with pytest.raises(UpdateError, match="sends control beside the weights") as raised:
        exit_gate.check_request(sent, private, shapes, 9, 1000.0)
    assert raised.value.code is ErrorCode.POLICY_REFUSED
    parts = {"weights": save(tensors()), "control": save(tensors())}
    with pytest.raises(UpdateError, match="sends control beside the weights"):
        exit_gate.release(dataclasses.replace(UPDATE, parts=parts), dataclasses.replace(REQUEST, parts=parts), private)


def test_only_weights_must_not_look_as_if_they_copied() -> None:
    """A part beside them may be all zeros, as it is in the first round."""
    zeros = {name: np.zeros_like(one) for name, one in distinct().items()}
    shapes = {name: {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,)} for name in ("weights", "control")}
    sent = TrainRequest(RUN_HASH, 2, {"weights": save(distinct()), "control": save(zeros)})
    exit_gate.check_request(sent, with_drift(), shapes, 9, 1000.0)
    with pytest.raises(UpdateError) as raised:
        exit_gate.check_request(
            dataclasses.replace(sent, parts={**sent.parts, "weights": save(zeros)}), with_drift(), shapes, 9, 1e3
        )
    assert raised.value.code is ErrorCode.SUSPICIOUS_MODEL


def test_scores_are_asked_for_with_the_weights_alone() -> None:
    shapes = {name: {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,)} for name in ("weights", "control")}
    asked = EvaluateRequest(RUN_HASH, 2, "test", {"weights": save(distinct())})
    exit_gate.check_request(asked, with_drift(), shapes, 9, 1000.0)
    more = dataclasses.replace(asked, parts={**asked.parts, "control": save(distinct())})
    with pytest.raises(UpdateError, match="parts"):
        exit_gate.check_request(more, with_drift(), shapes, 9, 1000.0)


def test_request_with_other_parts_than_the_runs_is_refused() -> None:
    shapes = {"weights": {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,)}}
    sent = TrainRequest(RUN_HASH, 2, {"weights": save(distinct())})
    exit_gate.check_request(sent, a_run(), shapes, 9, 1000.0)
    for parts in ({"control": save(distinct())}, {"weights": save(distinct()), "more": save(distinct())}):
        with pytest.raises(UpdateError, match="parts"):
            exit_gate.check_request(dataclasses.replace(sent, parts=parts), a_run(), shapes, 9, 1000.0)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_rows_that_differ_in_the_sign_of_a_zero_repeat_each_other(zero: float) -> None:
    weights = distinct()
    weights["conv.weight"][0, 0, 0, 0] = 0.0
    weights["conv.weight"][1] = weights["conv.weight"][0]
    weights["conv.weight"][1, 0, 0, 0] = zero
    with pytest.raises(UpdateError) as caught:
        exit_gate.check_received(save(weights), 1000.0)
    assert caught.value.code == ErrorCode.SUSPICIOUS_MODEL


def test_ordinary_weights_are_received_with_their_shapes() -> None:
    exit_gate.check_received(save(distinct()), 1000.0, {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,)})


@pytest.mark.parametrize("row", [0.0, 1.0, -3.5])
def test_constant_row_is_refused(row: float) -> None:
    weights = distinct()
    weights["conv.weight"][2] = row
    with pytest.raises(UpdateError, match="copy images") as caught:
        exit_gate.check_received(save(weights), 1000.0)
    assert caught.value.code == ErrorCode.SUSPICIOUS_MODEL


def test_row_that_is_there_twice_is_refused() -> None:
    weights = distinct()
    weights["conv.weight"][3] = weights["conv.weight"][0]
    with pytest.raises(UpdateError, match="copy images"):
        exit_gate.check_received(save(weights), 1000.0)


@pytest.mark.parametrize(
    ("value", "code"), [(np.nan, "not-finite"), (np.inf, "not-finite"), (1001, "suspicious-model")]
)
def test_weights_out_of_range_are_refused(value: float, code: str) -> None:
    weights = distinct()
    weights["conv.bias"][1] = value
    with pytest.raises(UpdateError) as caught:
        exit_gate.check_received(save(weights), 1000.0)
    assert caught.value.code == code


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"\x02\0\0\0\0\0\0\0{]"])
def test_other_bytes_are_no_model(data: bytes) -> None:
    with pytest.raises(UpdateError, match="not safetensors"):
        exit_gate.check_received(data, 1000.0)


def test_shipped_network_as_initialised_is_not_suspicious() -> None:
    for dims, patch in ((2, [32, 32]), (3, [16, 16, 16])):
        for norm in ("group", "instance"):
            run = a_run(model={"dims": dims, "norm": norm}, training={"patch-size": patch})
            exit_gate.check_received(pack(build_model(run).state_dict()), 1000.0)


def test_policy_shortens_what_leaves() -> None:
    scores = {"dice": 0.5, "dice-lesion": 0.5, "iou": 0.4, "train-loss": 1.0}
    reply = EvaluateReply(RUN_HASH, 2, "test", 10, scores)
    released = leaving(reply, ASKED, a_run(), allowed=("iou",))
    assert released.metrics == {"iou": 0.4}
    assert leaving(reply, ASKED, a_run(), allowed=()).metrics == {}
    assert leaving(UPDATE, REQUEST, a_run(), allowed=()).metrics == {"steps": 20.0}


STATISTICS = {
    **{"counted-patients": 40.0, "class-share-lesion": 0.625, "foreground-share-lesion": 0.012345},
    **{"foreground-spread-lesion": 0.0, "intensity-mean-1": -0.4567, "intensity-mean-spread-1": 0.1},
}


def asks(**changes: object) -> RunConfig:
    return a_run(format=2, federation={"rounds": 3, "statistics": True}, **changes)


def test_statistics_leave_with_two_digits_where_run_asks_and_policy_names_them() -> None:
    told = dataclasses.replace(UPDATE, metrics=STATISTICS)
    names = ("class-share", "foreground-share", "intensity")
    assert leaving(told, REQUEST, asks(), allowed=names).metrics == {
        **STATISTICS, "class-share-lesion": 0.62, "foreground-share-lesion": 0.012, "intensity-mean-1": -0.46
    }  # fmt: skip
    assert leaving(told, REQUEST, asks(), allowed=("intensity",)).metrics.keys() == {
        "counted-patients", "intensity-mean-1", "intensity-mean-spread-1"
    }  # fmt: skip
    assert leaving(told, REQUEST, asks()).metrics == {}  # the default names none
    assert leaving(told, REQUEST, a_run(), allowed=names).metrics == {}
    beyond = asks().model_copy(update={"privacy": a_run(privacy={"target-epsilon": 8.0}).privacy})
    assert leaving(told, REQUEST, beyond, allowed=names).metrics == {}
    assert statistic_names(beyond, names) == frozenset()
    assert exit_gate.shorten(told, asks(), ("train-loss",)).metrics == {}


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({"counted-patients": 41.0}, STATISTICS.keys()),
        ({"counted-patients": 5.0}, STATISTICS.keys()),
        ({"counted-patients": math.nan}, STATISTICS.keys()),
        ({"counted-patients": math.inf}, STATISTICS.keys()),
        ({"class-share-lesion": 0.2}, {"class-share-lesion"}),  # 8 of 40
        ({"class-share-lesion": 0.8}, {"class-share-lesion"}),
        ({"class-share-lesion": 0.25}, set()),
        ({"class-share-lesion": 0.75}, set()),
        ({"foreground-share-lesion": 1.5}, {"foreground-share-lesion"}),
        ({"intensity-mean-spread-1": -0.1}, {"intensity-mean-spread-1"}),
        ({"intensity-mean-1": math.inf}, {"intensity-mean-1"}),
    ],
)
def test_a_statistic_that_could_be_of_few_patients_or_is_none_stays(changes: dict[str, float], stays: set[str]) -> None:
    told = dataclasses.replace(UPDATE, metrics={**STATISTICS, **changes, "steps": 20.0})
    released = leaving(told, REQUEST, asks(), allowed=("class-share", "foreground-share", "intensity"))
    assert released.metrics.keys() == {"steps", *STATISTICS} - set(stays)


def test_neither_loss_nor_time_leaves_under_differential_privacy() -> None:
    private = a_run(privacy={"target-epsilon": 8.0})
    told = dataclasses.replace(UPDATE, metrics={"train-loss": 0.5, "seconds": 3.0, "steps": 20.0, "epsilon": 1.0})
    assert leaving(told, REQUEST, private).metrics == {"steps": 20.0, "epsilon": 1.0}
    assert leaving(told, REQUEST, a_run()).metrics == told.metrics


@pytest.mark.parametrize(("true", "told"), [(1, 10), (10, 10), (12, 10), (13, 15), (17, 15), (18, 20), (100, 100)])
def test_counts_leave_in_steps_of_five_and_never_below_ten(true: int, told: int) -> None:
    assert bucketed(true) == told
    assert bucketed(told) == told
