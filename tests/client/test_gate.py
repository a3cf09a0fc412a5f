"""The exit gate lets the update and the scores through, and nothing else."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from client import gate
from common.checkpoint import pack
from common.config import RunConfig, validate
from common.errors import ErrorCode, UpdateError
from common.records import EvaluateReply, EvaluateRequest, Refusal, TrainReply, TrainRequest, reply_to_record

RUN_HASH = "ab" * 32
PLANTED = "MUELLER^ANNA 1957-03-02"


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


REQUEST = TrainRequest(RUN_HASH, 2, save(tensors(0.0)))
UPDATE = TrainReply(RUN_HASH, 2, save(tensors()), 12, {"train-loss": 0.25, "steps": 20.0})
ASKED = EvaluateRequest(RUN_HASH, 2, "test", REQUEST.weights)


def test_update_passes_with_the_same_values() -> None:
    released = gate.release(UPDATE, REQUEST, a_run())
    assert isinstance(released, TrainReply)
    assert {name: value.tolist() for name, value in load(released.weights).items()} == {
        name: value.tolist() for name, value in tensors().items()
    }
    assert (released.patients, released.metrics) == (12, {"steps": 20.0, "train-loss": 0.25})


def test_file_metadata_and_unknown_metrics_stay_here() -> None:
    hidden = dataclasses.replace(
        UPDATE, weights=save(tensors(), metadata={"note": PLANTED}), metrics={PLANTED: 1.0, "steps": 3.0}
    )
    released = gate.release(hidden, REQUEST, a_run())
    assert PLANTED.encode() in hidden.weights
    assert PLANTED.encode() not in released.weights
    assert PLANTED not in repr(reply_to_record(released))
    assert released.metrics == {"steps": 3.0}


def test_padding_in_the_file_header_stays_here() -> None:
    plain = save(tensors())
    length = int.from_bytes(plain[:8], "little")
    header = plain[8 : 8 + length] + b" " * 64  # the format allows trailing spaces
    padded = len(header).to_bytes(8, "little") + header + plain[8 + length :]
    released = gate.release(dataclasses.replace(UPDATE, weights=padded), REQUEST, a_run())
    assert released.weights == plain


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
    ],
    ids=["empty", "garbage", "one missing", "one more", "other shape", "other type", "trailing byte"],
)
def test_other_tensors_than_the_requests_do_not_leave(weights: bytes) -> None:
    with pytest.raises(UpdateError) as caught:
        gate.release(dataclasses.replace(UPDATE, weights=weights), REQUEST, a_run())
    assert caught.value.code == ErrorCode.WRONG_TENSORS


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_do_not_leave(value: float) -> None:
    bad = tensors()
    bad["conv.weight"][1, 0, 2, 2] = value
    with pytest.raises(UpdateError) as caught:
        gate.release(dataclasses.replace(UPDATE, weights=save(bad)), REQUEST, a_run())
    assert caught.value.code == ErrorCode.NOT_FINITE


def test_run_hash_round_and_phase_are_the_requests() -> None:
    lying = EvaluateReply("cd" * 32, 77, "validation", 4, {"dice": 0.5})
    released = gate.release(lying, ASKED, a_run())
    assert isinstance(released, EvaluateReply)
    assert (released.run_hash, released.round, released.phase) == (RUN_HASH, 2, "test")


def test_scores_are_those_of_the_runs_classes_finite_and_rounded_to_six_digits() -> None:
    metrics = {"dice": 2 / 3, "dice-lesion": 1.0, "dice-anna": 0.5, "iou": math.nan, "recall": math.inf}
    released = gate.release(EvaluateReply(RUN_HASH, 2, "test", 4, metrics), ASKED, a_run())
    assert released.metrics == {"dice": 0.666667, "dice-lesion": 1.0}


def test_with_privacy_neither_counts_nor_the_training_loss_leave() -> None:
    private = a_run(privacy={"target-epsilon": 4.0})
    assert gate.release(UPDATE, REQUEST, private).metrics == {"steps": 20.0}
    assert gate.release(UPDATE, REQUEST, private).patients == 0
    assert gate.release(EvaluateReply(RUN_HASH, 2, "test", 4, {"dice": 0.5}), ASKED, private).patients == 0


@pytest.mark.parametrize("patients", [-1, 10**9])
def test_impossible_count_does_not_leave(patients: int) -> None:
    with pytest.raises(UpdateError) as caught:
        gate.release(dataclasses.replace(UPDATE, patients=patients), REQUEST, a_run())
    assert caught.value.code == ErrorCode.BAD_COUNT


def test_answer_to_another_question_does_not_leave() -> None:
    with pytest.raises(UpdateError):
        gate.release(UPDATE, ASKED, a_run())
    with pytest.raises(UpdateError):
        gate.release(EvaluateReply(RUN_HASH, 2, "test", 4, {}), REQUEST, a_run())


def test_refusal_is_a_code_and_nothing_else() -> None:
    released = gate.release(Refusal(PLANTED, 5, ErrorCode.NO_DATA), REQUEST, a_run())
    assert released == Refusal(RUN_HASH, 2, ErrorCode.NO_DATA)
    with pytest.raises(ValueError, match="not a valid ErrorCode"):
        gate.release(Refusal(RUN_HASH, 2, PLANTED), REQUEST, a_run())


def test_released_update_is_what_the_models_own_packing_gives() -> None:
    """The same bytes, so that a deployed run has the hash of the simulated one."""
    packed = pack({name: torch.from_numpy(value) for name, value in tensors().items()})
    released = gate.release(dataclasses.replace(UPDATE, weights=packed), REQUEST, a_run())
    assert released.weights == packed


def test_parameters_are_counted_without_torch() -> None:
    assert gate.parameter_count(save(tensors())) == 2 * 1 * 3 * 3 + 2
    header = json.dumps({}).encode()
    assert gate.parameter_count(len(header).to_bytes(8, "little") + header) == 0
