"""Scores of held-out patients with noise, and what they cost.

A patient's score is bounded, so one patient moves a sum of scores by little. With K classes a held-out patient adds the
vector of K scores in [0, 1], such as Dice, each less 1/2, to a sum: at most 1/2 in each entry, sqrt(K) / 2 in L2. The
sum gets Gaussian noise once, is divided by a public number of patients and moved back by 1/2:

    told_k = 1/2 + (sum over patients of (score_k - 1/2) + noise_k) / N        N = declared size * held-out fraction

Where the split has another number of patients than N, what is told is drawn towards 1/2 or away from it by as much;
the true number is never used. The unqualified headline is the mean of the noisy classes, so it costs nothing more. One
answer is one release, one row of the ledger: noise multiplier z, rate 1, one step. See docs/privacy-engine.md,
"Scores of held-out patients". No torch here before noise is drawn: the agent reads the names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.config import DataConfig, RunConfig
from common.config.rundocument import RunDocument
from common.errors import DataError, ErrorCode
from common.privacy.accountant import noise_multiplier_for
from common.privacy.charges import Charged
from common.privacy.guarantee import plan
from common.privacy.ledger import Ledger
from common.tasks import Task
from common.wire.messages import Phase

# What a noised answer carries beside the scores: the standard deviation of the noise on the headline score and on that
# of each class, and what the run's answers so far have cost a held-out patient.
SCORE_NOISE, CLASS_NOISE = "score-noise", "class-score-noise"
SCORES_EPSILON, SCORES_DELTA = "scores-epsilon", "scores-delta"
NOISE_NAMES = (SCORE_NOISE, CLASS_NOISE, SCORES_EPSILON, SCORES_DELTA)

_HELD_OUT = "/held-out"
_CENTRE = 0.5


@dataclass(frozen=True)
class ScorePlan:
    """How a site's scores are noised in a run; all of it follows from public numbers."""

    noise_multiplier: float
    delta: float
    held_out: int  # the public number of patients in the split
    sensitivity: float  # L2, of the sum of centred scores: one patient more or less

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on the score of one class; on the mean of K classes 1 / sqrt(K) of it."""
        return self.noise_multiplier * self.sensitivity / self.held_out


def held_out_cohort(cohort: str) -> str:
    """The name under which the ledger keeps the budget of a cohort's held-out patients."""
    return f"{cohort}{_HELD_OUT}"


def short_cohort(cohort: str) -> str:
    """A cohort's name as it is shown."""
    return f"{cohort.removesuffix(_HELD_OUT)[:12]}{_HELD_OUT if is_held_out(cohort) else ''}"


def is_held_out(cohort: str) -> bool:
    """Whether a cohort of the ledger is one of held-out patients."""
    return cohort.endswith(_HELD_OUT)


def score_plan(run: RunConfig, declared: int, phase: Phase, epsilon: float) -> ScorePlan:
    """Solve the noise of a run's scores: all its evaluations together spend at most `epsilon`.

    Args:
        run: with a [privacy] table.
        declared: the site's publicly declared number of patients.
        phase: which split.
        epsilon: of one run, from the site's policy (run-scores-epsilon).

    Raises:
        DataError: NO_DATA, the run holds nobody out for this phase.
        PrivacyError: as `plan`, or no noise reaches the epsilon.
    """
    fraction = held_out_fraction(run.data, phase)
    if fraction == 0:
        raise DataError(f"the run holds no patient out for {phase}", ErrorCode.NO_DATA)
    delta = plan(run, declared).delta
    return ScorePlan(
        noise_multiplier=noise_multiplier_for(epsilon, delta, 1.0, run.evaluations),
        delta=delta,
        held_out=max(1, round(declared * fraction)),
        sensitivity=math.sqrt(len(run.data.classes)) * _CENTRE,
    )


def held_out_fraction(data: DataConfig, phase: Phase) -> float:
    """The share of patients that a run holds out for a phase."""
    if phase == "validation":
        return data.validation_fraction
    return data.test_fraction if data.folds is None else 1 / data.folds


def charge_scores(
    ledger: Ledger,
    document: RunDocument,
    cost: ScorePlan,
    *,
    cohort: str,
    round_: int,
    phase: Phase,
    lifetime_epsilon: float,
) -> Charged:
    """Enter one answer in the ledger before it is computed; the same round and phase is charged once.

    The run's first answer reserves those that are still due.

    Returns:
        What the run's answers have been charged, without those of this round and with them.

    Raises:
        PrivacyError: BUDGET_SPENT, the budget of the held-out patients does not allow it.
    """
    run = document.config
    later = 0 if phase == "test" else run.evaluations_after(round_)
    return ledger.charge(
        held_out_cohort(cohort),
        document.hash,
        round_,
        phase,
        noise_multiplier=cost.noise_multiplier,
        sampling_rate=1.0,
        steps=1,
        delta=cost.delta,
        lifetime_epsilon=lifetime_epsilon,
        rounds=1 + later,
    )


def noised_scores(
    rows: Sequence[Mapping[str, float]], task: Task, classes: Sequence[str], cost: ScorePlan
) -> dict[str, float]:
    """The noisy scores of a split.

    Args:
        rows: of each patient in the split, with a score of each class; any number of them. An entry that is missing
            or not finite counts as 1/2.
        task: whose headline score it is; with BY_CLASS.
        classes: names of the K classes.
        cost: as planned, and charged.

    Returns:
        The headline, that of each class, and the deviations of their noise. A score may leave [0, 1].
    """
    import torch  # noqa: PLC0415 - heavy; see the module's docstring

    from common.privacy.noise import deviation, noised  # noqa: PLC0415

    total = torch.zeros(len(classes), dtype=torch.float64)
    for row in rows:
        total += torch.tensor([_centred(row.get(task.of_class(name))) for name in classes], dtype=torch.float64)
    (noisy,) = noised([total], clipping_norm=cost.sensitivity, noise_multiplier=cost.noise_multiplier)
    found = [_CENTRE + value / cost.held_out for value in noisy.tolist()]
    each = deviation(cost.sensitivity, cost.noise_multiplier, len(classes)) / cost.held_out
    return {
        task.headline: math.fsum(found) / len(found),
        **{task.of_class(name): value for name, value in zip(classes, found, strict=True)},
        SCORE_NOISE: each / math.sqrt(len(classes)),
        CLASS_NOISE: each,
    }


def _centred(score: float | None) -> float:
    """Within 1/2 of zero, whatever a patient's score is."""
    if score is None or not math.isfinite(score):
        return 0.0
    return min(1.0, max(0.0, score)) - _CENTRE


__all__ = [
    "CLASS_NOISE",
    "NOISE_NAMES",
    "SCORES_DELTA",
    "SCORES_EPSILON",
    "SCORE_NOISE",
    "ScorePlan",
    "charge_scores",
    "held_out_cohort",
    "held_out_fraction",
    "is_held_out",
    "noised_scores",
    "score_plan",
    "short_cohort",
]
