"""The exit gate: the one place where something leaves the hospital.

Whatever the worker hands over, only what is known leaves: the request's own parts and tensors, finite, with the
request's names, shapes and types, packed anew unless they come under the request's own head to the byte; where the run
wants fewer bits the moves of its weights, under the one head that goes with them (`common.wire.encoding`); scalars on
the allow-list, rounded; counts; codes from the closed list. Run hash, round and phase are the request's. Free text,
identifiers, paths, extra tensors, file metadata and padding have no way through, because nothing carries them. Runs in
the agent: numpy only, no torch.

What comes in is looked at too, before it costs anything: it has the tensors of the approved run's model and no others,
and weights made to copy patients' images into the update (rows that are all equal, or constant) are refused before
they reach the data. Source: Fowl et al., "Robbing the Fed", ICLR 2022.

Once a private round is charged, no code tells what a patient's data made the program do: see `after_charge`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.home.offer import Shapes
from common.audit.entries import SMALLEST_COUNT, bucketed
from common.config import METRICS, TRAIN_LOSS, RunConfig, Scores
from common.config.statistics import (
    CLASS_SHARE,
    COUNTED,
    is_statistic,
    lowest_and_highest,
    rounded,
    statistic_names,
)
from common.errors import ErrorCode, UpdateError
from common.privacy.guarantee import uncovered
from common.privacy.scores import NOISE_NAMES, SCORE_NOISE
from common.strategies import of_personal
from common.tasks import of_local
from common.wire.encoding import check_encoded
from common.wire.frames import Buffer
from common.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    Parts,
    Refusal,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
)

# Not about patients, or public by the run's document.
_ABOUT_THE_ROUND = frozenset({"steps", "epsilon", "delta"})
# The codes that may leave before a round is charged, and with an evaluation; none of them is of a single study.
BEFORE_CHARGE = frozenset(
    {
        ErrorCode.NOT_APPROVED,
        ErrorCode.POLICY_REFUSED,
        ErrorCode.OUTSIDE_HOURS,
        ErrorCode.RATE_LIMITED,
        ErrorCode.BUDGET_SPENT,
        ErrorCode.LEDGER_OUTDATED,
        ErrorCode.ROUND_REPEATED,
        ErrorCode.RECEIPT_MISSING,
        ErrorCode.AUDIT_CONFLICT,
        ErrorCode.NO_DATA,
        ErrorCode.TOO_FEW_PATIENTS,
        ErrorCode.BAD_REQUEST,
        ErrorCode.NOT_FINITE,
        ErrorCode.SUSPICIOUS_MODEL,
        ErrorCode.WRONG_TENSORS,
        ErrorCode.BAD_COUNT,
        ErrorCode.WRONG_RUN,
        ErrorCode.DEADLINE,
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.DISK_FULL,
        ErrorCode.WORKER_FAILED,
        ErrorCode.INTERNAL,
    }
)
# And when a private round is charged: the machine's. What a patient's data bring about is none.
AFTER_CHARGE = frozenset({ErrorCode.WORKER_FAILED, ErrorCode.DEADLINE, ErrorCode.DISK_FULL})
SIGNIFICANT_DIGITS = 6
MOST_PATIENTS = 10_000_000
_HALF_A_STEP = 0.005  # of a share with two digits

_FLOAT32 = np.dtype(np.float32).str
_LENGTH_BYTES = 8

_log = logging.getLogger(__name__)


def release(
    reply: Reply, request: Request, run: RunConfig, allowed: Sequence[str] = METRICS, scores: Scores = "noised"
) -> Reply:
    """Rebuild a reply from the parts that may leave.

    Args:
        reply: the worker's.
        request: what the coordinator asked.
        run: the approved run.
        allowed: metrics that the hospital's policy lets go.
        scores: how it lets scores go.

    Raises:
        UpdateError: the reply does not answer the request, or carries what must not leave.
    """
    run_hash, round_ = request.run_hash, request.round
    match reply, request:
        case Refusal(), TrainRequest():
            return Refusal(run_hash, round_, after_charge(ErrorCode(reply.code), run))
        case Refusal(), EvaluateRequest():
            return Refusal(run_hash, round_, after_scoring(ErrorCode(reply.code), run))
        case TrainReply(), TrainRequest():
            check_covered(run)
            parts = _rebuilt(reply.parts, run, request.parts[run.strategy.MODEL])
            metrics = _scalars(_counted(reply.metrics), train_metrics(run, allowed))
            return TrainReply(run_hash, round_, parts, _count(reply.patients, run), metrics)
        case EvaluateReply(), EvaluateRequest():
            if _scores_are_noised(run, scores) and not reply.metrics.get(SCORE_NOISE, 0.0) > 0:
                raise UpdateError(
                    "the scores have no noise, and the policy wants it; nothing is sent", ErrorCode.INTERNAL
                )
            # An answer that was noised when it was first given keeps its noise, whatever the policy says since.
            how = "noised" if SCORE_NOISE in reply.metrics and scores == "exact" else scores
            metrics = _scalars(reply.metrics, score_names(run, allowed, how))
            return EvaluateReply(run_hash, round_, request.phase, _count(reply.patients, run), metrics)
    raise UpdateError("the worker's reply does not answer the request; nothing is sent", ErrorCode.INTERNAL)


def shorten(reply: TrainReply, run: RunConfig, allowed: Sequence[str] = METRICS) -> TrainReply:
    """An update that passed this gate before, without the scalars that the policy has stopped since."""
    return replace(reply, metrics=_scalars(reply.metrics, train_metrics(run, allowed)))


def train_metrics(run: RunConfig, allowed: Sequence[str] = METRICS) -> frozenset[str]:
    """Names of the scalars that leave with an update.

    Under differential privacy neither the loss and the statistics of the training patients, which no noise covers, nor
    the time, which tells how many patients were drawn.
    """
    if run.privacy is not None:
        return _ABOUT_THE_ROUND
    return _ABOUT_THE_ROUND | {"seconds"} | ({TRAIN_LOSS} & set(allowed)) | statistic_names(run, allowed)


def score_names(run: RunConfig, allowed: Sequence[str] = METRICS, scores: Scores = "noised") -> frozenset[str]:
    """Names of the scalars that leave with an evaluation; noised ones are the headline's alone, with their noise."""
    task = run.task
    names = set() if scores == "none" else set(allowed) & set(task.SCORES)
    by_class = (
        {task.of_class(label) for label in run.data.classes} if task.BY_CLASS and task.headline in names else set()
    )
    if _scores_are_noised(run, scores):
        return frozenset({task.headline, *by_class, *NOISE_NAMES} if by_class else ())
    return frozenset(names | by_class | (set() if scores == "none" else _of_own_models(run) & set(allowed)))


