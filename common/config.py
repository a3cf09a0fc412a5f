"""What a coordinator, a site and a researcher may write: run.toml, site.toml, policy.toml.

TOML keys are kebab-case, fields snake_case. Unknown keys are refused with the nearest valid name. Lengths
are in mm or voxels and ordered like the array axes: (z, y, x) or (y, x). A run is identified by the SHA-256
of its canonical JSON (sorted keys, no spaces, defaults filled in), so two texts that mean the same run have
the same hash and a changed value never has.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import ConfigError
from common.faults import explain
from common.text import NAME_PATTERN

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """One TOML table: kebab-case keys, frozen, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=lambda field: field.replace("_", "-"),
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,  # neither has a canonical form
    )


class ModelConfig(Table):
    """The network. Inputs and classes follow from the data contract."""

    architecture: Literal["unet"] = "unet"
    dims: Literal[2, 3] = 2
    # Four levels: enough context for organs at 256 pixels, 0.4 million parameters, 1.6 MB on the wire.
    channels: tuple[Count, ...] = (16, 32, 64, 128)
    residual_units: Annotated[int, Field(ge=0, le=4)] = 1
    # Normalisation per sample. BatchNorm mixes patients, which voids differential privacy.
    norm: Literal["group", "instance"] = "instance"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _has_levels(self) -> Self:
        if len(self.channels) < 2:
            raise ValueError("channels needs at least two levels, such as [16, 32]")
        if self.norm == "group" and any(width % 4 for width in self.channels):
            raise ValueError("norm 'group' uses groups of 4 channels: make every entry of channels a multiple of 4")
        return self


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
    """Study to network input. Applied in this order: spacing, rows, intensity."""

    # Resample to this spacing; needs images that know theirs (DICOM, NIfTI). (y, x) or (z, y, x).
    spacing_mm: tuple[Positive, ...] | None = None
    # Resize to this many rows, keeping the aspect ratio; for photographs, which have no spacing.
    rows: Count | None = None
    # window: linear from [low, high] to [0, 1], clipped (CT in HU). zscore: mean 0, variance 1 per study.
    # percentile: 0.5th and 99.5th percentile of the study to [0, 1], clipped.
    intensity: Literal["window", "zscore", "percentile"] = "percentile"
    window: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.spacing_mm is not None and self.rows is not None:
            raise ValueError("set spacing-mm or rows, not both")
        if (self.intensity == "window") != (self.window is not None):
            raise ValueError("window = [low, high] goes with intensity = 'window', and only with it")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window must be [low, high] with low < high")
        return self


class AugmentationConfig(Table):
    """Random changes of a training crop that keep its label true."""

    flips: bool = True
    # Rotation in the image plane, drawn from [-x, x].
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    # Zoom drawn from [1 - x, 1 + x].
    scaling: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    # Gain drawn from [1 - x, 1 + x], offset from [-x, x], per crop.
    intensity: Annotated[float, Field(ge=0, le=0.5)] = 0.1


class TrainingConfig(Table):
    """One site's work in one round."""

    # Optimiser steps a site makes in a round; with DP, the Poisson-sampled steps.
    local_steps: Count = 20
    # Crops in a step, without DP. With DP the expected number of patients follows from the sampling rate.
    batch_size: Count = 4
    # Crop size in voxels after preprocessing; the network sees nothing larger in training.
    patch_size: tuple[Count, ...]
    # Share of crops centred on a foreground voxel, against class imbalance.
    foreground_fraction: Fraction = 0.5
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    # Over the whole run, from learning-rate down to 1 % of it.
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NonNegative = 1e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    augmentation: AugmentationConfig = AugmentationConfig()
    # Which weights a site trains: all; or the affine part of the normalisations, the PReLUs and the last block, for
    # fine-tuning a pretrained network with privacy, where every further weight costs noise.
    trainable: Literal["all", "norm-and-head"] = "all"


class FederationConfig(Table):
    """Rounds, and what counts as one."""

    rounds: Count
    # Fewest sites whose update must enter a round. Fewer: the run fails, it never pretends.
    quorum: Count = 2
    # None: "patients" without DP; with DP always "equal", because a count would leak.
    weighting: Literal["patients", "equal"] | None = None
    # A site that has not answered by then is left out of this round.
    round_timeout_s: Positive = 3600.0
    # How long to wait for the quorum to connect before the first round.
    join_timeout_s: Positive = 600.0
    # Evaluate the global model every so many rounds, and always after the last. None: after each round, and with DP
    # only after the last: there the sites add noise to their scores, and the more there are the more noise each has.
    evaluate_every: Count | None = None
    # An update whose distance from the global model (L2) exceeds this is refused.
    max_update_norm: Positive = 1000.0
    # What is evaluated and kept is an exponential moving average of the rounds' models; the rounds themselves go on
    # from the last one. 0: no average. It costs no privacy, and smooths what the noise does to single rounds.
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0


