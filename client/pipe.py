"""The pipe between a site's agent and its worker: typed questions and answers in length-prefixed frames.

A frame is 4 bytes header length, 8 bytes payload length (both big endian), the header as JSON, the payload as
raw bytes (model weights). Sizes are checked before anything is allocated. Nothing is ever unpickled, and
neither end trusts the other: what does not parse is a PipeError. Deadlines are `time.monotonic` seconds.
"""

import json
import os
import select
import struct
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from client.offer import Offer
from common.config import RunConfig, canonical, from_canonical
from common.errors import ErrorCode, WardroundError
from common.records import EvaluateReply, EvaluateRequest, Refusal, Reply, Request, TrainReply, TrainRequest

HEADER_LIMIT = 1 << 20  # bytes
PAYLOAD_LIMIT = 1 << 30  # bytes: five times the default policy's largest model

_PREFIX = struct.Struct(">IQ")


class PipeError(WardroundError):
    """The other end is gone, late, or does not speak our frames."""

    code = ErrorCode.WORKER_FAILED


@dataclass(frozen=True)
class Frame:
    """One message on the pipe: a JSON object and raw bytes."""

    header: dict[str, Any]
    payload: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Describe:
    """The agent asks: what can this site offer the run?"""

    run: RunConfig


@dataclass(frozen=True)
class Work:
    """The agent asks: answer this request. `attempt` names the execution in the privacy ledger."""

    run: RunConfig
    request: Request
    attempt: str


@dataclass(frozen=True)
class Ready:
    """The worker says: imports are done. `network` is "removed", or why it could not be."""

    network: str


Question = Describe | Work
Answer = Ready | Offer | Reply


def question_to_frame(question: Question) -> Frame:
    """Encode a question."""
    header: dict[str, Any] = {"run": canonical(question.run)}
    if isinstance(question, Describe):
        return Frame(header | {"kind": "describe"})
    request = question.request
    header |= {"run-hash": request.run_hash, "round": request.round, "attempt": question.attempt}
    if isinstance(request, EvaluateRequest):
        return Frame(header | {"kind": "evaluate", "phase": request.phase}, request.weights)
    return Frame(header | {"kind": "train"}, request.weights)


