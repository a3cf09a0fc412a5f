"""May this update enter the average? Pure functions; each refusal carries the code that names it.

An average believes whatever it is given: a NaN spreads to every weight, a (4, 1) array broadcasts into (4, 4), one
model of a hundred times the norm is the average. So nothing enters that is not the run's own tensors, name by name,
shape by shape, finite, with the frozen ones as they were, with a count a hospital can have and a price that fits the
run (`server.federation.price`), no farther from the model that was sent than the run's training can lead
(`server.federation.bounds`), and, once all are here, not far beyond the median of the round. How much what enters may
weigh is `server.federation.strategies.weighing`'s.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.audit.entries import SMALLEST_COUNT, bucketed
from common.config import RunConfig
from common.config.statistics import COUNTED, is_statistic, lowest_and_highest, rounded, statistic_names
from common.errors import ErrorCode, UpdateError
from common.learning.tensor_bytes import bytes_of, views_of
from common.text import counted
from common.wire.encoding import weights_of
from common.wire.messages import EvaluateReply, Parts, Phase, TrainReply
from server.federation.bounds import farthest, trained, work_of
from server.federation.events import ENTRIES, STEPS_MADE
from server.federation.price import MAX_PATIENTS, check_price, check_steps
from server.federation.strategies.blocks import distance as apart
from server.federation.strategies.blocks import is_finite, length

MAX_METRICS = 256
# An update so many times as far as the median one of its round, of three or more, is refused: see docs/run.md.
MEDIAN_FACTOR = 5.0
_FEWEST_FOR_A_MEDIAN = 3
# Of float32, in which a loss is taken. Sums over sites and patients of what is larger may be infinite, which the
# journal does not take: one site would end the run.
_LARGEST_METRIC = 3.4028235e38
_METRIC_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")


@dataclass(frozen=True)
class Update:
    """An update that may enter the average, as far as it can be judged by itself."""

    parts: Mapping[str, Mapping[str, Tensor]] = field(repr=False)  # as they lie in `packed`: nobody may change them
    distance: float  # L2, from the model that was sent
    limit: float  # of the distance, for this site in this round
    steps: int = 1
    work: float = 1.0  # that these are, as a share of a round's: see `server.federation.bounds.work_of`
    packed: Parts = field(default_factory=dict, repr=False)  # the reply's; the model's as float32, however it travelled

    @property
    def reach(self) -> float:
        """How much of what is possible it moved: comparable between sites, whose noise may differ."""
        return self.distance / self.limit

    @property
    def pull(self) -> float:
        """How far it would lie after a whole round's work."""
        return self.distance / self.work


def check_update(
    reply: TrainReply,
    run: RunConfig,
    run_hash: str,
    round_: int,
    global_state: Mapping[str, Tensor],
    *,
    earlier: Sequence[float] = (),
    start_norm: float | None = None,
) -> Update:
    """The update, if it may enter the average; `outliers` has the last word, when all are here.

    Args:
        reply: a site's answer.
        run: the run both sides agreed on.
        run_hash: its SHA-256.
        round_: the round that was asked for.
        global_state: the weights that were sent; the update must have the same names, shapes and dtypes.
        earlier: the deltas that the site stated with its updates of earlier rounds, under privacy.
        start_norm: L2 norm of the weights that were sent; None: it is computed.

    Raises:
        UpdateError: with the code of the first rule broken.
    """
    _check_round(reply.run_hash, reply.round, run_hash, round_)
    _check_metrics(reply.metrics)
    _check_statistics(reply.metrics, run)
    if run.weighting == "patients" and not 1 <= reply.patients <= MAX_PATIENTS:
        raise UpdateError(
            f"the reply counts {reply.patients} patients; expected 1 to {MAX_PATIENTS}, as they weight the average",
            ErrorCode.BAD_COUNT,
        )
    if run.privacy is not None:
        check_price(reply.metrics, run, earlier)
    steps = check_steps(reply.metrics, run)
    if reply.parts.keys() != set(run.strategy.up):
        raise UpdateError("the update's parts are not those of the run", ErrorCode.WRONG_TENSORS)
    packed = _in_float32(reply.parts, run, global_state)
    parts = {name: views_of(part) for name, part in packed.items()}
    for name, part in parts.items():
        _check_tensors(part, global_state)
        if name != run.strategy.MODEL and not is_finite(part):
            raise UpdateError("the update holds NaN or infinite values", ErrorCode.NOT_FINITE)
    state = parts[run.strategy.MODEL]
    distance = apart(state, global_state)  # NaN and infinity pass through, so one sum tests both
    if not math.isfinite(distance):
        raise UpdateError("the update holds NaN or infinite values", ErrorCode.NOT_FINITE)
    _, frozen = trained(run)
    if any(not torch.equal(state[name], global_state[name]) for name in frozen & global_state.keys()):
        raise UpdateError(
            f"the update changes weights that the run does not share (trainable = {run.training.trainable}, strategy "
            f"{run.strategy.kind})",
            ErrorCode.WRONG_TENSORS,
        )
    norm = length(global_state) if start_norm is None else start_norm
    reachable = farthest(run, round_, norm, delta=reply.metrics.get("delta"), made=steps)
    setting = run.federation.max_update_norm
    if distance > setting:
        raise UpdateError(
            f"the update lies {distance:.3g} (L2) from the global model, over max-update-norm = {setting:g}. "
            "Lower the learning rate, or raise the limit in run.toml.",
            ErrorCode.UPDATE_TOO_LARGE,
        )
    if distance > reachable:
        raise UpdateError(
            f"the update lies {distance:.3g} (L2) from the global model; {counted(steps, 'step')} of this "
            f"run's training lead {reachable:.3g} away at most. The site did something else than the run asks for.",
            ErrorCode.UPDATE_TOO_LARGE,
        )
    return Update(parts, distance, min(setting, reachable), steps, work_of(run, round_, steps), packed)