def _of_own_models(run: RunConfig) -> set[str]:
    """Scores of models that a site has for itself, each by its own name in the policy.

    Of a model that private steps did not make no score leaves a private run: it would tell of who trained it.
    """
    if run.privacy is not None:
        return set()
    personal = {of_personal(run.task.headline)} if run.strategy.PERSONAL else set()
    return personal | ({of_local(run.task.headline)} if run.federation.cross_site else set())


def after_charge(code: ErrorCode, run: RunConfig) -> ErrorCode:
    """The code that may leave for a training that failed after its charge.

    Weights can be made so that one patient's image alone brings about an error: a code would tell, without noise, that
    they are there. So all of them look like a worker that died; the reason stays in the logs.
    """
    return code if run.privacy is None or code in AFTER_CHARGE else ErrorCode.WORKER_FAILED


def after_scoring(code: ErrorCode, run: RunConfig) -> ErrorCode:
    """The code that may leave for an evaluation: likewise, beside what the request or the counts bring about."""
    by_data = code not in BEFORE_CHARGE or code in (ErrorCode.NOT_FINITE, ErrorCode.OUT_OF_MEMORY, ErrorCode.INTERNAL)
    return ErrorCode.WORKER_FAILED if run.privacy is not None and by_data else before_charge(code)


