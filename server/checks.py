"""May this update enter the average? Pure functions; each refusal carries the code that names it.

An average believes whatever it is given: a NaN spreads to every weight, a (4, 1) array broadcasts into (4, 4), a
count of 10^9 outvotes every other hospital. So nothing enters that is not the run's own tensors, name by name, shape by
shape, finite, near the model that was sent, and with a count a hospital can have.
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from common.checkpoint import unpack
from common.config import RunConfig
from common.errors import ErrorCode, UpdateError
from common.records import EvaluateReply, Phase, TrainReply

# More patients than the largest hospital sees with one disease; a larger count would drown the others.
MAX_PATIENTS = 1_000_000
MAX_METRICS = 256
_METRIC_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")


def check_update(
    reply: TrainReply, run: RunConfig, run_hash: str, round_: int, global_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The update's tensors, if it may enter the average.

    Args:
        reply: a site's answer.
        run: the run both sides agreed on.
        run_hash: its SHA-256.
        round_: the round that was asked for.
        global_state: the weights that were sent; the update must have the same names, shapes and dtypes.

    Raises:
        UpdateError: with the code of the first rule broken.
    """
    _check_round(reply.run_hash, reply.round, run_hash, round_)
    _check_metrics(reply.metrics)
    if run.weighting == "patients" and not 1 <= reply.patients <= MAX_PATIENTS:
        raise UpdateError(
            f"the reply counts {reply.patients} patients; expected 1 to {MAX_PATIENTS}, as they weight the average",
            ErrorCode.BAD_COUNT,
        )
    if run.privacy is not None and not (
        reply.metrics.get("epsilon", -1.0) >= 0 and 0 < reply.metrics.get("delta", 0) < 1
    ):
        raise UpdateError("the reply does not state the epsilon and delta it has spent", ErrorCode.BAD_REQUEST)
    state = unpack(reply.weights)
    _check_tensors(state, global_state)
    distance = _distance(state, global_state)
    if not math.isfinite(distance):
        raise UpdateError("the update holds NaN or infinite values", ErrorCode.NOT_FINITE)
    if distance > run.federation.max_update_norm:
        raise UpdateError(
            f"the update lies {distance:.3g} (L2) from the global model, over max-update-norm = "
            f"{run.federation.max_update_norm:g}. Lower the learning rate, or raise the limit in run.toml.",
            ErrorCode.UPDATE_TOO_LARGE,
        )
    return state


def check_scores(reply: EvaluateReply, run_hash: str, round_: int, phase: Phase) -> None:
    """Refuse scores of another run, round or phase, or with a count no hospital has.

    Raises:
        UpdateError: with the code of the first rule broken.
    """
    _check_round(reply.run_hash, reply.round, run_hash, round_)
    if reply.phase != phase:
        raise UpdateError(f"the reply is for phase {reply.phase}, expected {phase}", ErrorCode.BAD_REQUEST)
    if reply.patients > MAX_PATIENTS:
        raise UpdateError(f"the reply counts {reply.patients} patients", ErrorCode.BAD_COUNT)
    _check_metrics(reply.metrics)


def _check_round(got_hash: str, got_round: int, run_hash: str, round_: int) -> None:
    if got_hash != run_hash:
        raise UpdateError("the reply belongs to another run", ErrorCode.WRONG_RUN)
    if got_round != round_:
        raise UpdateError(f"the reply is for round {got_round}, expected {round_}", ErrorCode.BAD_REQUEST)


def _check_metrics(metrics: Mapping[str, float]) -> None:
    # These names become keys of the coordinator's records and labels of its report.
    if len(metrics) > MAX_METRICS or not all(_METRIC_NAME.fullmatch(name) for name in metrics):
        raise UpdateError(
            f"expected at most {MAX_METRICS} metrics with names in kebab-case of up to 64 characters",
            ErrorCode.BAD_REQUEST,
        )
    if not all(math.isfinite(value) for value in metrics.values()):
        raise UpdateError("a metric is not a finite number", ErrorCode.NOT_FINITE)


def _check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if state.keys() != expected.keys():
        missing, extra = len(expected.keys() - state.keys()), len(state.keys() - expected.keys())
        raise UpdateError(
            f"the update lacks {missing} of the model's {len(expected)} tensors and has {extra} it does not know"
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
            raise UpdateError(
                f"tensor {name} is {tuple(state[name].shape)} {state[name].dtype}, "
                f"expected {tuple(tensor.shape)} {tensor.dtype}"
            )


def _distance(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    # In float64: squares of float32 values overflow at 1e19. NaN and infinity pass through, so one sum tests both.
    return math.sqrt(sum(float((state[name].double() - reference[name].double()).square().sum()) for name in reference))


__all__ = ["MAX_METRICS", "MAX_PATIENTS", "check_scores", "check_update"]
