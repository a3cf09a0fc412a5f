"""run.toml: all that defines a run.

Lengths are in mm or voxels and ordered like the array axes: (z, y, x) or (y, x).
"""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from common.config.crops import too_large, window_too_large
from common.config.federation import FederationConfig
from common.config.privacy import PrivacyConfig
from common.config.training import TrainingConfig
from common.document.formats import Since
from common.document.table import Document, Fraction, Name, Positive, Table
from common.models import NETWORK_CHOICE, Network, dense_names
from common.preparation import STEP_CHOICE, Expected, Step
from common.preparation.missing_values import MissingValues
from common.preparation.windows import window_of
from common.strategies import STRATEGY_CHOICE, Asked, Strategy
from common.tasks import TASK_CHOICE, Task


class DataConfig(Table):
    """The data contract: what every site must be able to deliver."""

    modality: Literal["CT", "MR", "CR", "DX", "MG", "US", "photo"]
    # Input channels: 1 for radiology, 3 for colour photographs.
    channels: Literal[1, 3] = 1
    # Foreground classes in label order; 0 is always the background.
    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=254)]
    # Split by patient. The rest is for training.
    validation_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15
    # Cross-validation: the patients are dealt into so many folds, and number `fold` (from 0) is the test split;
    # test-fraction is not used then.
    folds: Annotated[int, Field(ge=2, le=20)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    # proportional: exact shares, so that a patient's place depends on how many there are. independent: it follows from
    # the patient alone, and shares are met on average. None: independent with [privacy], which allows nothing else.
    split: Literal["independent", "proportional"] | None = None

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Self:
        if self.folds is None and self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation-fraction + test-fraction must leave patients for training")
        if self.folds is not None and self.validation_fraction + 1 / self.folds >= 1:
            raise ValueError("validation-fraction + 1/folds must leave patients for training")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be distinct")
        if self.fold >= (self.folds or 1):
            raise ValueError("fold counts from 0 and must be below folds; without folds leave it out")
        return self


class PreprocessingConfig(Table):
    """Study to network input. In this order: steps on the voxels as acquired; spacing or rows; intensity; steps on
    scaled intensities.
    """

    # Resample to this spacing; needs images that know theirs (DICOM, NIfTI). (y, x) or (z, y, x).
    spacing_mm: tuple[Positive, ...] | None = None
    # Resize to this many rows, keeping the aspect ratio; for photographs, which have no spacing.
    rows: Annotated[int, Field(ge=1, le=65536)] | None = None
    # window: linear from [low, high] to [0, 1], clipped (CT in HU). zscore: mean 0, variance 1 per study;
    # zscore-foreground: of its brighter part. percentile: 0.5th and 99.5th percentile of the study to [0, 1], clipped.
    # min-max: its lowest and highest value to [0, 1].
    intensity: Literal["window", "zscore", "percentile", "min-max", "zscore-foreground"] = "percentile"
    # Two values, or the name of a window of CT, which stands for its two.
    window: Annotated[
        tuple[float, float] | None, BeforeValidator(lambda value: window_of(value) if isinstance(value, str) else value)
    ] = None
    # Further steps, in the order in which they are done; each a table with its own keys.
    steps: Annotated[tuple[Annotated[Step, STEP_CHOICE], ...], Field(max_length=20), Since(2)] = ()

    @property
    def missing_values(self) -> MissingValues | None:
        """The step that knows what was not measured; None where the run has none."""
        return next((step for step in self.steps if isinstance(step, MissingValues)), None)

    @property
    def most_missing(self) -> float:
        """The share of a study's values that may be no numbers."""
        return 0.0 if self.missing_values is None else self.missing_values.most

    @property
    def scaled(self) -> bool:
        """Whether intensities are brought to [0, 1]."""
        return not self.intensity.startswith("zscore")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.spacing_mm is not None and self.rows is not None:
            raise ValueError("set spacing-mm or rows, not both")
        if (self.intensity == "window") != (self.window is not None):
            raise ValueError("window = [low, high] goes with intensity = 'window', and only with it")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window must be [low, high] with low < high")
        if any(isinstance(step, MissingValues) for step in self.steps[1:]):
            raise ValueError("steps: missing-values comes first and once, for others would spread what is missing")
        for first, second in pairwise(self.steps):
            if (first.PLACE, second.PLACE) == ("scaled", "acquired"):
                raise ValueError(
                    f"steps: {second.kind} works on the voxels as they were acquired, {first.kind} on scaled "
                    f"intensities, which come later. Write {second.kind} first"
                )
        return self


class InitialConfig(Table):
    """Weights that a run starts from, such as of a model pretrained on public images."""

    # Of the weights' file, hex: what every site may check in round 1.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    # What makes them public: which images they were trained on, and why no patient of a site is among them. Without
    # this statement a private run has no guarantee to print.
    public: Annotated[str, Field(min_length=10, max_length=500)] | None = None


class RunConfig(Document):
    """run.toml: all that defines a run."""

    KIND: ClassVar[str] = "run"
    LATEST: ClassVar[int] = 2

    name: Name
    model: Annotated[Network, NETWORK_CHOICE] = NETWORK_CHOICE.default()
    data: DataConfig
    task: Annotated[Task, TASK_CHOICE, Since(2)] = TASK_CHOICE.default()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    training: TrainingConfig
    federation: FederationConfig
    strategy: Annotated[Strategy, STRATEGY_CHOICE, Since(2)] = STRATEGY_CHOICE.default()
    privacy: PrivacyConfig | None = None
    # None: random weights from the seed.
    initial: InitialConfig | None = None
    # Initial weights, crops and split follow from it. The privacy noise never does.
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    # Bit-equal results on the same machine and thread count, at some cost in speed.
    deterministic: bool = False

    @model_validator(mode="after")
    def _network_can_do_the_task(self) -> Self:
        if self.task.DRAWS and not self.model.DENSE:
            raise ValueError(
                f"model.architecture {self.model.architecture!r} answers an image as a whole, and task.kind "
                f"{self.task.kind!r} wants an answer for every voxel. Use one of {dense_names()}, or another task"
            )
        if self.task.overlaps and self.model.EXCLUSIVE:
            raise ValueError(
                f"model.architecture {self.model.architecture!r} hands on one class for each voxel from its first half "
                f"to its second, and with task.multi-label classes overlap. Use one of {dense_names(overlap=True)}"
            )
        if self.model.auxiliary and self.training.trainable != "all":
            raise ValueError(
                "training.trainable 'norm-and-head' trains one head, and this network has further ones for deep "
                "supervision or an auxiliary loss: take that out of [model], or train all"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        dims = self.model.dims
        if len(self.training.patch_size) != dims:
            raise ValueError(f"training.patch-size needs {dims} entries, one per axis of the model")
        stride = self.model.stride
        if any(edge % stride for edge in self.training.patch_size):
            fits = [max(1, round(edge / stride)) * stride for edge in self.training.patch_size]
            raise ValueError(
                f"training.patch-size {list(self.training.patch_size)} must be multiples of {stride}, the network's "
                f"total stride, such as {fits}"
            )
        key, crops = (
            ("training.batch-size", self.training.batch_size)
            if self.privacy is None
            else ("privacy.crops-per-patient", self.privacy.crops_per_patient)
        )
        if problem := too_large(key, crops, self.data.channels, self.training.patch_size):
            raise ValueError(problem)
        if self.task.of_regions and (problem := window_too_large(self.data.channels, self.training.patch_size)):
            raise ValueError(problem)
        if problem := self.task.refuse(len(self.data.classes)):
            raise ValueError(problem)
        if problem := self.federation.refuse(self.data.classes):
            raise ValueError(problem)
        if problem := self.training.augmentation.refuse(self.data.channels, draws=self.task.DRAWS):
            raise ValueError(problem)
        spacing = self.preprocessing.spacing_mm
        if spacing is not None and len(spacing) != dims:
            raise ValueError(f"preprocessing.spacing-mm needs {dims} entries, one per axis of the model")
        if self.preprocessing.rows is not None and dims != 2:
            raise ValueError("preprocessing.rows is for dims = 2; use spacing-mm in 3D")
        expected = Expected(dims, self.data.channels, self.data.modality, self.preprocessing.scaled)
        for step in self.preprocessing.steps:
            if (problem := step.misfit(expected)) is not None:
                raise ValueError(f"preprocessing.steps: {step.kind} {problem}")
        steps = self.federation.rounds * self.training.local_steps
        if self.training.warmup_steps + self.training.cycles > steps:
            raise ValueError(
                f"training.warmup-steps and cycles do not fit into the {steps} steps of the run: rounds times "
                "local-steps"
            )
        return self

    @model_validator(mode="after")
    def _strategy_can_work(self) -> Self:
        if (problem := self.strategy.misfit(self.asked)) is not None:
            raise ValueError(f"strategy.kind {self.strategy.kind!r} {problem}")
        return self

    @model_validator(mode="after")
    def _has_scores_to_choose_by(self) -> Self:
        if not self.chooses:
            return self
        if self.data.validation_fraction == 0:
            raise ValueError(f"{self._chooses_by} goes by validation scores: data.validation-fraction must be above 0")
        if self.evaluations <= 2 and self.federation.rounds > 1:  # one, and the test
            why = "with [privacy] hospitals are asked for scores" if self.privacy else "scores are asked for"
            raise ValueError(
                f"{self._chooses_by} compares the scores of several rounds, and {why} only after the last one: set "
                "federation.evaluate-every, such as to a tenth of the rounds"
                f"{'. The more evaluations, the more noise each has' if self.privacy else ''}"
            )
        return self

    @model_validator(mode="after")
    def _keeps_patients_apart(self) -> Self:
        """With [privacy]: what would let one patient move others, or be counted without noise."""
        if self.privacy is None:
            return self
        if self.training.l1 or self.training.gradient_clipping is not None:
            which = "l1" if self.training.l1 else "gradient-clipping"
            raise ValueError(
                f"training.{which} is for runs without [privacy]: there each patient's gradient is clipped to "
                "privacy.clipping-norm, and what is added to the sum is accounted for. Take it out"
            )
        if self.training.augmentation.mixup:
            raise ValueError(
                "training.augmentation.mixup lays two patients' images over each other, and clipping bounds what one "
                "patient adds only where each gradient is one patient's: with [privacy] take it out"
            )
        if self.training.sampling != "uniform":
            raise ValueError(
                "training.sampling 'balanced' lets the labels of others decide how often a patient is taken, and what "
                "epsilon counts with is one probability, the same for all and known before (Poisson sampling): with "
                "[privacy] use 'uniform', and foreground-classes or task.loss.class-weights against imbalance"
            )
        if self.federation.statistics:
            raise ValueError(
                "federation.statistics tells of the training patients without noise, and no guarantee covers it: with "
                "[privacy] take it out, and ask for it in a run without [privacy]"
            )
        if self.federation.weighting == "patients":
            raise ValueError("federation.weighting 'patients' would reveal counts: with [privacy] use 'equal'")
        if self.data.split == "proportional":
            raise ValueError(
                "data.split 'proportional' lets one patient move others between training and testing: with [privacy] "
                "use 'independent', or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _may_stop_by_time(self) -> Self:
        """Nothing is promised that needs the number of steps before they are made."""
        if self.training.local_seconds is None:
            return self
        if self.privacy is not None:
            raise ValueError(
                "training.local-seconds lets a clock decide how many steps a site makes, and with [privacy] epsilon is "
                "charged for a number that is fixed before: take it out, and set local-steps to what the slowest site "
                "makes in time"
            )
        if self.deterministic:
            raise ValueError(
                "training.local-seconds lets a clock decide how many steps a site makes, and deterministic = true "
                "promises the same bits each time: take one of them out"
            )
        return self

    @property
    def asked(self) -> Asked:
        """The settings that a strategy may not work with."""
        return Asked(
            optimizer=self.training.optimizer,
            learning_rate=self.training.learning_rate,
            quorum=self.federation.quorum,
            private=self.privacy is not None,
            chooses=self.chooses,
            validated=self.data.validation_fraction,
            normalised=self.model.has_norms,
            timed=self.training.local_seconds is not None,
            sampled=self.federation.sites_per_round is not None,
        )

    @property
    def idle(self) -> list[str]:
        """Settings that say something and change nothing, or only where hospitals let it; a sentence each."""
        training, said = self.training, type(self.training).model_fields
        told = []
        if training.optimizer != "sgd" and training.momentum != said["momentum"].default:
            told.append(f"training.momentum is of sgd and changes nothing with optimizer = {training.optimizer!r}")
        if self.strategy.BY_WORK and training.local_seconds is None:
            told.append(
                f"strategy.kind {self.strategy.kind!r} is fedavg where all sites make as many steps: set "
                "training.local-seconds"
            )
        if training.local_seconds is not None:
            models = 1 + self.strategy.APART + self.federation.cross_site
            if training.local_seconds * models >= self.federation.round_timeout_s:
                also = f", {models} times as its own models take as many steps," if models > 1 else ""
                told.append(
                    f"training.local-seconds = {training.local_seconds:g}{also} is no less than "
                    f"federation.round-timeout-s = {self.federation.round_timeout_s:g}: who trains until it is over is "
                    "not waited for, and the round lacks them or fails"
                )
        if self.privacy is not None and training.batch_size != said["batch_size"].default:
            told.append("training.batch-size changes nothing with [privacy]: sampling-rate takes its place")
        if self.federation.sites_per_round is not None and self.initial is not None:
            told.append(
                "with federation.sites-per-round most sites hear of the run after round 1, and then cannot check the "
                "weights of [initial]: only hospitals whose policy.toml says late-start = true take part from there"
            )
        if self.privacy is not None and self.chooses and not self.task.BY_CLASS:
            told.append(
                f"{self._chooses_by} goes by validation scores, and of this task they cannot be noised: with [privacy] "
                "they leave only hospitals whose policy.toml says scores = 'exact'. Where none does, the run goes to "
                "its end and keeps its last model"
            )
        return told

    @property
    def weighting(self) -> Literal["patients", "equal"]:
        """How sites are weighted in the average, with the default resolved."""
        return self.federation.weighting or ("equal" if self.privacy else "patients")

    @property
    def split(self) -> Literal["independent", "proportional"]:
        """How patients are placed, with the default resolved."""
        return self.data.split or ("independent" if self.privacy else "proportional")

    @property
    def evaluate_every(self) -> int:
        """Rounds between evaluations, with the default resolved."""
        return self.federation.evaluate_every or (self.federation.rounds if self.privacy else 1)

    def validates_after(self, round_: int) -> bool:
        """Whether the model of a round is scored on the validation patients."""
        last = self.federation.rounds
        return 1 <= round_ <= last and (round_ % self.evaluate_every == 0 or round_ == last)

    @property
    def chooses(self) -> bool:
        """Whether validation scores decide which round's model is kept, or when the run stops."""
        return self.federation.keep == "best" or self.federation.patience is not None

    @property
    def _chooses_by(self) -> str:
        """The key that lets validation scores decide, for a sentence."""
        return "federation.patience" if self.federation.patience is not None else "federation.keep = 'best'"

    @property
    def evaluations(self) -> int:
        """How often a site is asked for scores in the whole run: after the rounds that are due, and the test."""
        return self.evaluations_after(0)

    def evaluations_after(self, round_: int) -> int:
        """How often a site is asked for scores after a round, the test too; computed, as there may be any number."""
        last, every = self.federation.rounds, self.evaluate_every
        return -(-last // every) - (round_ // every if round_ < last else -(-last // every)) + 1
