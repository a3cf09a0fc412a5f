"""What differential privacy a run asks for at a site, and the guarantee that is printed with its model.

Neighbouring data sets differ by one patient of the training cohort, with all their studies. Delta is at most
1 / (10 N), N the publicly declared number of patients: a delta of 1 / N would allow to publish one patient whole.
Everything here follows from the run, the declared size and the steps made, so site and coordinator compute the same.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

from common.config import DataConfig, PrivacyConfig, RunConfig
from common.config.rundocument import RunDocument
from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import ACCOUNTANT, epsilon, noise_multiplier_for
from common.privacy.charges import Charge, Charged
from common.privacy.clipping import gradient_noise_multiplier, norm_bounds
from common.privacy.ledger import Ledger
from common.strategies import WEIGHTS
from common.tasks import Task

UNIT = "patient"
# The parts of an update that the noise of private steps covers; no other may leave a private run.
COVERED_PARTS = frozenset({WEIGHTS})
# See common/privacy/noise.py, which this module does not import: it loads torch.
NOISE = (
    "Gaussian, from an AES-256 keystream keyed by the operating system for each step, rounded to a grid; never seeded"
)
# All that depends on patients and leaves without noise stands in one of these two; a test holds the exit gate's
# scalars against them.
PUBLIC = (
    "the run's configuration and initial weights",
    "the site's declared number of patients",
    "which sites took part in each round",
    "steps, epsilon and delta of each round",
    "how much noise the scores of held-out patients have and what they cost (score-noise, class-score-noise, "
    "scores-epsilon, scores-delta)",
)
_NOT_COVERED = (
    "how long a round took",
    "whether a site has patients enough for the run, and whether its machine failed in a round",
    "a patient with data at several sites",
    "a patient whose images are filed under another patient too",
)

# Lower ends of the classes; the last is open.
_COHORT_CLASSES = (1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class Plan:
    """How a site trains privately in a run."""

    noise_multiplier: float  # what a step is charged for: standard deviation of the noise over the clipping norm
    gradient_noise_multiplier: float  # of the gradients alone: more, where a count is released beside them
    delta: float
    sampling_rate: float  # probability that a patient takes part in a step
    steps_per_round: int
    expected_patients: float  # in a step: the public denominator of the mean gradient
    expected_in_training: float  # in a step, the shares held out by the run taken off: that of adaptive clipping


@dataclass(frozen=True)
class Forecast:
    """Epsilon of a cohort over all runs, as its lifetime budget is measured."""

    before: float
    after: float  # all rounds of the run
    reserved: float | None  # and all that the other runs that have started may still want; None where there is none
    delta: float


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta) differential privacy that the model gives a site's patients, and what it rests on."""

    epsilon: float  # spent in this run so far
    delta: float
    unit: str
    cohort_size_class: str
    sampling: str
    sampling_rate: float
    steps: int
    noise_multiplier: float
    gradient_noise_multiplier: float
    clipping_norm: float  # L2, of one patient's gradient; each round's first, where it is adaptive
    clipping: str
    noise: str
    accountant: str
    held_out: str  # what the scores of held-out patients, who are not those trained on, give away
    public: tuple[str, ...]
    not_covered: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON: kebab-case keys."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}


def plan(run: RunConfig, cohort_size: int) -> Plan:
    """Solve the noise of a run at a site. Deterministic; repeated calls cost nothing.

    Args:
        run: with a [privacy] table.
        cohort_size: the site's publicly declared number of patients.
    Raises:
        PrivacyError: no [privacy] table, an empty cohort, delta above 1 / (10 N), an epsilon out of reach, or too
            little noise on the count of adaptive clipping.
    """
    privacy = _privacy(run)
    if cohort_size < 1:
        raise PrivacyError(
            f"the cohort has {cohort_size} patients, expected at least 1. Add data, or set cohort-size in site.toml.",
            ErrorCode.TOO_FEW_PATIENTS,
        )
    largest = 1 / (10 * cohort_size)
    delta = largest if privacy.delta is None else privacy.delta
    if delta > largest:
        raise PrivacyError(
            f"delta is {delta:g}, must be at most 1 / (10 N) = {largest:g} for the {cohort_size} patients of this "
            "cohort. Lower [privacy] delta, or leave it out.",
            ErrorCode.BAD_REQUEST,
        )
    noise_multiplier = _noise_multiplier(run, delta)
    expected = privacy.sampling_rate * cohort_size
    return Plan(
        noise_multiplier=noise_multiplier,
        gradient_noise_multiplier=_gradient_noise_multiplier(privacy, noise_multiplier),
        delta=delta,
        sampling_rate=privacy.sampling_rate,
        steps_per_round=run.training.local_steps,
        expected_patients=expected,
        expected_in_training=expected * _training_fraction(run.data),
    )


