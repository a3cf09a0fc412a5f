"""What differential privacy a run asks for at a site, and the guarantee that is printed with its model.

Neighbouring data sets differ by one patient of the training cohort, with all their studies. Delta is at most
1 / (10 N), N the publicly declared number of patients: a delta of 1 / N would allow to publish one patient whole.
Everything here follows from the run, the declared size and the steps made, so site and coordinator compute the same.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise

from common.config import METRICS, PrivacyConfig, RunConfig, sha256_of
from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import ACCOUNTANT, epsilon, noise_multiplier_for
from common.privacy.ledger import Ledger

UNIT = "patient"
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
    "which of a site's patients are held out for validation and testing",
    "steps, epsilon and delta of each round",
)
NOT_COVERED = (
    f"scores of held-out patients ({', '.join(name for name in METRICS if name != 'train-loss')}; dice-CLASS)",
    "how long a round took",
    "error codes of a site that could not train",
    "a patient with data at several sites",
    "a patient whose images are filed under another patient too",
)

# Lower ends of the classes; the last is open.
_COHORT_CLASSES = (1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class Plan:
    """How a site trains privately in a run."""

    noise_multiplier: float  # standard deviation of the noise over the clipping norm
    delta: float
    sampling_rate: float  # probability that a patient takes part in a step
    steps_per_round: int
    expected_patients: float  # in a step: the public denominator of the mean gradient


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
    clipping_norm: float  # L2, of one patient's gradient
    noise: str
    accountant: str
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
        PrivacyError: no [privacy] table, an empty cohort, delta above 1 / (10 N), or an epsilon out of reach.
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
    return Plan(
        noise_multiplier=_noise_multiplier(run, delta),
        delta=delta,
        sampling_rate=privacy.sampling_rate,
        steps_per_round=run.training.local_steps,
        expected_patients=privacy.sampling_rate * cohort_size,
    )


def charge_round(
    ledger: Ledger, run: RunConfig, *, cohort: str, cohort_size: int, round_: int, attempt: str, lifetime_epsilon: float
) -> Plan:
    """Enter one round of a run in a site's ledger, before its first step; the same attempt is charged once.

    Args:
        ledger: the site's.
        run: with a [privacy] table.
        cohort: whose budget it is.
        cohort_size: the site's publicly declared number of patients.
        round_: from 1; with the rounds after it, what the run still wants.
        attempt: names this execution.
        lifetime_epsilon: the cohort's budget over all runs, from the site's policy.
    Raises:
        PrivacyError: as `plan`, or the budget does not allow it.
    """
    cost = plan(run, cohort_size)
    ledger.charge(
        cohort,
        sha256_of(run),
        round_,
        attempt,
        noise_multiplier=cost.noise_multiplier,
        sampling_rate=cost.sampling_rate,
        steps=cost.steps_per_round,
        delta=cost.delta,
        lifetime_epsilon=lifetime_epsilon,
        rounds=run.federation.rounds - round_ + 1,
    )
    return cost


def forecast(ledger: Ledger, run: RunConfig, *, cohort: str, cohort_size: int) -> tuple[float, float, float]:
    """What a run would cost a cohort, were all of its rounds done; nothing is charged.

    Args:
        ledger: the site's.
        run: with a [privacy] table.
        cohort: whose budget it is.
        cohort_size: the site's publicly declared number of patients.

    Returns:
        Epsilon of the cohort over all runs before it and after it, and the delta of both.

    Raises:
        PrivacyError: as `plan`.
    """
    cost = plan(run, cohort_size)
    history = ledger.history(cohort)
    done = sum(steps for _, _, steps in ledger.history(cohort, sha256_of(run)))
    left = max(0, run.federation.rounds * cost.steps_per_round - done)
    after = (*history, (cost.noise_multiplier, cost.sampling_rate, left)) if left else history
    return epsilon(history, cost.delta), epsilon(after, cost.delta), cost.delta


def guarantee(run: RunConfig, *, epsilon: float, delta: float, steps: int) -> Guarantee:
    """State the guarantee of a site.

    Args:
        run: with a [privacy] table.
        epsilon: spent at the site in this run, from its ledger.
        delta: of the site's plan.
        steps: charged at the site in this run.
    Raises:
        PrivacyError: no [privacy] table.
    """
    privacy = _privacy(run)
    return Guarantee(
        epsilon=epsilon,
        delta=delta,
        unit=UNIT,
        cohort_size_class=_cohort_size_class(round(1 / (10 * delta))) if privacy.delta is None else "not stated",
        sampling=f"Poisson: each patient in each step with probability {privacy.sampling_rate:g}",
        sampling_rate=privacy.sampling_rate,
        steps=steps,
        noise_multiplier=_noise_multiplier(run, delta),
        clipping_norm=privacy.clipping_norm,
        noise=NOISE,
        accountant=ACCOUNTANT,
        public=PUBLIC,
        not_covered=NOT_COVERED,
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


def _cohort_size_class(patients: int) -> str:
    for low, high in pairwise(_COHORT_CLASSES):
        if patients < high:
            return f"{low}-{high - 1}"
    return f"{_COHORT_CLASSES[-1]} or more"
