"""Segmentation: a class for every voxel, or several. One of the losses; overlap with the label, patient by patient.

With `multi-label` classes may overlap, such as a lesion and the liver around it: each has an output and a probability
of its own (a sigmoid), and is there where that is above 1/2. A label is then a map of bits: `common.labelmap`.

Every score is a ratio of voxel counts. The unit is the patient: the matrices of all of a patient's images are added
before any ratio is taken, so that an archive of single slices scores as the volumes it was cut from, and no slice that
happens to be empty counts as a 1 or a 0. A site's scores are means over its patients.

Within a patient 0/0 is 1: where nothing was to be found or claimed, nothing was wrong. So a patient without a class
scores 1 for it when none is predicted; with any false voxel the Dice is 0. A class that NO patient of a site has is not
scored there: it would be 1 for a model that never predicts it, and says nothing of one that finds it.

Unqualified scores are means over the classes scored; specificity, which asks for no voxel of a class, is over all
classes; `foreground-dice` merges the classes into one. "Sensitivity" and "recall" are the same number under the names
of two readerships. Definitions: Taha and Hanbury, BMC Medical Imaging 2015.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from common.document.formats import Since
from common.labelmap import MOST_OVERLAPPING
from common.losses import LOSS_CHOICE, Loss
from common.tasks.task import Task, against_others, mean_scores

if TYPE_CHECKING:
    from torch import Tensor


class Segmentation(Task):
    """Logits for every voxel: of the background and of each class; with multi-label of each class alone."""

    kind: Literal["segmentation"] = "segmentation"
    # Classes may overlap.
    multi_label: Annotated[bool, Since(2)] = False
    criterion: Annotated[Loss, LOSS_CHOICE, Field(alias="loss")] = LOSS_CHOICE.default()

    SCORES: ClassVar[tuple[str, ...]] = (
        *("dice", "foreground-dice", "iou", "sensitivity", "specificity", "precision"),
        "recall",
    )
    SHOWN: ClassVar[tuple[str, ...]] = SCORES[:-1]
    MERGED: ClassVar[str | None] = "foreground-dice"
    BY_CLASS: ClassVar[bool] = True
    DRAWS: ClassVar[bool] = True

    @property
    def overlaps(self) -> bool:
        """As it says."""
        return self.multi_label

    def outputs(self, classes: int) -> int:
        """The background has a channel of its own where it is what no class is."""
        return classes if self.multi_label else 1 + classes

    def refuse(self, classes: int) -> str | None:
        """More classes than a map has bits, and what its loss cannot take."""
        if self.multi_label and classes > MOST_OVERLAPPING:
            return (
                f"task.multi-label is for {MOST_OVERLAPPING} classes at most, and data.classes names {classes}: leave "
                "some out, or make two runs"
            )
        return self.criterion.refuse(classes, overlap=self.multi_label)

    def loss(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean of what [task.loss] says of each sample."""
        return self.criterion.of_each(outputs, labels, overlap=self.multi_label).mean()

    def answer(self, outputs: "Tensor") -> "Tensor":
        """(S, outputs, *spatial) to labels (S, *spatial) int64."""
        if self.multi_label:
            import torch  # noqa: PLC0415 - heavy

            bits = [(outputs[:, k] > 0).long() << k for k in range(outputs.shape[1])]
            return torch.stack(bits).sum(0)
        # max().indices and not argmax: along this axis torch's argmax is 15 times slower on a CPU.
        return outputs.max(1).indices

    def chances(self, outputs: "Tensor") -> "Tensor":
        """Softmax over background and classes; with multi-label a sigmoid of each class."""
        return outputs.sigmoid() if self.multi_label else outputs.softmax(1)

    def log_odds(self, outputs: "Tensor") -> "Tensor":
        """Of each class against the background and the other classes; with multi-label of each by itself."""
        return outputs if self.multi_label else against_others(outputs)[:, 1:]

    def count(self, answers: "Tensor", labels: "Tensor", classes: int) -> "Tensor":
        """Over all slices the (K+1, K+1) confusion matrix; with multi-label the (K+1, 2, 2) tables, see `crossed`."""
        from common.measures.metrics import confusion, crossed  # noqa: PLC0415 - torch

        return crossed(answers, labels, classes) if self.multi_label else confusion(answers, labels, classes)

    def scores(
        self, patients: "Sequence[Tensor]", classes: Sequence[str], *, every_class: bool = False
    ) -> dict[str, float]:
        """Means over the patients; where no patient has any class, specificity alone."""
        return mean_scores(self._of_each(patients, classes, every_class=every_class))

    def of_each(self, patients: "Sequence[Tensor]", classes: Sequence[str]) -> list[dict[str, float]]:
        """What `scores` is the mean of: the classes that any of them has are scored of all."""
        return self._of_each(patients, classes, every_class=False)

    def missed(self, scores: Mapping[str, float]) -> str | None:
        """Everything, or single classes: scores such as specificity look well all the same."""
        if scores.get("sensitivity") == 0:
            return "what is labelled"
        start = self.of_class("")
        classes = sorted(
            name.removeprefix(start) for name, value in scores.items() if name.startswith(start) and not value
        )
        return ", ".join(classes) if classes and self.headline in scores else None

    def _of_each(
        self, patients: "Sequence[Tensor]", classes: Sequence[str], *, every_class: bool
    ) -> list[dict[str, float]]:
        numbers = range(1, len(classes) + 1)
        present = {index for index in numbers if every_class or any(labelled(m, index) for m in patients)}
        return [scores_of(matrix, classes, present) for matrix in patients]