class AdaptiveClippingConfig(Table):
    """Let the clipping norm follow a quantile of the patients' gradient norms (Andrew et al., NeurIPS 2021)."""

    # Share of the sampled patients whose gradient should stay below the norm.
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    # The norm is multiplied by exp(-learning-rate * (measured share - quantile)) after each step.
    learning_rate: Positive = 0.2
    # Standard deviation of the noise on the number of patients below the norm. It is paid for by more noise on the
    # gradients, so that a step costs what it cost before.
    count_noise: Positive = 5.0


class PrivacyConfig(Table):
    """Differential privacy for a patient, whatever their number of slices."""

    # Spent over the whole run, per site.
    target_epsilon: Positive
    # None: 1 / (10 N), N the site's declared cohort size. A larger value is refused. So is one below 1e-10: a site's
    # budget is measured at the smallest delta of all its runs, and the accountant resolves little less.
    delta: Annotated[float, Field(ge=1e-10, lt=1)] | None = None
    # L2 bound on one patient's gradient; with adaptive-clipping each round's first.
    clipping_norm: Positive = 1.0
    adaptive_clipping: AdaptiveClippingConfig | None = None
    # Probability that a patient takes part in a step (Poisson sampling).
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    # Crops averaged into one patient's gradient.
    crops_per_patient: Count = 4


class InitialConfig(Table):
    """Weights that a run starts from, such as of a model pretrained on public images."""

    # Of the weights' file, hex: what every site may check in round 1.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    # What makes them public: which images they were trained on, and why no patient of a site is among them. Without
    # this statement a private run has no guarantee to print.
    public: Annotated[str, Field(min_length=10, max_length=500)] | None = None


class RunConfig(Table):
    """run.toml: all that defines a run."""

    name: Name
    model: ModelConfig = ModelConfig()
    data: DataConfig
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    training: TrainingConfig
    federation: FederationConfig
    privacy: PrivacyConfig | None = None
    # None: random weights from the seed.
    initial: InitialConfig | None = None
    # Initial weights, crops and split follow from it. The privacy noise never does.
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    # Bit-equal results on the same machine and thread count, at some cost in speed.
    deterministic: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        dims = self.model.dims
        if len(self.training.patch_size) != dims:
            raise ValueError(f"training.patch-size needs {dims} entries, one per axis of the model")
        stride = 2 ** (len(self.model.channels) - 1)
        if any(edge % stride for edge in self.training.patch_size):
            raise ValueError(f"training.patch-size must be multiples of {stride}, the network's total stride")
        spacing = self.preprocessing.spacing_mm
        if spacing is not None and len(spacing) != dims:
            raise ValueError(f"preprocessing.spacing-mm needs {dims} entries, one per axis of the model")
        if self.preprocessing.rows is not None and dims != 2:
            raise ValueError("preprocessing.rows is for dims = 2; use spacing-mm in 3D")
        if self.privacy is not None and self.federation.weighting == "patients":
            raise ValueError("federation.weighting 'patients' would reveal counts: with [privacy] use 'equal'")
        if self.privacy is not None and self.data.split == "proportional":
            raise ValueError(
                "data.split 'proportional' lets one patient move others between training and testing: with [privacy] "
                "use 'independent', or leave it out"
            )
        return self

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
    def evaluations(self) -> int:
        """How often a site is asked for scores in the whole run: after the rounds that are due, and the test."""
        return sum(map(self.validates_after, range(1, self.federation.rounds + 1))) + 1


