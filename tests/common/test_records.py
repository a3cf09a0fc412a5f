"""The seam to Flower: what goes in comes out, and nothing malformed gets through."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ErrorCode, UpdateError
from common.records import (
    EvaluateReply,
    EvaluateRequest,
    Refusal,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
    reply_from_record,
    reply_to_record,
    request_from_record,
    request_to_record,
)

HASH = "ab" * 32
METRICS = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(allow_nan=False, allow_infinity=False))


@pytest.mark.parametrize(
    "request_",
    [TrainRequest(HASH, 1, b"\x00\x01weights"), EvaluateRequest(HASH, 7, "test", b"w")],
)
def test_request_survives_the_trip(request_: Request) -> None:
    assert request_from_record(request_to_record(request_)) == request_


@given(st.binary(max_size=64), st.integers(0, 2**31 - 1), METRICS)
def test_train_reply_survives_the_trip(weights: bytes, patients: int, metrics: dict[str, float]) -> None:
    reply = TrainReply(HASH, 3, weights, patients, metrics)
    assert reply_from_record(reply_to_record(reply)) == reply


@pytest.mark.parametrize(
    "reply", [EvaluateReply(HASH, 2, "validation", 4, {"dice": 0.5}), Refusal(HASH, 2, ErrorCode.BUDGET_SPENT)]
)
def test_other_replies_survive_the_trip(reply: Reply) -> None:
    assert reply_from_record(reply_to_record(reply)) == reply


def test_model_travels_as_one_array() -> None:
    record = request_to_record(TrainRequest(HASH, 1, bytes(1000)))
    assert sum(len(arrays) for arrays in record.array_records.values()) == 1


def broken(**changes: object) -> RecordDict:
    record = reply_to_record(TrainReply(HASH, 1, b"weights", 3, {"steps": 2.0}))
    for name, value in changes.items():
        if value is None:
            del record[name]
        else:
            record[name] = value  # type: ignore[assignment]  # deliberately wrong records
    return record


def head(**changes: object) -> ConfigRecord:
    values = {"run-hash": HASH, "round": 1, "kind": "train", "patients": 3} | changes
    return ConfigRecord({key: value for key, value in values.items() if value is not None})  # type: ignore[misc]


TWO_ARRAYS = ArrayRecord({name: Array("uint8", (1,), "safetensors", b"x") for name in ("safetensors", "extra")})
LYING_SHAPE = ArrayRecord({"safetensors": Array("uint8", (9,), "safetensors", b"x")})
PICKLED = ArrayRecord({"safetensors": Array("uint8", (1,), "pickle", b"x")})


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (broken(head=None), ErrorCode.BAD_REQUEST),
        (broken(model=None), ErrorCode.WRONG_TENSORS),
        (broken(metrics=None), ErrorCode.BAD_REQUEST),
        (broken(model=TWO_ARRAYS), ErrorCode.WRONG_TENSORS),
        (broken(model=LYING_SHAPE), ErrorCode.WRONG_TENSORS),
        (broken(model=PICKLED), ErrorCode.WRONG_TENSORS),
        (broken(metrics=MetricRecord({"loss": float("nan")})), ErrorCode.NOT_FINITE),
        (broken(metrics=MetricRecord({"loss": float("inf")})), ErrorCode.NOT_FINITE),
        (broken(metrics=MetricRecord({"loss": [1.0, 2.0]})), ErrorCode.NOT_FINITE),
        (broken(head=head(patients=-1)), ErrorCode.BAD_COUNT),
        (broken(head=head(patients=2**40)), ErrorCode.BAD_COUNT),
        (broken(head=head(patients=2.5)), ErrorCode.BAD_COUNT),
        (broken(head=head(patients=True)), ErrorCode.BAD_COUNT),
        (broken(head=head(round=None)), ErrorCode.BAD_COUNT),
        (broken(head=head(kind="other")), ErrorCode.BAD_REQUEST),
        (broken(head=head(kind="refusal", code="Jane Doe, liver")), ErrorCode.BAD_REQUEST),
        (broken(head=head(kind="evaluate", phase="training")), ErrorCode.BAD_REQUEST),
    ],
)
def test_malformed_reply_is_refused_with_a_code(record: RecordDict, code: ErrorCode) -> None:
    with pytest.raises(UpdateError) as refused:
        reply_from_record(record)
    assert refused.value.code == code


def test_refusal_carries_nothing_but_the_code() -> None:
    record = reply_to_record(Refusal(HASH, 1, ErrorCode.UNREADABLE))
    assert list(record) == ["head"]
    assert dict(record["head"]) == {"run-hash": HASH, "round": 1, "kind": "refusal", "code": "unreadable"}  # type: ignore[arg-type]  # a ConfigRecord