def scores_of(matrix: "Tensor", classes: Sequence[str], present: Collection[int] | None = None) -> dict[str, float]:
    """The scores of a patient's counts, row the truth; present: the classes that are scored, None: all."""
    each = {index: _binary(*_counts(matrix, index)) for index in range(1, len(classes) + 1)}
    scored = {index: values for index, values in each.items() if present is None or index in present}
    found = mean_scores(list(scored.values()))
    found["specificity"] = mean_scores(list(each.values()))["specificity"]
    if not scored:
        return found
    found["foreground-dice"] = _binary(*_merged(matrix))["dice"]
    return found | {f"dice-{classes[index - 1]}": values["dice"] for index, values in scored.items()}


def labelled(matrix: "Tensor", index: int) -> int:
    """Voxels that are class `index` in truth."""
    return int(matrix[index, 1].sum() if matrix.ndim == 3 else matrix[index].sum())


def _counts(matrix: "Tensor", index: int) -> tuple[int, int, int, int]:
    """Voxels of a class hit, claimed falsely, missed, and rightly not claimed."""
    if matrix.ndim == 3:  # of each class by itself
        (clear, extra), (missed, hit) = matrix[index].tolist()
        return hit, extra, missed, clear
    hit = int(matrix[index, index])
    extra = int(matrix[:, index].sum()) - hit
    missed = int(matrix[index].sum()) - hit
    return hit, extra, missed, int(matrix.sum()) - hit - extra - missed


def _merged(matrix: "Tensor") -> tuple[int, int, int, int]:
    """The same of all classes as one."""
    if matrix.ndim == 3:
        return _counts(matrix, 0)
    parts = (matrix[1:, 1:], matrix[:1, 1:], matrix[1:, :1], matrix[:1, :1])
    hit, extra, missed, clear = (int(part.sum()) for part in parts)
    return hit, extra, missed, clear


def _binary(hit: int, extra: int, missed: int, clear: int) -> dict[str, float]:
    return {
        "dice": _ratio(2 * hit, 2 * hit + extra + missed),
        "iou": _ratio(hit, hit + extra + missed),
        "sensitivity": _ratio(hit, hit + missed),
        "specificity": _ratio(clear, clear + extra),
        "precision": _ratio(hit, hit + extra),
        "recall": _ratio(hit, hit + missed),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


__all__ = ["Segmentation", "labelled", "scores_of"]