def charge_round(
    ledger: Ledger,
    document: RunDocument,
    *,
    cohort: str,
    cohort_size: int,
    round_: int,
    attempt: str,
    lifetime_epsilon: float,
    carried: str | None = None,
    begin: bool = False,
    check: Callable[[Iterable[Charge]], None] = lambda _: None,
) -> Charged:
    """Enter one round of a run in a site's ledger, before its first step; the same attempt is charged once.

    Args:
        ledger: the site's.
        document: with a [privacy] table.
        cohort: whose budget it is.
        cohort_size: the site's publicly declared number of patients.
        round_: from 1; with the rounds after it, what the run still wants.
        attempt: names this execution.
        lifetime_epsilon: the cohort's budget over all runs, from the site's policy.
        carried: see `Ledger.charge`, also for the next two.
        begin: likewise.
        check: likewise.

    Returns:
        What the run has been charged, without this round and with it.

    Raises:
        PrivacyError: as `plan`, or the budget does not allow it.
    """
    run = document.config
    cost = plan(run, cohort_size)
    return ledger.charge(
        cohort,
        document.hash,
        round_,
        attempt,
        noise_multiplier=cost.noise_multiplier,
        sampling_rate=cost.sampling_rate,
        steps=cost.steps_per_round,
        delta=cost.delta,
        lifetime_epsilon=lifetime_epsilon,
        run_epsilon=_privacy(run).target_epsilon,
        rounds=run.federation.rounds - round_ + 1,
        carried=carried,
        begin=begin,
        check=check,
    )


def forecast(ledger: Ledger, document: RunDocument, *, cohort: str, cohort_size: int) -> Forecast:
    """What a run would cost a cohort, were all of its rounds done; nothing is charged.

    Args:
        ledger: the site's.
        document: with a [privacy] table.
        cohort: whose budget it is.
        cohort_size: the site's publicly declared number of patients.

    Raises:
        PrivacyError: as `plan`, or the ledger cannot be read.
    """
    run, cost = document.config, plan(document.config, cohort_size)
    history, others = ledger.history(cohort), ledger.reserved(cohort, but=document.hash)
    done = sum(steps for _, _, steps in ledger.history(cohort, document.hash))
    left = max(0, run.federation.rounds * cost.steps_per_round - done)
    after = (*history, (cost.noise_multiplier, cost.sampling_rate, left)) if left else history
    delta = ledger.delta(cohort, cost.delta)
    return Forecast(
        before=epsilon(history, delta),
        after=epsilon(after, delta),
        reserved=epsilon((*after, *others), delta) if others else None,
        delta=delta,
    )


def not_covered(task: Task) -> tuple[str, ...]:
    """What a guarantee says nothing of."""
    by_class = f"; {task.of_class('CLASS')}" if task.BY_CLASS else ""
    exact = "scores of held-out patients, where a site's policy lets exact ones go "
    return (f"{exact}({', '.join(task.SCORES)}{by_class})", *_NOT_COVERED)


def uncovered(run: RunConfig) -> str | None:
    """What the strategy of a private run does that no guarantee covers, to be read after "it"; None: nothing."""
    if run.privacy is None:
        return None
    if beside := sorted(set(run.strategy.up) - COVERED_PARTS):
        return f"sends {', '.join(beside)} beside the weights"
    return None