def outliers(updates: Mapping[str, Update], run: RunConfig) -> frozenset[str]:
    """Sites whose update moved more than MEDIAN_FACTOR times as much as the median of the round.

    Fewer than three have no median to speak of. Nor do sites that adapt their clipping norm, each to its own patients,
    or a round in which most did not move at all. Where sites stop by time, a fast one moves far and a slow one far for
    its steps: beyond is who does both.
    """
    adaptive = run.privacy is not None and run.privacy.adaptive_clipping is not None
    if len(updates) < _FEWEST_FOR_A_MEDIAN or adaptive:
        return frozenset()
    if run.training.local_seconds is None:
        return _far({site: update.reach for site, update in updates.items()})
    far = _far({site: update.distance for site, update in updates.items()})
    return far & _far({site: update.pull for site, update in updates.items()})


def steps_made(updates: Mapping[str, Update], run: RunConfig) -> dict[str, dict[str, int]]:
    """What the journal has of a round besides, where sites stop by time: how many steps each made."""
    if run.training.local_seconds is None:
        return {}
    return {STEPS_MADE: {site: update.steps for site, update in sorted(updates.items())}}


def _far(moved: Mapping[str, float]) -> frozenset[str]:
    most = MEDIAN_FACTOR * statistics.median(moved.values())
    return frozenset(site for site, one in moved.items() if one > most > 0)


def check_scores(reply: EvaluateReply, run_hash: str, round_: int, phase: Phase) -> EvaluateReply:
    """The scores, unless they are of another run, round or phase, or with a count no hospital has.

    Raises:
        UpdateError: with the code of the first rule broken.
    """
    _check_round(reply.run_hash, reply.round, run_hash, round_)
    if reply.phase != phase:
        raise UpdateError(f"the reply is for phase {reply.phase}, expected {phase}", ErrorCode.BAD_REQUEST)
    if reply.patients > MAX_PATIENTS:
        raise UpdateError(f"the reply counts {reply.patients} patients", ErrorCode.BAD_COUNT)
    _check_metrics(reply.metrics)
    return reply


def _in_float32(parts: Parts, run: RunConfig, sent: Mapping[str, Tensor]) -> Parts:
    """The parts of an update with the model as weights, where the run lets it travel as what they moved."""
    encoding, name = run.federation.update_precision, run.strategy.MODEL
    if encoding == "float32":
        return parts
    weights = weights_of(parts[name], {key: one.numpy() for key, one in sent.items()}, encoding)
    return {**parts, name: bytes_of({key: torch.from_numpy(one) for key, one in weights.items()})}


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
    if taken := sorted(ENTRIES & metrics.keys()):
        raise UpdateError(
            f"a metric is named {taken[0]}, as an entry of the run's journal is; it would be read as that one",
            ErrorCode.BAD_REQUEST,
        )
    if not all(abs(value) <= _LARGEST_METRIC for value in metrics.values()):
        raise UpdateError("a metric is no finite number of single precision", ErrorCode.NOT_FINITE)


def _check_statistics(metrics: Mapping[str, float], run: RunConfig) -> None:
    told = {name: value for name, value in metrics.items() if is_statistic(name)}
    if unasked := sorted(told.keys() - statistic_names(run)):
        raise UpdateError(
            f"the reply tells {unasked[0]}, a statistic of patients that this run does not ask for",
            ErrorCode.BAD_REQUEST,
        )
    of = told.get(COUNTED, 0.0)
    if told and (of > MAX_PATIENTS or of != bucketed(int(of))):
        raise UpdateError(
            f"the reply tells statistics of {of:g} patients, expected {SMALLEST_COUNT} to {MAX_PATIENTS} in "
            "steps of five",
            ErrorCode.BAD_COUNT,
        )
    for name, value in told.items():
        least, most = lowest_and_highest(name)
        if not least <= value <= most:
            raise UpdateError(f"{name} is {value:g}, expected {least:g} to {most:g}", ErrorCode.BAD_REQUEST)
        if name != COUNTED and value != rounded(value, name):
            raise UpdateError(f"{name} is {value!r}, which is not rounded as statistics are", ErrorCode.BAD_REQUEST)


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


__all__ = [
    "MAX_METRICS",
    "MAX_PATIENTS",
    "MEDIAN_FACTOR",
    "Update",
    "check_scores",
    "check_update",
    "outliers",
    "steps_made",
]