def before_charge(code: ErrorCode) -> ErrorCode:
    """The code that may leave while nothing is charged: how a single study is stays here."""
    return code if code in BEFORE_CHARGE else ErrorCode.NO_DATA


def check_request(
    request: Request, run: RunConfig, parts: Mapping[str, Shapes], training_patients: int, largest: float
) -> None:
    """Refuse, before a round is charged, all that would be refused after it.

    Args:
        request: as received.
        run: the approved one.
        parts: what leaves with an update of the run; each part that comes has the tensors of its weights.
        training_patients: of this site; not looked at with privacy.
        largest: absolute value that a weight may have.

    Raises:
        UpdateError: not the parts of the run, not the start that it names, not finite, too large, or made to copy what
            it sees; NO_DATA, there is nobody to train on.
    """
    # With privacy a refusal would say without noise that one patient, picked out by seed and fractions, is not there.
    if isinstance(request, TrainRequest) and run.privacy is None and not training_patients:
        raise UpdateError("no patient is left for training. Add studies with labels.", ErrorCode.NO_DATA)
    check_covered(run)
    wanted = run.strategy.down if isinstance(request, TrainRequest) else (run.strategy.MODEL,)
    if request.parts.keys() != set(wanted):
        raise UpdateError(
            f"the message's {len(request.parts)} parts are not the {len(wanted)} of the approved run, by name. Nothing "
            "is charged. The coordinator must send the parts of the run."
        )
    check_start(request, run)
    for name, part in request.parts.items():
        # Only weights can be made to copy what they see; another part may well be all zeros.
        check_received(part, largest, parts[run.strategy.MODEL], weights=name == run.strategy.MODEL)


def check_covered(run: RunConfig) -> None:
    """No part of a private run leaves, nor is one trained for, that its guarantee does not name.

    Raises:
        UpdateError: POLICY_REFUSED, the run's strategy goes beyond its guarantee.
    """
    if (beyond := uncovered(run)) is not None:
        raise UpdateError(
            f"the run's strategy {run.strategy.kind} {beyond}, which no guarantee covers; a private run may not",
            ErrorCode.POLICY_REFUSED,
        )


def check_start(request: Request, run: RunConfig) -> None:
    """What was approved names the weights of the first round.

    Raises:
        UpdateError: WRONG_RUN, they are others.
    """
    if run.initial is None or not isinstance(request, TrainRequest) or request.round != 1:
        return
    if run.strategy.MODEL not in request.parts:
        raise UpdateError("the message has no weights")
    if request.sha256_of(run.strategy.MODEL) != run.initial.sha256:
        raise UpdateError("round 1 does not start from the weights that the approved run names", ErrorCode.WRONG_RUN)


def check_received(part: Buffer, largest: float, tensors: Shapes | None = None, *, weights: bool = True) -> None:
    """Look at a part that a coordinator wants trained, before the data see it.

    Args:
        part: safetensors, as received.
        largest: absolute value that a weight may have.
        tensors: name -> shape of what is expected, all float32; None: anything.
        weights: whether it is the model's weights.

    Raises:
        UpdateError: not safetensors, other tensors, not finite, too large, or made to copy what they see.
    """
    found = _load(part)
    if tensors is not None and _schema(found) != {name: (tuple(one), _FLOAT32) for name, one in tensors.items()}:
        raise UpdateError(
            f"the message's {len(found)} tensors are not the {len(tensors)} of the approved run's model, by name, "
            "shape or type (float32). Nothing is charged. The coordinator must send the model of the run."
        )
    for tensor in found.values():
        if not np.isfinite(tensor).all():
            raise UpdateError("the model received has values that are not finite", ErrorCode.NOT_FINITE)
        if tensor.size and np.abs(tensor).max() > largest:
            raise UpdateError(
                f"the model received has weights above max-weight {largest:g} in policy.toml",
                ErrorCode.SUSPICIOUS_MODEL,
            )
        if weights and _copies(tensor):
            raise UpdateError(
                "the model received has rows that are equal or constant: such weights copy images into the update",
                ErrorCode.SUSPICIOUS_MODEL,
            )


