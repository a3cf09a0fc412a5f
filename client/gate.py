"""The exit gate: the one place where something leaves the hospital.

Whatever the worker hands over, only known parts are rebuilt from it: the request's own tensors, finite, with the
request's names, shapes and types; scalars on the allow-list, rounded; counts; codes from the closed list. Run
hash, round and phase are the request's. Free text, identifiers, paths, extra tensors, file metadata and padding
have no way through, because nothing carries them. Runs in the agent: numpy only, no torch.
"""

import logging
import math
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.config import RunConfig
from common.errors import ErrorCode, UpdateError
from common.records import EvaluateReply, EvaluateRequest, Refusal, Reply, Request, TrainReply, TrainRequest

TRAIN_METRICS = frozenset({"train-loss", "steps", "seconds", "epsilon", "delta"})
# And dice-<class> for each class of the run.
SCORES = frozenset({"dice", "foreground-dice", "iou", "sensitivity", "specificity", "precision", "recall"})
SIGNIFICANT_DIGITS = 6
MOST_PATIENTS = 10_000_000

_log = logging.getLogger(__name__)


def release(reply: Reply, request: Request, run: RunConfig) -> Reply:
    """Rebuild a reply from the parts that may leave.

    Args:
        reply: the worker's.
        request: what the coordinator asked.
        run: the approved run.

    Raises:
        UpdateError: the reply does not answer the request, or carries what must not leave.
    """
    run_hash, round_ = request.run_hash, request.round
    match reply, request:
        case Refusal(), _:
            return Refusal(run_hash, round_, ErrorCode(reply.code))
        case TrainReply(), TrainRequest():
            # The loss is computed from the patients without noise: it would leak what the noise hides.
            allowed = TRAIN_METRICS - {"train-loss"} if run.privacy else TRAIN_METRICS
            weights = _same_tensors(reply.weights, request.weights)
            return TrainReply(run_hash, round_, weights, _count(reply.patients, run), _scalars(reply.metrics, allowed))
        case EvaluateReply(), EvaluateRequest():
            allowed = SCORES | {f"dice-{label}" for label in run.data.classes}
            scores = _scalars(reply.metrics, allowed)
            return EvaluateReply(run_hash, round_, request.phase, _count(reply.patients, run), scores)
    raise UpdateError("the worker's reply does not answer the request; nothing is sent", ErrorCode.INTERNAL)


def parameter_count(weights: bytes) -> int:
    """Number of values in a packed model.

    Raises:
        UpdateError: not safetensors.
    """
    return sum(tensor.size for tensor in _load(weights).values())


def _same_tensors(weights: bytes, template: bytes) -> bytes:
    """Repack `weights` if they are exactly the tensors of `template`, and finite."""
    tensors, expected = _load(weights), _load(template)
    if _schema(tensors) != _schema(expected):
        raise UpdateError("the update's tensors are not those of the request, by name, shape or type; nothing is sent")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise UpdateError("the update has values that are not finite; lower the learning rate", ErrorCode.NOT_FINITE)
    return save(tensors)


def _load(weights: bytes) -> dict[str, np.ndarray]:
    try:
        return load(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise UpdateError("the model is not safetensors with plain number types") from error


def _schema(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tensor.shape, tensor.dtype.str) for name, tensor in tensors.items()}


def _count(patients: int, run: RunConfig) -> int:
    """A true count, or 0 where the run weights sites equally: then it stays here."""
    if not 0 <= patients <= MOST_PATIENTS:
        raise UpdateError(f"a count of {patients} patients cannot be true; nothing is sent", ErrorCode.BAD_COUNT)
    return patients if run.weighting == "patients" else 0


def _scalars(metrics: Mapping[str, float], allowed: frozenset[str]) -> dict[str, float]:
    """Allowed finite metrics, rounded, in a fixed order."""
    kept = {name: metrics[name] for name in sorted(allowed & metrics.keys()) if math.isfinite(metrics[name])}
    if len(kept) < len(metrics):
        _log.info("%d of %d metrics stay here: not on the list or not finite", len(metrics) - len(kept), len(metrics))
    return {name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for name, value in kept.items()}
