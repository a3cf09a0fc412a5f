"""Frames survive the pipe unchanged; anything else on it is refused."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator

import pytest

from client.home.offer import Offer
from client.worker import protocol
from client.worker.protocol import Answer, Describe, PipeError, Question, Ready, Work
from common.config import RunConfig, validate
from common.config.rundocument import issue
from common.errors import ErrorCode
from common.wire import messages
from common.wire.frames import HEADER_LIMIT, PARTS_LIMIT, Frame
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, TrainReply, TrainRequest

RUN = validate(
    RunConfig,
    {
        "name": "lesions",
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [32, 32]},
        "federation": {"rounds": 3},
    },
)
LARGE = os.urandom(3_000_001)  # larger than any pipe buffer, odd


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):  # the test closed it
            os.close(fd)


def headed(text: bytes) -> bytes:
    """A header with its length."""
    return len(text).to_bytes(4, "big") + text


def through(ends: tuple[int, int], frame: Frame) -> Frame | None:
    sender = threading.Thread(target=protocol.send, args=(ends[1], frame))
    sender.start()
    received = protocol.receive(ends[0])
    sender.join()
    return received


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("payload", [b"", b"x", LARGE], ids=["empty", "one byte", "3 MB"])
def test_frame_arrives_as_it_was_sent(ends: tuple[int, int], payload: bytes, blocking: bool) -> None:
    for fd in ends:
        os.set_blocking(fd, blocking)
    frame = Frame({"kind": "train", "text": "ä\n", "parts": 3}, {"first": payload, "": b"", "last": payload[:7]})
    assert through(ends, frame) == frame


@pytest.mark.parametrize(
    "question",
    [
        Describe(issue(RUN)),
        Work(issue(RUN), TrainRequest("ab" * 32, 3, {"weights": b"weights"}), "message.1"),
        Work(issue(RUN), EvaluateRequest("ab" * 32, 3, "test", {"weights": b"weights"}), "message.2"),
    ],
)
def test_question_arrives_as_it_was_asked(question: Question) -> None:
    assert protocol.question_from_frame(protocol.question_to_frame(question)) == question


def test_worker_does_not_hash_again_what_the_agent_has_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[messages.Parts] = []

    def noted(parts: messages.Parts) -> str:
        hashed.append(parts)
        return "ab" * 32

    monkeypatch.setattr(messages, "digest_of", noted)
    work = Work(issue(RUN), TrainRequest("ab" * 32, 3, {"weights": b"weights"}), "message.1")
    assert work.request.sha256 == "ab" * 32
    for _ in range(2):
        asked = protocol.question_from_frame(protocol.question_to_frame(work))
        assert isinstance(asked, Work)
        assert asked.request.sha256 == work.request.sha256
    assert hashed == [{"weights": b"weights"}]


@pytest.mark.parametrize(
    "answer",
    [
        Ready("removed"),
        Offer(
            12,
            10,
            "cohort",
            14,
            {"no-label": 2},
            {"weights": {"conv.weight": (4, 2, 3), "conv.bias": (4,)}},
            training=9,
        ),
        TrainReply("ab" * 32, 1, {"weights": b"weights"}, 7, {"train-loss": 0.5}),
        EvaluateReply("ab" * 32, 1, "validation", 2, {"dice": 0.25}),
        Refusal("ab" * 32, 1, ErrorCode.NO_DATA),
    ],
)
def test_answer_arrives_as_it_was_given(answer: Answer) -> None:
    assert protocol.answer_from_frame(protocol.answer_to_frame(answer)) == answer


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"kind": "shell"},
        {"kind": "refusal", "run-hash": "", "round": 1, "code": "MUELLER^ANNA"},
        {"kind": "offer", "quarantined": []},
        {"kind": "train", "run-hash": "", "round": 1, "patients": 1, "metrics": {"dice": "MUELLER"}},
    ],
)
def test_malformed_answer_is_refused_without_quoting_it(header: dict[str, object]) -> None:
    with pytest.raises(PipeError) as caught:
        protocol.answer_from_frame(Frame(header))
    assert "MUELLER" not in str(caught.value)


def test_closed_pipe_between_frames_is_the_end(ends: tuple[int, int]) -> None:
    os.close(ends[1])
    assert protocol.receive(ends[0]) is None


def test_closed_pipe_within_a_frame_is_an_error(ends: tuple[int, int]) -> None:
    os.write(ends[1], (10).to_bytes(4, "big") + b"{")
    os.close(ends[1])
    with pytest.raises(PipeError, match="within a frame"):
        protocol.receive(ends[0])


@pytest.mark.parametrize(
    "noise",
    [
        b"Traceback (most recent call last):\n",
        b"\xff" * 12,
        (2).to_bytes(4, "big") + b"[]",
        (2).to_bytes(4, "big") + b"{}",
        headed(b'{"header":{},"parts":[["one",-1]]}'),
        headed(b'{"header":{},"parts":[["one",0.5]]}'),
        headed(b'{"header":[],"parts":[]}'),
        headed(b'{"parts":[]}'),
    ],
    ids=[
        "a stray print",
        "huge sizes",
        "not an object",
        "no parts",
        "less than nothing",
        "half a byte",
        "a list",
        "nothing",
    ],
)
def test_noise_on_the_pipe_is_refused(ends: tuple[int, int], noise: bytes) -> None:
    os.write(ends[1], noise)
    os.close(ends[1])
    with pytest.raises(PipeError):
        protocol.receive(ends[0])


def test_too_large_a_header_is_refused_before_it_is_read(ends: tuple[int, int]) -> None:
    os.write(ends[1], (HEADER_LIMIT + 1).to_bytes(4, "big"))
    with pytest.raises(PipeError, match="too large"):
        protocol.receive(ends[0], time.monotonic() + 0.2)


@pytest.mark.parametrize("sizes", [[PARTS_LIMIT + 1], [PARTS_LIMIT, 1]])
def test_too_large_parts_are_refused_before_they_are_read(ends: tuple[int, int], sizes: list[int]) -> None:
    header = json.dumps({"header": {}, "parts": [[str(number), size] for number, size in enumerate(sizes)]}).encode()
    os.write(ends[1], headed(header))
    with pytest.raises(PipeError, match="too large"):
        protocol.receive(ends[0], time.monotonic() + 0.2)


def test_too_large_a_frame_is_not_sent(ends: tuple[int, int]) -> None:
    with pytest.raises(PipeError, match="larger"):
        protocol.send(ends[1], Frame({"text": "x" * HEADER_LIMIT}))


def test_deadline_holds_for_reading_and_for_writing(ends: tuple[int, int]) -> None:
    os.set_blocking(ends[1], False)
    started = time.monotonic()
    with pytest.raises(PipeError) as read:
        protocol.receive(ends[0], started + 0.05)
    with pytest.raises(PipeError) as written:
        protocol.send(ends[1], Frame({}, {"large": LARGE}), started + 0.1)
    assert read.value.code == written.value.code == ErrorCode.DEADLINE
