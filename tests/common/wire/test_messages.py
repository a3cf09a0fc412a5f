"""What goes in comes out, on the pipe and in Flower's messages alike, and nothing malformed gets through."""

import json
import os
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ErrorCode, UpdateError
from common.wire import records
from common.wire.frames import HEADER_LIMIT, Frame, receive_frame, send_frame
from common.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    Refusal,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
    digest_of,
    reply_from_frame,
    reply_to_frame,
    request_from_frame,
    request_to_frame,
)
from common.wire.records import reply_from_record, reply_to_record, request_from_record, request_to_record

HASH = "ab" * 32
METRICS = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(allow_nan=False, allow_infinity=False))
PARTS = st.dictionaries(st.text(max_size=8), st.binary(max_size=64), min_size=1, max_size=3)
TWO = {"weights": b"\x00\x01weights", "control": os.urandom(100_000)}


def through_a_pipe(frame: Frame) -> Frame:
    reader, writer = os.pipe()
    sender = threading.Thread(target=send_frame, args=(writer, frame))
    sender.start()
    received = receive_frame(reader)
    sender.join()
    os.close(reader)
    os.close(writer)
    assert received is not None
    return received


@pytest.mark.parametrize(
    "request_",
    [
        TrainRequest(HASH, 1, {"weights": b"w"}),
        TrainRequest(HASH, 1, TWO),
        EvaluateRequest(HASH, 7, "test", TWO),
    ],
)
def test_request_survives_both_ways(request_: Request) -> None:
    assert request_from_record(request_to_record(request_)) == request_
    assert request_from_frame(through_a_pipe(request_to_frame(request_))) == request_


@pytest.mark.parametrize(
    "reply",
    [
        TrainReply(HASH, 3, TWO, 10, {"train-loss": 0.1, "epsilon": 1 / 3}),
        EvaluateReply(HASH, 2, "validation", 4, {"dice": 0.5}),
        Refusal(HASH, 2, ErrorCode.BUDGET_SPENT),
    ],
)
def test_reply_survives_both_ways(reply: Reply) -> None:
    assert reply_from_record(reply_to_record(reply)) == reply
    assert reply_from_frame(through_a_pipe(reply_to_frame(reply))) == reply


@given(PARTS, st.integers(0, 2**31 - 1), METRICS)
def test_update_survives_whatever_its_parts_are_called(
    parts: dict[str, bytes], patients: int, metrics: dict[str, float]
) -> None:
    reply = TrainReply(HASH, 3, parts, patients, metrics)
    assert reply_from_record(reply_to_record(reply)) == reply


def test_flower_and_the_pipe_carry_the_same_frame() -> None:
    reply = TrainReply(HASH, 3, TWO, 10, {"train-loss": 0.1})
    record, frame = reply_to_record(reply), reply_to_frame(reply)
    assert json.loads(record["head"]["json"]) == frame.header  # type: ignore[arg-type]  # bytes
    assert [record[f"{name}/0"]["bytes"] for name in frame.parts] == list(frame.parts.values())


def test_part_is_one_object_of_flowers_whatever_message_carries_it() -> None:
    train, test = TrainRequest(HASH, 2, TWO), EvaluateRequest(HASH, 1, "test", TWO)
    one, other = ({record.object_id for record in request_to_record(each).values()} for each in (train, test))
    assert len(one) == len(other) == 1 + len(TWO)
    assert len(one & other) == len(TWO)