class SourceConfig(Table):
    """One folder of images at a site."""

    # Relative paths are relative to the file that names them.
    path: str
    # None: chosen by looking at the files.
    kind: Literal["dicom", "nifti", "images", "mias"] | None = None
    # images: a CSV with one row per image, and its columns.
    csv: str | None = None
    image_column: str = "image"
    mask_column: str = "mask"
    patient_column: str = "id"
    # Rows of the CSV to use, such as {site = "drive"}.
    where: dict[str, str] = {}
    # nifti, and images without a CSV: sub-folders; image and label share the file name.
    images: str = "images"
    labels: str = "labels"
    # nifti and images: of an image of several files (NAME_0000, NAME_0001, as nnU-Net keeps channels) the one to use.
    # None: all, each a channel.
    channel: Annotated[int, Field(ge=0)] | None = None
    # Regular expression whose first group names the patient within a file or CSV name.
    patient_pattern: str | None = None
    # Local label value, segment label, code of a segment's property type (such as "SCT:10200004") or ROI name -> class
    # of the run. Empty: names and order as in the run.
    label_map: dict[str, Name] = {}
    # dicom: a voxel of a fractional segmentation counts from this share of its maximum on.
    fractional_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    # A label that marks nothing is a finding of its own ("no lesion here"). Without this it is taken for unfinished
    # work, and its study set aside as label-empty.
    empty_labels_are_negative: bool = False
    # A person has looked at the labels that changed on their way or contradict themselves (holes between slices, parts
    # that fall outside of the image, two versions) and wants them as they are. Without this they are label-doubtful.
    labels_checked: bool = False
    # dicom: a person has looked at the images that say they carry text, and at screenshots, and found no patient
    # named. Without this they are set aside.
    pixel_text_checked: bool = False
    # Only these patients (as the source names them). Empty: all. Used to share one archive among simulated sites.
    patients: tuple[str, ...] = ()


Device = Literal["auto", "cpu", "cuda"]


class SiteConfig(Table):
    """site.toml: what a hospital offers. Stays at the hospital."""

    name: Name
    data: tuple[SourceConfig, ...] = ()
    # Publicly declared number of patients: delta and the expected number of patients in a step follow from it.
    # None: the number found for the first private run of a modality, rounded up to a multiple of 5, and kept from then
    # on (state/declared.json): it must not follow the live count.
    cohort_size: Count | None = None
    # None: all cores. 1 for results that must be bit-equal elsewhere.
    threads: Count | None = None
    device: Device = "auto"


# What the exit gate knows of; a policy may shorten the list. dice-<class> goes with dice.
Metric = Literal["dice", "foreground-dice", "iou", "sensitivity", "specificity", "precision", "recall", "train-loss"]
METRICS: tuple[Metric, ...] = get_args(Metric)

Scores = Literal["none", "noised", "exact"]

HOURS_PATTERN = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"


class PolicyConfig(Table):
    """policy.toml: what the hospital allows. Nothing the coordinator sends can change it. The default is strict."""

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

    # What may leave beside weights. Losses never do under differential privacy.
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


TableType = TypeVar("TableType", bound=Table)


def load(model: type[TableType], path: Path) -> TableType:
    """Read one TOML file.

    Raises:
        ConfigError: not found, not TOML, or not valid; the message names file, key and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Give the path of a TOML file in UTF-8.") from error
    return parse(model, text, source=str(path))


def parse(model: type[TableType], text: str, source: str = "text") -> TableType:
    """Parse TOML text; see `load`."""
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(
            f"{source} is nested too deeply. Write tables and lists as the documentation does."
        ) from error
    except ValueError as error:  # also a number of too many digits
        raise ConfigError(f"{source} is not valid TOML: {error}. Correct that line.") from error
    return validate(model, values, source, from_file=True)


def validate(
    model: type[TableType], values: Mapping[str, Any], source: str = "text", *, from_file: bool = False
) -> TableType:
    """Check a parsed table; see `load`."""
    try:
        # Fields have underscores, and code may use them; a file may not.
        return model.model_validate(values, by_alias=True, by_name=not from_file)
    except ValidationError as error:
        problems = "; ".join(explain(model, problem) for problem in error.errors())
        raise ConfigError(f"{source}: {problems}.") from error


def canonical(table: Table) -> str:
    """The one JSON text of a table: kebab-case keys, sorted, defaults filled in."""
    return json.dumps(
        table.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def sha256_of(table: Table) -> str:
    """SHA-256 (hex) of `canonical`: the identity of a run or policy."""
    return hashlib.sha256(canonical(table).encode()).hexdigest()


def from_canonical(model: type[TableType], text: str) -> TableType:
    """Inverse of `canonical`.

    Raises:
        ConfigError: not JSON, or not valid.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the {model.__name__} is not valid JSON ({type(error).__name__})") from error
    return validate(model, values, source=model.__name__, from_file=True)
