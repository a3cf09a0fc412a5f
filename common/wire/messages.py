"""What a coordinator asks a site, what the site answers, and the one form in which both travel: a frame.

A request and an update carry named parts, each of them safetensors; which parts there are is the run's affair, and
nothing here knows a name. All else stands in the frame's header. Flower's messages (common/wire/records.py) and the
pipe of a site's worker (client/worker/protocol.py) carry the same frames. String keys of a header live here and nowhere
else.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from common.errors import ErrorCode, UpdateError
from common.wire.frames import Buffer, Frame

Phase = Literal["validation", "test"]
Parts: TypeAlias = Mapping[str, Buffer]  # name -> safetensors

_MOST = 2**31


class _Carries:
    """A message with parts; they are hashed once, however often the hash is asked for."""

    parts: Parts

    @cached_property
    def sha256(self) -> str:
        """Names the parts, see `digest_of`."""
        return digest_of(self.parts)

    def sha256_of(self, name: str) -> str:
        """SHA-256 (hex) of one part."""
        return self.sha256 if self.parts.keys() == {name} else hashlib.sha256(self.parts[name]).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(map(len, self.parts.values()))


@dataclass(frozen=True)
class TrainRequest(_Carries):
    """Train from these parts for one round."""

    run_hash: str  # SHA-256 of the run's document, hex
    round: int  # from 1
    parts: Parts = field(repr=False)


@dataclass(frozen=True)
class EvaluateRequest(_Carries):
    """Evaluate these parts on the site's held-out patients."""

    run_hash: str
    round: int
    phase: Phase
    parts: Parts = field(repr=False)


@dataclass(frozen=True)
class TrainReply(_Carries):
    """A site's update. `patients` is bucketed, and 0 where the run weights sites equally: it then stays at the site."""

    run_hash: str
    round: int
    parts: Parts = field(repr=False)
    patients: int
    metrics: dict[str, float] = field(default_factory=dict)  # train-loss, steps, epsilon, delta, seconds


@dataclass(frozen=True)
class EvaluateReply:
    """A site's scores, means over its held-out patients."""

    run_hash: str
    round: int
    phase: Phase
    patients: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A site's answer when it does not do what was asked: a code, nothing else."""

    run_hash: str
    round: int
    code: ErrorCode


Request: TypeAlias = TrainRequest | EvaluateRequest
Reply: TypeAlias = TrainReply | EvaluateReply | Refusal


def digest_of(parts: Parts) -> str:
    """SHA-256 (hex) that names parts: of one part its own; of several that of their hashes, by name."""
    digests = {name: hashlib.sha256(part).hexdigest() for name, part in sorted(parts.items())}
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{digest} {name}\n" for name, digest in digests.items()).encode()).hexdigest()


def known_as(request: Request, digest: str) -> Request:
    """The request, whose parts were hashed by whoever hands it over within one side; they are not hashed again."""
    vars(request)["sha256"] = digest
    return request


def request_to_frame(request: Request) -> Frame:
    """Encode a request."""
    head = {"run-hash": request.run_hash, "round": request.round}
    if isinstance(request, EvaluateRequest):
        return Frame({"kind": "evaluate", **head, "phase": request.phase}, request.parts)
    return Frame({"kind": "train", **head}, request.parts)


def request_from_frame(frame: Frame) -> Request:
    """Decode a request.

    Raises:
        UpdateError: a value is missing or of the wrong type, or there is no part.
    """
    header = frame.header
    run_hash, round_ = _text(header, "run-hash"), _integer(header, "round")
    match _text(header, "kind"):
        case "train":
            return TrainRequest(run_hash, round_, _parts(frame))
        case "evaluate":
            return EvaluateRequest(run_hash, round_, _phase(header), _parts(frame))
    raise UpdateError("the request is of an unknown kind; expected train or evaluate", ErrorCode.BAD_REQUEST)


def reply_to_frame(reply: Reply) -> Frame:
    """Encode a reply."""
    head = {"run-hash": reply.run_hash, "round": reply.round}
    match reply:
        case Refusal():
            return Frame({"kind": "refusal", **head, "code": str(reply.code)})
        case TrainReply():
            about = {"patients": reply.patients, "metrics": dict(reply.metrics)}
            return Frame({"kind": "train", **head, **about}, reply.parts)
        case EvaluateReply():
            about = {"patients": reply.patients, "metrics": dict(reply.metrics)}
            return Frame({"kind": "evaluate", **head, "phase": reply.phase, **about})


def reply_from_frame(frame: Frame) -> Reply:
    """Decode a reply.

    Raises:
        UpdateError: a value is missing or of the wrong type, a code is not on the list, or there are parts where there
            must be none, or none where there must be some.
    """
    header = frame.header
    run_hash, round_, kind = _text(header, "run-hash"), _integer(header, "round"), _text(header, "kind")
    if kind != "train" and frame.parts:
        raise UpdateError("a reply that is no update carries parts", ErrorCode.BAD_REQUEST)
    if kind == "refusal":
        try:
            return Refusal(run_hash, round_, ErrorCode(_text(header, "code")))
        except ValueError as error:
            raise UpdateError(
                "the reply carries an error code that is not on the list", ErrorCode.BAD_REQUEST
            ) from error
    patients, metrics = _integer(header, "patients"), _metrics(header)
    match kind:
        case "train":
            return TrainReply(run_hash, round_, _parts(frame), patients, metrics)
        case "evaluate":
            return EvaluateReply(run_hash, round_, _phase(header), patients, metrics)
    raise UpdateError("the reply is of an unknown kind; expected train, evaluate or refusal", ErrorCode.BAD_REQUEST)


def _parts(frame: Frame) -> Parts:
    if not frame.parts:
        raise UpdateError("the message carries no part: expected a model as safetensors bytes")
    return frame.parts


def _text(header: Mapping[str, Any], key: str) -> str:
    value = header.get(key)
    if not isinstance(value, str):
        raise UpdateError(f"the message's {key} must be text", ErrorCode.BAD_REQUEST)
    return value


def _integer(header: Mapping[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value < _MOST:
        raise UpdateError(f"the message's {key} must be an integer in [0, 2^31)", ErrorCode.BAD_COUNT)
    return value


def _phase(header: Mapping[str, Any]) -> Phase:
    match header.get("phase"):
        case "validation":
            return "validation"
        case "test":
            return "test"
    raise UpdateError("the message's phase must be validation or test", ErrorCode.BAD_REQUEST)


def _metrics(header: Mapping[str, Any]) -> dict[str, float]:
    metrics = header.get("metrics")
    if not isinstance(metrics, dict):
        raise UpdateError("the reply has no table of metrics", ErrorCode.BAD_REQUEST)
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise UpdateError("a metric of the reply is not one finite number", ErrorCode.NOT_FINITE)
        values[name] = float(value)
    return values


__all__ = [
    "EvaluateReply",
    "EvaluateRequest",
    "Parts",
    "Phase",
    "Refusal",
    "Reply",
    "Request",
    "TrainReply",
    "TrainRequest",
    "digest_of",
    "known_as",
    "reply_from_frame",
    "reply_to_frame",
    "request_from_frame",
    "request_to_frame",
]