def test_large_part_travels_in_pieces_and_comes_back_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PIECE_BYTES", 10)
    for size in (0, 9, 10, 11, 20, 105):
        request = TrainRequest(HASH, 1, {"a": os.urandom(size), "b": bytes(size)})
        record = request_to_record(request)
        assert len(record) == 1 + 2 * max(1, -(-size // 10))
        assert request_from_record(record) == request


def test_parts_are_named_by_the_hash_of_the_only_one_or_of_all() -> None:
    assert digest_of({"weights": b"w"}) == sha256(b"w").hexdigest() == TrainRequest(HASH, 1, {"weights": b"w"}).sha256
    listing = "".join(f"{sha256(part).hexdigest()} {name}\n" for name, part in sorted(TWO.items()))
    assert digest_of(TWO) == sha256(listing.encode()).hexdigest() == digest_of(dict(reversed(TWO.items())))
    swapped = {"weights": TWO["control"], "control": TWO["weights"]}
    assert len({digest_of(TWO), digest_of(swapped), *(digest_of({name: TWO[name]}) for name in TWO)}) == 4


HEADER = {"kind": "train", "run-hash": HASH, "round": 1, "patients": 3, "metrics": {"steps": 2.0}}
LACKING: dict[str, ErrorCode] = {
    "kind": ErrorCode.BAD_REQUEST,
    "run-hash": ErrorCode.BAD_REQUEST,
    "round": ErrorCode.BAD_COUNT,
    "patients": ErrorCode.BAD_COUNT,
    "metrics": ErrorCode.BAD_REQUEST,
}


@pytest.mark.parametrize("key", LACKING)
def test_reply_that_lacks_something_is_refused(key: str) -> None:
    with pytest.raises(UpdateError) as refused:
        reply_from_frame(Frame({name: value for name, value in HEADER.items() if name != key}, TWO))
    assert refused.value.code == LACKING[key]


@pytest.mark.parametrize(
    ("changes", "parts", "code"),
    [
        ({}, {}, ErrorCode.WRONG_TENSORS),
        ({"kind": "evaluate", "phase": "test"}, TWO, ErrorCode.BAD_REQUEST),
        ({"kind": "refusal", "code": "internal"}, TWO, ErrorCode.BAD_REQUEST),
        ({"metrics": {"loss": float("nan")}}, TWO, ErrorCode.NOT_FINITE),
        ({"metrics": {"loss": float("inf")}}, TWO, ErrorCode.NOT_FINITE),
        ({"metrics": {"loss": [1.0, 2.0]}}, TWO, ErrorCode.NOT_FINITE),
        ({"metrics": {"loss": 10**400}}, TWO, ErrorCode.NOT_FINITE),
        ({"metrics": {"loss": True}}, TWO, ErrorCode.NOT_FINITE),
        ({"metrics": [1.0]}, TWO, ErrorCode.BAD_REQUEST),
        ({"patients": -1}, TWO, ErrorCode.BAD_COUNT),
        ({"patients": 2**40}, TWO, ErrorCode.BAD_COUNT),
        ({"patients": 2.5}, TWO, ErrorCode.BAD_COUNT),
        ({"patients": True}, TWO, ErrorCode.BAD_COUNT),
        ({"run-hash": 7}, TWO, ErrorCode.BAD_REQUEST),
        ({"kind": "other"}, {}, ErrorCode.BAD_REQUEST),
        ({"kind": "refusal", "code": "Jane Doe, liver"}, {}, ErrorCode.BAD_REQUEST),
        ({"kind": "evaluate", "phase": "training"}, {}, ErrorCode.BAD_REQUEST),
        ({"kind": "evaluate", "phase": ["test"]}, {}, ErrorCode.BAD_REQUEST),
    ],
)
def test_malformed_reply_is_refused_with_a_code(
    changes: dict[str, Any], parts: dict[str, bytes], code: ErrorCode
) -> None:
    with pytest.raises(UpdateError) as refused:
        reply_from_frame(Frame({**HEADER, **changes}, parts))
    assert refused.value.code == code
    assert "Jane" not in str(refused.value)


@pytest.mark.parametrize("changes", [{"kind": "refusal"}, {"round": -1}, {"kind": "evaluate"}, {"run-hash": None}])
def test_malformed_request_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UpdateError):
        request_from_frame(Frame({"kind": "train", "run-hash": HASH, "round": 1, **changes}, TWO))


def _with(**changes: Any) -> Callable[[], RecordDict]:
    def make() -> RecordDict:
        record = reply_to_record(TrainReply(HASH, 1, {"weights": b"weights"}, 3, {"steps": 2.0}))
        for name, value in changes.items():
            if value is None:
                del record[name]
            else:
                record[name] = value
        return record

    return make


ARRAY = ArrayRecord({"safetensors": Array("uint8", (1,), "safetensors", b"x")})


@pytest.mark.parametrize(
    "make",
    [
        _with(head=None),
        _with(head=ConfigRecord({"json": "{}"})),
        _with(head=ConfigRecord({"json": b"{}", "more": b"{}"})),
        _with(head=ConfigRecord({"json": b"[]"})),
        _with(head=ConfigRecord({"json": b"[" * 100_000})),
        _with(head=ConfigRecord({"json": b"\xff"})),
        _with(**{"weights/0": ARRAY}),
        _with(**{"weights/0": ConfigRecord({"bytes": "text"})}),
        _with(**{"weights/0": None, "weights/1": ConfigRecord({"bytes": b"x"})}),
        _with(**{"weights/2": ConfigRecord({"bytes": b"x"})}),
        _with(weights=ConfigRecord({"bytes": b"x"})),
    ],
)
def test_malformed_record_is_refused(make: Callable[[], RecordDict]) -> None:
    with pytest.raises(UpdateError) as refused:
        reply_from_record(make())
    assert refused.value.code == ErrorCode.BAD_REQUEST


def test_no_longer_header_is_parsed_than_the_pipe_carries() -> None:
    """JSON takes twenty times its bytes in memory, and a message may be as large as its run's model."""
    record = reply_to_record(TrainReply(HASH, 1, {"weights": b"weights"}, 3))
    head = record["head"]["json"]
    record["head"] = ConfigRecord({"json": head.ljust(HEADER_LIMIT)})  # type: ignore[union-attr]
    assert reply_from_record(record).round == 1
    record["head"] = ConfigRecord({"json": head.ljust(HEADER_LIMIT + 1)})  # type: ignore[union-attr]
    with pytest.raises(UpdateError, match="expected at most") as refused:
        reply_from_record(record)
    assert refused.value.code == ErrorCode.BAD_REQUEST


def test_refusal_carries_nothing_but_the_code() -> None:
    record = reply_to_record(Refusal(HASH, 1, ErrorCode.UNREADABLE))
    assert list(record) == ["head"]
    assert json.loads(record["head"]["json"]) == {  # type: ignore[arg-type]  # bytes
        "run-hash": HASH,
        "round": 1,
        "kind": "refusal",
        "code": "unreadable",
    }
