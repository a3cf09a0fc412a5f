"""The one seam between our typed requests and replies and Flower's records.

The model travels as ONE uint8 array holding safetensors bytes: a SuperLink request costs 15-20 ms of CPU and
every array is two of them, so 24 separate tensors cost seconds per round (measured, see docs/adr).
String keys of records live here and nowhere else.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.audit.entries import COUNT_STEP, SMALLEST_COUNT, bucketed
from common.errors import ErrorCode, UpdateError

Phase = Literal["validation", "test"]

_MODEL = "model"
_WEIGHTS = "safetensors"
_HEAD = "head"
_METRICS = "metrics"


@dataclass(frozen=True)
class TrainRequest:
    """Train from these weights for one round."""

    run_hash: str  # SHA-256 of the RunConfig, hex
    round: int  # from 1
    weights: bytes  # safetensors


@dataclass(frozen=True)
class EvaluateRequest:
    """Evaluate these weights on the site's held-out patients."""

    run_hash: str
    round: int
    phase: Phase
    weights: bytes


@dataclass(frozen=True)
class TrainReply:
    """A site's update. `patients` is bucketed, and 0 where the run weights sites equally: it then stays at the site."""

    run_hash: str
    round: int
    weights: bytes
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


Request = TrainRequest | EvaluateRequest
Reply = TrainReply | EvaluateReply | Refusal


def request_to_record(request: Request) -> RecordDict:
    """Pack a request for Flower."""
    head: dict[str, str | int | float | bytes | bool] = {"run-hash": request.run_hash, "round": request.round}
    if isinstance(request, EvaluateRequest):
        head["phase"] = request.phase
    return RecordDict({_HEAD: ConfigRecord(dict(head)), _MODEL: _pack(request.weights)})


def request_from_record(record: RecordDict) -> Request:
    """Unpack a request.

    Raises:
        UpdateError: a record or key is missing or of the wrong type.
    """
    head = _head(record)
    run_hash, round_ = _text(head, "run-hash"), _integer(head, "round")
    weights = _unpack(record)
    if "phase" not in head:
        return TrainRequest(run_hash, round_, weights)
    return EvaluateRequest(run_hash, round_, _phase(head), weights)


def reply_to_record(reply: Reply) -> RecordDict:
    """Pack a reply for Flower."""
    head: dict[str, str | int | float | bytes | bool] = {"run-hash": reply.run_hash, "round": reply.round}
    record = RecordDict()
    match reply:
        case Refusal():
            head |= {"kind": "refusal", "code": str(reply.code)}
        case TrainReply():
            head |= {"kind": "train", "patients": reply.patients}
            record[_MODEL] = _pack(reply.weights)
        case EvaluateReply():
            head |= {"kind": "evaluate", "patients": reply.patients, "phase": reply.phase}
    if not isinstance(reply, Refusal):
        record[_METRICS] = MetricRecord(dict(reply.metrics))
    record[_HEAD] = ConfigRecord(dict(head))
    return record


def reply_from_record(record: RecordDict) -> Reply:
    """Unpack a reply.

    Raises:
        UpdateError: a record or key is missing, of the wrong type, or a metric is not a finite number.
    """
    head = _head(record)
    run_hash, round_, kind = _text(head, "run-hash"), _integer(head, "round"), _text(head, "kind")
    if kind == "refusal":
        try:
            return Refusal(run_hash, round_, ErrorCode(_text(head, "code")))
        except ValueError as error:
            raise UpdateError(
                "the reply carries an error code that is not on the list", ErrorCode.BAD_REQUEST
            ) from error
    patients, metrics = _integer(head, "patients"), _metrics(record)
    if kind == "train":
        return TrainReply(run_hash, round_, _unpack(record), patients, metrics)
    if kind == "evaluate":
        return EvaluateReply(run_hash, round_, _phase(head), patients, metrics)
    raise UpdateError("the reply is of an unknown kind; expected train, evaluate or refusal", ErrorCode.BAD_REQUEST)


def _pack(weights: bytes) -> ArrayRecord:
    array = Array(dtype="uint8", shape=(len(weights),), stype=_WEIGHTS, data=weights)
    return ArrayRecord({_WEIGHTS: array})


def _unpack(record: RecordDict) -> bytes:
    arrays = record.get(_MODEL)
    if not isinstance(arrays, ArrayRecord) or list(arrays) != [_WEIGHTS]:
        raise UpdateError("the message must carry exactly one array, the model as safetensors bytes")
    array = arrays[_WEIGHTS]
    if array.stype != _WEIGHTS or array.dtype != "uint8" or tuple(array.shape) != (len(array.data),):
        raise UpdateError("the model array must be uint8 safetensors bytes of the stated length")
    return array.data


def _head(record: RecordDict) -> ConfigRecord:
    head = record.get(_HEAD)
    if not isinstance(head, ConfigRecord):
        raise UpdateError("the message has no head record", ErrorCode.BAD_REQUEST)
    return head


def _text(head: ConfigRecord, key: str) -> str:
    value = head.get(key)
    if not isinstance(value, str):
        raise UpdateError(f"the message's {key} must be text", ErrorCode.BAD_REQUEST)
    return value


def _integer(head: ConfigRecord, key: str) -> int:
    value = head.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise UpdateError(f"the message's {key} must be an integer in [0, 2^31)", ErrorCode.BAD_COUNT)
    return value


def _phase(head: ConfigRecord) -> Phase:
    match _text(head, "phase"):
        case "validation":
            return "validation"
        case "test":
            return "test"
        case _:
            raise UpdateError("the message's phase must be validation or test", ErrorCode.BAD_REQUEST)


def _metrics(record: RecordDict) -> dict[str, float]:
    metrics = record.get(_METRICS)
    if not isinstance(metrics, MetricRecord):
        raise UpdateError("the reply has no metrics record", ErrorCode.BAD_REQUEST)
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, list) or not math.isfinite(value):
            raise UpdateError(f"metric {name} must be one finite number", ErrorCode.NOT_FINITE)
        values[name] = float(value)
    return values


__all__ = [
    "COUNT_STEP",
    "SMALLEST_COUNT",
    "EvaluateReply",
    "EvaluateRequest",
    "Phase",
    "Refusal",
    "Reply",
    "Request",
    "TrainReply",
    "TrainRequest",
    "bucketed",
    "reply_from_record",
    "reply_to_record",
    "request_from_record",
    "request_to_record",
]
