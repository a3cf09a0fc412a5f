"""policy.toml: what a hospital allows."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from common.config.statistics import STATISTICS
from common.document.table import Count, Document, NonNegative, Positive
from common.strategies import of_personal
from common.tasks import HEADLINES, SCORE_NAMES, of_local

# Of plain training steps; never leaves under differential privacy.
TRAIN_LOSS = "train-loss"
# What leaves unless a policy shortens the list. The headline score of each class goes with the headline; those of
# models of the site's own go each by its name.
METRICS = (*SCORE_NAMES, *map(of_personal, HEADLINES), *map(of_local, HEADLINES), TRAIN_LOSS)
# And statistics of the training patients, which leave only where a policy names them.
ALL_METRICS = (*METRICS, *STATISTICS)
if TYPE_CHECKING:
    Metric = str
else:
    Metric = Literal[ALL_METRICS]

Scores = Literal["none", "noised", "exact"]

HOURS_PATTERN = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"


class PolicyConfig(Document):
    """policy.toml: what the hospital allows. Nothing the coordinator sends can change it. The default is strict."""

    KIND: ClassVar[str] = "policy.toml"

    # The switch: false refuses every message from the next one on.
    participate: bool = True
    # Local time of day in which work is done, such as "20:00-06:00". None: always.
    hours: Annotated[str, Field(pattern=HOURS_PATTERN)] | None = None
    # Without this, a person at the hospital approves each run by its hash.
    auto_approve: bool = False
    # People, operators at the coordinator, who must have signed a proposal before it is looked at.
    operators: Annotated[int, Field(ge=1, le=5)] = 1

    # Networks and kinds of images. Empty: all that this program knows.
    architectures: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    max_parameters: Count = 50_000_000
    # Of the weights received: largest absolute value, beside being finite, with no row twice and none constant.
    max_weight: Positive = 1000.0

    min_patients: Count = 10
    max_rounds: Count = 500
    # Training rounds of all runs in any 24 hours.
    max_rounds_per_day: Count = 500
    max_local_steps: Count = 1000
    min_learning_rate: NonNegative = 0.0
    max_learning_rate: Positive = 10.0

    require_privacy: bool = True
    # The first that this site hears of a run may be a later round than 1. Without this a run that names the weights it
    # starts from is refused then: round 1 is where they can be checked.
    late_start: bool = False
    # Lifetime budget of a cohort, over all runs.
    lifetime_epsilon: Positive = 10.0
    # Of one run. None: as the lifetime budget.
    max_run_epsilon: Positive | None = None
    min_noise_multiplier: NonNegative = 0.0
    min_clipping: NonNegative = 0.0
    max_clipping: Positive = 100.0
    max_delta: Annotated[float, Field(gt=0, lt=1)] = 0.02

    # What may leave beside weights. Losses never do under differential privacy, nor do statistics of the training
    # patients (class-share, foreground-share, intensity), which leave only where they are added here.
    metrics: tuple[Metric, ...] = METRICS

    # Scores of held-out patients. none: they never leave. noised: with [privacy] as noisy sums, charged to a budget of
    # the held-out patients. exact: without noise, and then no guarantee covers the held-out patients. Without [privacy]
    # noised is as exact: the weights have no noise either.
    scores: Scores = "noised"
    # What the noised scores of one run, and of all runs together, may cost a held-out patient.
    run_scores_epsilon: Positive = 1.0
    lifetime_scores_epsilon: Positive = 10.0
    # A split of fewer patients leaves no score. Counted for exact scores; for noised ones it is the declared number.
    min_held_out: Count = 10
    # Of all runs, in any 24 hours.
    max_evaluations_per_day: Count = 100
    # bound: one model a round, in order, once, and the same answer when asked again. free: any model at any time, for
    # generated or public images only.
    evaluations: Literal["bound", "free"] = "bound"

    @model_validator(mode="after")
    def _noise_is_bound(self) -> Self:
        if self.evaluations == "free" and self.scores == "noised":
            raise ValueError(
                "evaluations 'free' would draw new noise at will: with it scores must be 'exact' or 'none'"
            )
        return self