def question_from_frame(frame: Frame) -> Question:
    """Decode a question; see `question_to_frame`."""
    header = frame.header
    try:
        run = from_canonical(RunConfig, header["run"])
        match header["kind"]:
            case "describe":
                return Describe(run)
            case "train":
                request: Request = TrainRequest(header["run-hash"], int(header["round"]), frame.payload)
            case "evaluate":
                request = EvaluateRequest(header["run-hash"], int(header["round"]), header["phase"], frame.payload)
            case kind:
                raise PipeError(f"the agent asked an unknown question {kind!r}; expected describe, train or evaluate")
        return Work(run, request, str(header["attempt"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PipeError(f"a question on the pipe is malformed ({error}); expected the fields of {__name__}") from error


def answer_to_frame(answer: Answer) -> Frame:
    """Encode an answer."""
    match answer:
        case Ready():
            return Frame({"kind": "ready", "network": answer.network})
        case Offer():
            return Frame({"kind": "offer", **asdict(answer)})
        case Refusal():
            header = {"kind": "refusal", "code": str(answer.code)}
            return Frame(header | {"run-hash": answer.run_hash, "round": answer.round})
        case TrainReply():
            return Frame({"kind": "train", **_reply_header(answer)}, answer.weights)
        case EvaluateReply():
            return Frame({"kind": "evaluate", "phase": answer.phase, **_reply_header(answer)})


def answer_from_frame(frame: Frame) -> Answer:
    """Decode an answer; see `answer_to_frame`."""
    header = frame.header
    try:
        match header["kind"]:
            case "ready":
                return Ready(str(header["network"]))
            case "offer":
                quarantined = {str(ErrorCode(code)): int(count) for code, count in header["quarantined"].items()}
                return Offer(
                    patients=int(header["patients"]),
                    training=int(header["training"]),
                    declared_size=int(header["declared_size"]),
                    cohort_id=str(header["cohort_id"]),
                    usable=int(header["usable"]),
                    quarantined=quarantined,
                    tensors={str(name): tuple(map(int, shape)) for name, shape in header["tensors"].items()},
                )
            case "refusal":
                return Refusal(header["run-hash"], int(header["round"]), ErrorCode(header["code"]))
            case "train":
                return TrainReply(weights=frame.payload, **_reply_fields(header))
            case "evaluate":
                return EvaluateReply(phase=header["phase"], **_reply_fields(header))
            case kind:
                raise PipeError(f"the worker gave an unknown answer {kind!r}; expected an offer or a reply")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PipeError("an answer on the pipe is malformed; see worker.log, the worker will be restarted") from error


def key_to_frame(site_key: bytes) -> Frame:
    """The first frame a worker gets: an environment or a command line could be read by others."""
    return Frame({"kind": "site-key"}, site_key)


def key_from_frame(frame: Frame | None) -> bytes:
    """Decode the first frame; see `key_to_frame`."""
    if frame is None or frame.header != {"kind": "site-key"}:
        raise PipeError("the agent did not begin with the site key")
    return frame.payload


def send(fd: int, frame: Frame, deadline: float | None = None) -> None:
    """Write one frame.

    Raises:
        PipeError: too large, the other end is gone, or the deadline passed.
    """
    header = json.dumps(frame.header, separators=(",", ":")).encode()
    if len(header) > HEADER_LIMIT or len(frame.payload) > PAYLOAD_LIMIT:
        raise PipeError(f"a frame of {len(header)} + {len(frame.payload)} bytes is larger than the pipe carries")
    for part in (_PREFIX.pack(len(header), len(frame.payload)) + header, frame.payload):
        rest = memoryview(part)
        while rest:
            _wait(fd, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise PipeError("the other end of the pipe is gone") from error


def receive(fd: int, deadline: float | None = None) -> Frame | None:
    """Read one frame; None when the other end has closed the pipe between frames.

    Raises:
        PipeError: not a frame, too large, cut short, or the deadline passed.
    """
    prefix = _read(fd, _PREFIX.size, deadline)
    if not prefix:
        return None
    sizes = _PREFIX.unpack(prefix) if len(prefix) == _PREFIX.size else (HEADER_LIMIT + 1, 0)
    if sizes[0] > HEADER_LIMIT or sizes[1] > PAYLOAD_LIMIT:
        raise PipeError("the pipe carries something that is not a frame, or a frame that is too large")
    raw, payload = _read(fd, sizes[0], deadline), _read(fd, sizes[1], deadline)
    if (len(raw), len(payload)) != sizes:
        raise PipeError("the other end of the pipe went away within a frame")
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise PipeError("a frame's header is not JSON") from error
    if not isinstance(header, dict):
        raise PipeError("a frame's header is not a JSON object")
    return Frame(header, payload)


def _reply_header(reply: TrainReply | EvaluateReply) -> dict[str, Any]:
    fields = {"run-hash": reply.run_hash, "round": reply.round, "patients": reply.patients}
    return fields | {"metrics": dict(reply.metrics)}


def _reply_fields(header: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_hash": str(header["run-hash"]),
        "round": int(header["round"]),
        "patients": int(header["patients"]),
        "metrics": {str(name): float(value) for name, value in header["metrics"].items()},
    }


def _read(fd: int, count: int, deadline: float | None) -> bytes:
    """Up to `count` bytes; fewer only at the end of the stream."""
    buffer = bytearray(count)
    view, got = memoryview(buffer), 0
    while got < count:
        _wait(fd, select.POLLIN, deadline)
        try:
            read = os.readv(fd, [view[got:]])
        except BlockingIOError:
            continue
        if not read:
            break
        got += read
    return bytes(view[:got])


def _wait(fd: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(fd, event)
    timeout_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    if not poll.poll(timeout_ms):
        raise PipeError("the other end of the pipe did not answer in time", ErrorCode.DEADLINE)
