"""What a site's agent and its worker say to each other: typed questions and answers, as frames on a pipe.

Requests and replies are the very frames that Flower's messages carry (common/wire/messages.py); a question adds the
run, the attempt and the hash of the parts to its request's header. What does not parse is a PipeError. Deadlines are
`time.monotonic` seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from client.home.offer import Offer, offer_from_json
from common.config.rundocument import RunDocument, from_text
from common.errors import ErrorCode, UpdateError, WardroundError
from common.wire import frames
from common.wire.frames import Frame, FrameError
from common.wire.messages import (
    EvaluateReply,
    Refusal,
    Reply,
    Request,
    TrainReply,
    known_as,
    reply_from_frame,
    reply_to_frame,
    request_from_frame,
    request_to_frame,
)


class PipeError(WardroundError):
    """The other end is gone, late, or does not speak our frames."""

    code = ErrorCode.WORKER_FAILED


@dataclass(frozen=True)
class Describe:
    """The agent asks: what can this site offer the run?"""

    run: RunDocument


@dataclass(frozen=True)
class Work:
    """The agent asks: answer this request. `attempt` names the execution in the privacy ledger."""

    run: RunDocument
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
    header: dict[str, Any] = {"run": question.run.text}
    if isinstance(question, Describe):
        return Frame(header | {"kind": "describe"})
    request = request_to_frame(question.request)
    header |= {"attempt": question.attempt, "sha256": question.request.sha256}
    return Frame({**request.header, **header}, request.parts)


def question_from_frame(frame: Frame) -> Question:
    """Decode a question; see `question_to_frame`."""
    header = frame.header
    try:
        run = from_text(header["run"])
        if header["kind"] == "describe":
            return Describe(run)
        request = known_as(request_from_frame(frame), str(header["sha256"]))
        return Work(run, request, str(header["attempt"]))
    except (KeyError, TypeError, ValueError, UpdateError) as error:
        raise PipeError(f"a question on the pipe is malformed ({error}); expected the fields of {__name__}") from error


def answer_to_frame(answer: Answer) -> Frame:
    """Encode an answer."""
    match answer:
        case Ready():
            return Frame({"kind": "ready", "network": answer.network})
        case Offer():
            return Frame({"kind": "offer", **asdict(answer)})
        case TrainReply() | EvaluateReply() | Refusal():
            return reply_to_frame(answer)


def answer_from_frame(frame: Frame) -> Answer:
    """Decode an answer; see `answer_to_frame`."""
    try:
        match frame.header["kind"]:
            case "ready":
                return Ready(str(frame.header["network"]))
            case "offer":
                return offer_from_json(frame.header)
            case _:
                return reply_from_frame(frame)
    except (KeyError, TypeError, ValueError, AttributeError, UpdateError) as error:
        raise PipeError("an answer on the pipe is malformed; see worker.log, the worker will be restarted") from error


def key_to_frame(site_key: bytes) -> Frame:
    """The first frame a worker gets: an environment or a command line could be read by others."""
    return Frame({"kind": "site-key"}, {"key": site_key})


def key_from_frame(frame: Frame | None) -> bytes:
    """Decode the first frame; see `key_to_frame`."""
    if frame is None or frame.header != {"kind": "site-key"} or list(frame.parts) != ["key"]:
        raise PipeError("the agent did not begin with the site key")
    return bytes(frame.parts["key"])


def send(fd: int, frame: Frame, deadline: float | None = None) -> None:
    """Write one frame.

    Raises:
        PipeError: too large, the other end is gone, or the deadline passed (DEADLINE).
    """
    with _pipe_errors():
        frames.send_frame(fd, frame, deadline)


def receive(fd: int, deadline: float | None = None) -> Frame | None:
    """Read one frame; None when the other end has closed the pipe between frames.

    Raises:
        PipeError: not a frame, too large, cut short, or the deadline passed (DEADLINE).
    """
    with _pipe_errors():
        return frames.receive_frame(fd, deadline)


@contextmanager
def _pipe_errors() -> Iterator[None]:
    try:
        yield
    except FrameError as error:
        raise PipeError(str(error), error.code) from error
