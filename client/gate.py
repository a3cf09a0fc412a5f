"""The exit gate: the one place where something leaves the hospital.

Whatever the worker hands over, only known parts are rebuilt from it: the request's own tensors, finite, with the
request's names, shapes and types; scalars on the allow-list, rounded; counts; codes from the closed list. Run
hash, round and phase are the request's. Free text, identifiers, paths, extra tensors, file metadata and padding
have no way through, because nothing carries them. Runs in the agent: numpy only, no torch.

What comes in is looked at too: weights made to copy patients' images into the update (rows that are all equal, or
constant) are refused before they reach the data. Source: Fowl et al., "Robbing the Fed", ICLR 2022.
"""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.config import METRICS, RunConfig
from common.errors import ErrorCode, UpdateError
from common.records import (
    EvaluateReply,
    EvaluateRequest,
    Refusal,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
    bucketed,
)

# Not about patients, or public by the run's document.
_ABOUT_THE_ROUND = frozenset({"steps", "epsilon", "delta"})
SIGNIFICANT_DIGITS = 6
MOST_PATIENTS = 10_000_000

_log = logging.getLogger(__name__)


def release(reply: Reply, request: Request, run: RunConfig, allowed: Sequence[str] = METRICS) -> Reply:
    """Rebuild a reply from the parts that may leave.

    Args:
        reply: the worker's.
        request: what the coordinator asked.
        run: the approved run.
        allowed: metrics that the hospital's policy lets go.

    Raises:
        UpdateError: the reply does not answer the request, or carries what must not leave.
    """
    run_hash, round_ = request.run_hash, request.round
    match reply, request:
        case Refusal(), _:
            return Refusal(run_hash, round_, ErrorCode(reply.code))
        case TrainReply(), TrainRequest():
            weights = _same_tensors(reply.weights, request.weights)
            metrics = _scalars(reply.metrics, train_metrics(run, allowed))
            return TrainReply(run_hash, round_, weights, _count(reply.patients, run), metrics)
        case EvaluateReply(), EvaluateRequest():
            scores = _scalars(reply.metrics, score_names(run, allowed))
            return EvaluateReply(run_hash, round_, request.phase, _count(reply.patients, run), scores)
    raise UpdateError("the worker's reply does not answer the request; nothing is sent", ErrorCode.INTERNAL)


def train_metrics(run: RunConfig, allowed: Sequence[str] = METRICS) -> frozenset[str]:
    """Names of the scalars that leave with an update.

    Under differential privacy neither the loss, which no noise covers, nor the time, which tells how many patients
    were drawn.
    """
    return _ABOUT_THE_ROUND if run.privacy else _ABOUT_THE_ROUND | {"seconds"} | ({"train-loss"} & set(allowed))


def score_names(run: RunConfig, allowed: Sequence[str] = METRICS) -> frozenset[str]:
    """Names of the scalars that leave with an evaluation."""
    scores = set(allowed) - {"train-loss"}
    return frozenset(scores | ({f"dice-{label}" for label in run.data.classes} if "dice" in scores else set()))


def check_received(weights: bytes, largest: float) -> dict[str, tuple[int, ...]]:
    """Look at the weights that a coordinator wants trained, before the data see them.

    Args:
        weights: safetensors, as received.
        largest: absolute value that a weight may have.

    Returns:
        Shape of each tensor, by name.

    Raises:
        UpdateError: not safetensors, not finite, too large, or made to copy what they see.
    """
    tensors = _load(weights)
    for tensor in tensors.values():
        if not np.isfinite(tensor).all():
            raise UpdateError("the model received has values that are not finite", ErrorCode.NOT_FINITE)
        if tensor.size and np.abs(tensor).max() > largest:
            raise UpdateError(
                f"the model received has weights above max-weight {largest:g} in policy.toml",
                ErrorCode.SUSPICIOUS_MODEL,
            )
        if _copies(tensor):
            raise UpdateError(
                "the model received has rows that are equal or constant: such weights copy images into the update",
                ErrorCode.SUSPICIOUS_MODEL,
            )
    return {name: tensor.shape for name, tensor in tensors.items()}


def _same_tensors(weights: bytes, template: bytes) -> bytes:
    """Repack `weights` if they are exactly the tensors of `template`, and finite."""
    tensors, expected = _load(weights), _load(template)
    if _schema(tensors) != _schema(expected):
        raise UpdateError("the update's tensors are not those of the request, by name, shape or type; nothing is sent")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise UpdateError("the update has values that are not finite; lower the learning rate", ErrorCode.NOT_FINITE)
    return save(tensors)


def _copies(tensor: np.ndarray) -> bool:
    """Whether filters repeat each other or are flat. Trained or random ones never are; vectors are left alone."""
    if tensor.ndim < 2 or tensor[0].size < 2:
        return False
    rows = tensor.reshape(len(tensor), -1)
    flat = (rows == rows[:, :1]).all(axis=1).any()
    return bool(flat) or len(np.unique(rows, axis=0)) < len(rows)


def _load(weights: bytes) -> dict[str, np.ndarray]:
    try:
        return load(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise UpdateError("the model is not safetensors with plain number types") from error


def _schema(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tensor.shape, tensor.dtype.str) for name, tensor in tensors.items()}


def _count(patients: int, run: RunConfig) -> int:
    """A bucketed count, or 0 where the run weights sites equally: then it stays here."""
    if run.weighting == "equal":
        return 0
    if not 0 < patients <= MOST_PATIENTS or patients != bucketed(patients):
        raise UpdateError(f"{patients} is no bucketed count of patients; nothing is sent", ErrorCode.BAD_COUNT)
    return patients


def _scalars(metrics: Mapping[str, float], allowed: frozenset[str]) -> dict[str, float]:
    """Allowed finite metrics, rounded, in a fixed order."""
    kept = {name: metrics[name] for name in sorted(allowed & metrics.keys()) if math.isfinite(metrics[name])}
    if len(kept) < len(metrics):
        _log.info("%d of %d metrics stay here: not on the list or not finite", len(metrics) - len(kept), len(metrics))
    return {name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for name, value in kept.items()}
