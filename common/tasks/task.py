"""What a task is: what the network puts out for an image, the loss, and how good an answer is.

Settings are the [task] table of a run, read by processes that hold no torch: a task imports it where it computes. Every
label is a map of classes on the image's grid (`common.labelmap`), 0 the background, or a constant one where the classes
are those of the image as a whole; what a task makes of it is its own.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from common import labelmap
from common.document.table import Table
from common.errors import ConfigError, DataError, ErrorCode

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Told:
    """What is said of one image as a whole.

    chances: the probability of each class, by name. none: of none of them; None where there is always one, or several
    may be. answer: the classes that are answered.
    """

    chances: dict[str, float]
    none: float | None
    answer: tuple[str, ...]


class Task(Table):
    """What is learned. Scores are ratios in [0, 1], higher is better, and their names are a policy's and a report's."""

    kind: str

    # All that it may tell of a site's patients. The first is the headline; a policy may shorten the list.
    SCORES: ClassVar[tuple[str, ...]]
    # Of them, what a table of people shows, in this order.
    SHOWN: ClassVar[tuple[str, ...]]
    # The headline of all classes taken as one, where there is such a score.
    MERGED: ClassVar[str | None] = None
    # Whether each patient by themselves has a headline score of each class, named `of_class`, and a site's are their
    # means: only such scores can be noised (common/privacy/scores.py). Of another task none leaves a private run,
    # unless the hospital lets exact ones go.
    BY_CLASS: ClassVar[bool] = False
    # Whether an answer is a label map of the image, as a prediction writes it and an overlay draws it.
    DRAWS: ClassVar[bool] = False
    # Whether an answer is said in words and numbers of the image as a whole: `tell`.
    TELLS: ClassVar[bool] = False

    @property
    def label(self) -> Literal["map", "class", "classes"]:
        """What the label of an image is: a map, or of the image as a whole one class at most, or several."""
        return "map"

    @property
    def whole(self) -> bool:
        """Whether the label is of an image as a whole; then `mark` says what stands at every voxel."""
        return self.label != "map"

    @property
    def of_regions(self) -> bool:
        """Whether each region that a map marks is an image of its own, cut out around it."""
        return False

    @property
    def overlaps(self) -> bool:
        """Whether the classes of a map may overlap, and its values are bits; see `common.labelmap`."""
        return False

    def marks(self, labels: "Tensor", number: int) -> "Tensor":
        """Where a label shows class `number`, from 1: bool of the labels' shape. Who compares the two asks here."""
        return labelmap.marks(labels, number, overlap=self.overlaps or self.label == "classes")

    @property
    def headline(self) -> str:
        """The score that stands for all: in progress, comparisons and curves."""
        return self.SCORES[0]

    def of_class(self, label: str) -> str:
        """The name of a class's own headline score."""
        return f"{self.headline}-{label}"

    def refuse(self, classes: int) -> str | None:
        """Why it cannot be the task of so many classes, the background not counted; None: it can."""
        return None

    @abstractmethod
    def outputs(self, classes: int) -> int:
        """How many channels the network puts out for so many classes, the background not counted."""

    @abstractmethod
    def loss(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean over the samples of a loss of each by itself; one that couples samples voids differential privacy.

        Args:
            outputs: (N, outputs, *spatial) of the network.
            labels: (N, *spatial) int64, as `marks` reads them.
        """

    @abstractmethod
    def answer(self, outputs: "Tensor") -> "Tensor":
        """What the network says of each image: (S, outputs, *spatial) float32 to (S, ...)."""

    def chances(self, outputs: "Tensor") -> "Tensor":
        """Outputs (S, outputs, ...) to probabilities, those of the K classes last.

        Raises:
            ConfigError: see `log_odds`.
        """
        return self.log_odds(outputs).sigmoid()

    def log_odds(self, outputs: "Tensor") -> "Tensor":
        """log(p / (1 - p)) of each class, what an explanation explains: (S, outputs, ...) to (S, K, ...).

        Of an answer for the image as a whole (S, K). Derivatives pass.

        Raises:
            ConfigError: the task has no such number.
        """
        raise ConfigError(
            f"the task {self.kind} has no probability of each class, and so nothing to explain. Give a model that "
            "segments or classifies."
        )

    @abstractmethod
    def count(self, answers: "Tensor", labels: "Tensor", classes: int) -> "Tensor":
        """Counts, on the CPU, that add up over a patient's images, and from which `scores` follow.

        Args:
            answers: (S, ...) as `answer` gives them, of one study.
            labels: (S, *spatial) integer, as `marks` reads them.
            classes: K.
        """

    def mark(self, classes: Sequence[int]) -> int:
        """What stands at every voxel of the label of an image that shows these classes of 1..K; for tasks of `whole`.

        Raises:
            DataError: an image of the task may not show so many, or is labelled by a map alone.
        """
        raise DataError(
            f"the image has classes as a whole, and the task {self.kind} is labelled by maps. Give a map, or ask for a "
            "run of another task.",
            ErrorCode.UNSUPPORTED,
        )

    def together(self, counts: "Sequence[Tensor]") -> "Tensor":
        """What is known of a patient, from the counts of each of their images."""
        import torch  # noqa: PLC0415 - heavy

        return torch.stack(list(counts)).sum(dim=0)

    @abstractmethod
    def scores(
        self, patients: "Sequence[Tensor]", classes: Sequence[str], *, every_class: bool = False
    ) -> dict[str, float]:
        """Scores of a site.

        Args:
            patients: the counts of each held-out patient.
            classes: names of 1..K.
            every_class: also score a class that none of them has; which names are there then tells nothing of them.

        Returns:
            Those of SCORES that can be told, and with BY_CLASS of each class scored; of no patients, nothing.
        """

    def of_each(self, patients: "Sequence[Tensor]", classes: Sequence[str]) -> list[dict[str, float]]:
        """What each of a site's patients scores alone; nothing, where a score is of several images together.

        Args:
            patients: the counts of each.
            classes: names of 1..K.
        """
        return [{} for _ in patients]

    def tell(self, answers: "Tensor", classes: Sequence[str]) -> Told:
        """What the answers for a study (S, ...) say of it as a whole; for tasks with TELLS.

        Raises:
            ConfigError: the task is none of these.
        """
        raise ConfigError(f"the task {self.kind} says nothing of an image as a whole. Give a model that classifies.")

    def missed(self, scores: Mapping[str, float]) -> str | None:
        """What a site's model finds nothing of, to be read after "nothing of", though other scores look well."""
        return None


def of_local(score: str) -> str:
    """The name under which a score leaves of a model that a site trained alone, beside that of the shared one."""
    return f"local-{score}"


def against_others(logits: "Tensor") -> "Tensor":
    """(S, outputs, ...) of a softmax to log(p / (1 - p)) of each: its logit less that of all others together."""
    import torch  # noqa: PLC0415 - heavy

    others = [torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1) for k in range(logits.shape[1])]
    return logits - torch.stack(others, 1)


def mean_scores(rows: "Sequence[dict[str, float]]") -> dict[str, float]:
    """Mean of each score over rows that all have the same ones; of no rows, no scores."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


__all__ = ["Task", "Told", "against_others", "mean_scores", "of_local"]