def why_void(run: RunConfig) -> str | None:
    """Why a run with a [privacy] table guarantees nothing, so that no epsilon may be printed; None if it does.

    Seeded noise, BatchNorm and units other than the patient cannot be asked for in a run; what starts from weights can.
    """
    if (beyond := uncovered(run)) is not None:
        return f"the run's strategy {run.strategy.kind} {beyond}"
    if run.privacy is None or run.initial is None or run.initial.public is not None:
        return None
    return (
        "the run starts from weights that nobody declares to be public: they may have been trained on the same "
        "patients. State [initial] public in run.toml, or leave [initial] out"
    )


def guarantee(
    run: RunConfig, *, epsilon: float, delta: float, steps: int, scores: Mapping[str, float] | None = None
) -> Guarantee:
    """State the guarantee of a site.

    Args:
        run: with a [privacy] table.
        epsilon: spent at the site in this run, from its ledger.
        delta: of the site's plan.
        steps: of the updates that were taken; `epsilon` counts all that were charged.
        scores: the site's last ones in this run; None: there are none.
    Raises:
        PrivacyError: no [privacy] table, or it is void.
    """
    privacy = _privacy(run)
    if reason := why_void(run):
        raise PrivacyError(f"run {run.name!r} gives no guarantee: {reason}.", ErrorCode.BAD_REQUEST)
    start = () if run.initial is None else (f"by the coordinator's word, the initial weights: {run.initial.public}",)
    noise_multiplier = _noise_multiplier(run, delta)
    return Guarantee(
        epsilon=epsilon,
        delta=delta,
        unit=UNIT,
        cohort_size_class=_cohort_size_class(round(1 / (10 * delta))) if privacy.delta is None else "not stated",
        sampling=f"Poisson: each patient in each step with probability {privacy.sampling_rate:g}",
        sampling_rate=privacy.sampling_rate,
        steps=steps,
        noise_multiplier=noise_multiplier,
        gradient_noise_multiplier=_gradient_noise_multiplier(privacy, noise_multiplier),
        clipping_norm=privacy.clipping_norm,
        clipping=_clipping(privacy),
        noise=NOISE,
        accountant=ACCOUNTANT,
        held_out=_held_out(scores),
        public=(*PUBLIC, *start),
        not_covered=not_covered(run.task),
    )


def _held_out(scores: Mapping[str, float] | None) -> str:
    if scores is None:
        return "no scores"
    if "scores-epsilon" not in scores:
        return "exact scores: no guarantee covers a held-out patient"
    return (
        f"noised scores: epsilon {scores['scores-epsilon']:.3g} at delta {scores['scores-delta']:.2g} for a held-out "
        "patient in this run"
    )


def _privacy(run: RunConfig) -> PrivacyConfig:
    if run.privacy is None:
        raise PrivacyError(
            f"run {run.name!r} has no [privacy] table, so it gives no guarantee. Add one to run.toml.",
            ErrorCode.BAD_REQUEST,
        )
    return run.privacy


def _noise_multiplier(run: RunConfig, delta: float) -> float:
    privacy = _privacy(run)
    steps = run.federation.rounds * run.training.local_steps
    return noise_multiplier_for(privacy.target_epsilon, delta, privacy.sampling_rate, steps)


def _gradient_noise_multiplier(privacy: PrivacyConfig, noise_multiplier: float) -> float:
    if privacy.adaptive_clipping is None:
        return noise_multiplier
    return gradient_noise_multiplier(noise_multiplier, privacy.adaptive_clipping.count_noise)


def _training_fraction(data: DataConfig) -> float:
    return 1 - data.validation_fraction - (data.test_fraction if data.folds is None else 1 / data.folds)


def _clipping(privacy: PrivacyConfig) -> str:
    adaptive, first = privacy.adaptive_clipping, privacy.clipping_norm
    if adaptive is None:
        return f"fixed norm {first:g}"
    low, high = norm_bounds(first)
    return (
        f"adaptive from {first:g} in each round, towards quantile {adaptive.quantile:g} of the patients' gradient "
        f"norms, within {low:g} and {high:g}; the count it follows has noise of deviation {adaptive.count_noise:g} "
        "patients, charged with the step"
    )


def _cohort_size_class(patients: int) -> str:
    for low, high in pairwise(_COHORT_CLASSES):
        if patients < high:
            return f"{low}-{high - 1}"
    return f"{_COHORT_CLASSES[-1]} or more"