def _scores_are_noised(run: RunConfig, scores: Scores) -> bool:
    return run.privacy is not None and scores == "noised"


def _rebuilt(parts: Parts, run: RunConfig, weights: Buffer) -> Parts:
    """The parts of an update, if they are those of the run, each with the tensors of the model."""
    wanted, encoding = run.strategy.up, run.federation.update_precision
    if parts.keys() != set(wanted):
        raise UpdateError("the update's parts are not those of the run, by name; nothing is sent")
    if encoding == "float32":
        return {name: _same_tensors(parts[name], weights) for name in wanted}
    model = run.strategy.MODEL
    # Under its one head, to the byte, there is nothing in it but what each weight moved.
    check_encoded(parts[model], {name: one.shape for name, one in _load(weights).items()}, encoding)
    return {name: parts[name] if name == model else _same_tensors(parts[name], weights) for name in wanted}


def _same_tensors(part: Buffer, template: Buffer) -> Buffer:
    """The part, if it is exactly the tensors of `template`, which has passed this gate, and finite.

    safetensors is a head and the values, without a gap. With the template's own head nothing but values is in the part;
    with any other it is packed anew.
    """
    tensors = _load(part)
    same = _head(part) == _head(template)
    if not same and _schema(tensors) != _schema(_load(template)):
        raise UpdateError("the update's tensors are not those of the request, by name, shape or type; nothing is sent")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise UpdateError("the update has values that are not finite; lower the learning rate", ErrorCode.NOT_FINITE)
    return part if same else save(tensors)


def _head(part: Buffer) -> Buffer:
    """Names, types, shapes and places, as they stand in safetensors: 8 bytes of length (little-endian), then JSON."""
    return part[: _LENGTH_BYTES + int.from_bytes(part[:_LENGTH_BYTES], "little")]


def _copies(tensor: np.ndarray) -> bool:
    """Whether filters repeat each other or are flat. Trained or random ones never are; vectors are left alone."""
    if tensor.ndim < 2 or tensor[0].size < 2:
        return False
    rows = tensor.reshape(len(tensor), -1)
    flat = (rows == rows[:, :1]).all(axis=1).any()
    # As bytes, which is a hundred times faster than numpy's unique; 0.0 added, so that -0.0 is 0.0 there too.
    return bool(flat) or len({row.tobytes() for row in rows + 0.0}) < len(rows)


def _load(weights: Buffer) -> dict[str, np.ndarray]:
    try:
        return load(bytes(weights))
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


def _counted(metrics: Mapping[str, float]) -> dict[str, float]:
    """The scalars of an update, without statistics that are of too few patients, or nearer to none or all than ten."""
    counted = metrics.get(COUNTED, 0.0)
    whole = 0 < counted <= MOST_PATIENTS and bucketed(int(counted)) == counted
    near = SMALLEST_COUNT / counted - _HALF_A_STEP if whole else 1.0

    def may(name: str, value: float) -> bool:
        if not is_statistic(name):
            return True
        least, most = (near, 1 - near) if name.startswith(f"{CLASS_SHARE}-") else lowest_and_highest(name)
        return whole and least <= value <= most

    return {name: value for name, value in metrics.items() if may(name, value)}


def _scalars(metrics: Mapping[str, float], allowed: frozenset[str]) -> dict[str, float]:
    """Allowed finite metrics, rounded, in a fixed order."""
    kept = {name: metrics[name] for name in sorted(allowed & metrics.keys()) if math.isfinite(metrics[name])}
    if len(kept) < len(metrics):
        _log.info("%d of %d metrics stay here: not on the list or not finite", len(metrics) - len(kept), len(metrics))
    return {
        name: rounded(value, name)
        if is_statistic(name) and name != COUNTED
        else float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        for name, value in kept.items()
    }
