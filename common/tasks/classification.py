"""Classification: which classes an image shows as a whole, or which class a marked region is of.

An image is a picture, a series or a volume, or with `of = "region"` what lies around one marked region. The outputs of
a network are taken together by their mean, over voxels, windows and slices, before they become probabilities: softmax
over "none of them" and the K classes (of a region, which has a class, over the K alone), or with `multi-label` a
sigmoid for each class.

Scores are over all images of the held-out patients of a site, each image once, as studies of mammography count: images
of one patient may show different things, so a patient has no class of their own. A score that cannot be told there,
such as AUROC where all images show one class, is not told. Unqualified scores are means over the classes 1..K that they
can be told of; definitions as in scikit-learn: `common.measures.ranking`, Sokolova and Lapalme, Information Processing
and Management 2009. How well probabilities are calibrated is no score: it asks for more images than a site holds out.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from common.errors import DataError, ErrorCode
from common.losses.loss import Price
from common.tasks.task import Task, Told, against_others, mean_scores

if TYPE_CHECKING:
    from torch import Tensor

# A label is a sum of powers of 2, and must be exact in float32 on its way through augmentation.
_MOST_LABELS = 20


class Classification(Task):
    """Logits of each image: of none of the classes, unless there always is one, and of each class."""

    kind: Literal["classification"] = "classification"
    # image: as a whole. region: each region that a label marks, by the crop around it.
    of: Literal["image", "region"] = "image"
    # An image may show several classes at once.
    multi_label: bool = False
    # In the loss: of none of them and of each class, in label order; of regions and with multi-label of each class.
    class_weights: tuple[Price, ...] | None = None
    # Above 0 the loss is focal: images that are answered well already count less (Lin et al., ICCV 2017).
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 0.0
    # This share of the certainty of a label is spread over all classes (Szegedy et al., CVPR 2016).
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    SCORES: ClassVar[tuple[str, ...]] = (
        *("auroc", "auprc", "balanced-accuracy", "accuracy"),
        *("sensitivity", "specificity", "precision", "recall", "f1"),
    )
    SHOWN: ClassVar[tuple[str, ...]] = tuple(name for name in SCORES if name != "recall")

    TELLS: ClassVar[bool] = True

    @property
    def label(self) -> Literal["map", "class", "classes"]:
        """A map marks regions."""
        return "map" if self.of_regions else "classes" if self.multi_label else "class"

    @property
    def of_regions(self) -> bool:
        """As it says."""
        return self.of == "region"

    def outputs(self, classes: int) -> int:
        """None of them has an output of its own where one class at most is shown, and where none may be."""
        return classes if self._without_none else 1 + classes

    def refuse(self, classes: int) -> str | None:
        """What cannot be told apart."""
        if self.of_regions and self.multi_label:
            return "task.of 'region' gives a region one class: take out multi-label"
        if self.of_regions and classes == 1:
            return "task.of 'region' tells classes of regions apart, and data.classes names one: name two or more"
        if self.multi_label and classes > _MOST_LABELS:
            return f"task.multi-label is for {_MOST_LABELS} classes at most, and data.classes names {classes}"
        if self.class_weights is not None and len(self.class_weights) != self.outputs(classes):
            what = "each class" if self._without_none else "none of the classes, which comes first, and each class"
            return (
                f"task.class-weights has {len(self.class_weights)} entries; write {self.outputs(classes)}, one for "
                f"{what}"
            )
        return None

    def mark(self, classes: Sequence[int]) -> int:
        """The class, 0 for none; with multi-label the sum of 2^(k - 1) over the classes k."""
        if self.multi_label:
            return sum(1 << (number - 1) for number in set(classes))
        if len(set(classes)) > 1:
            raise DataError(
                f"the image shows {len(set(classes))} of the run's classes, and the run gives an image one. Leave all "
                'but one out by label-map in site.toml ("background"), or ask for a run with multi-label.',
                ErrorCode.UNSUPPORTED,
            )
        return classes[0] if classes else 0

    def loss(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        """Cross entropy of each image, weighted, focal or smoothed as the settings say; the mean over the images."""
        import torch  # noqa: PLC0415 - heavy
        from torch.nn import functional  # noqa: PLC0415

        logits, marks = _pooled(outputs).float(), _mark_of(labels)
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        if self.multi_label:
            truth = _bits(marks, logits.shape[1]).float()
            aim = truth + self.label_smoothing * (0.5 - truth)
            each = functional.binary_cross_entropy_with_logits(logits, aim, reduction="none", pos_weight=weights)
            if self.focal_gamma:
                each = each * (truth - logits.sigmoid()).abs() ** self.focal_gamma
            return each.mean()
        target = (marks - 1).clamp(min=0) if self._without_none else marks
        each = functional.cross_entropy(
            logits, target, weight=weights, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.focal_gamma:
            chance = torch.log_softmax(logits, 1).gather(1, target[:, None])[:, 0].exp()
            each = each * (1 - chance) ** self.focal_gamma
        return each.mean()

    def answer(self, outputs: "Tensor") -> "Tensor":
        """(S, outputs, *spatial), or (S, outputs), to logits (S, outputs) float32."""
        return _pooled(outputs).float()

    def log_odds(self, outputs: "Tensor") -> "Tensor":
        """Of each class by itself with multi-label, else against the others and none of them."""
        logits = _pooled(outputs)
        if self.multi_label:
            return logits
        odds = against_others(logits)
        return odds if self._without_none else odds[:, 1:]

    def count(self, answers: "Tensor", labels: "Tensor", classes: int) -> "Tensor":
        """(images, outputs + 1) float64: the logits of each image of a study, and its label as `mark` gives it."""
        import torch  # noqa: PLC0415 - heavy

        marks = _mark_of(labels)
        if self.whole:  # slices of one image
            answers, marks = answers.mean(0, keepdim=True), marks.amax(0, keepdim=True)
        return torch.cat([answers.double(), marks[:, None].double()], dim=1).cpu()

    def together(self, counts: "Sequence[Tensor]") -> "Tensor":
        """One below the other."""
        import torch  # noqa: PLC0415 - heavy

        return torch.cat(list(counts))

    def scores(
        self,
        patients: "Sequence[Tensor]",
        classes: Sequence[str],
        *,
        every_class: bool = False,
    ) -> dict[str, float]:
        """See the module."""
        if not sum(map(len, patients)):
            return {}
        rows = self.together(patients)
        chances, marks = self.chances(rows[:, :-1]), rows[:, -1].long()
        if self.multi_label:
            truth, claimed = _bits(marks, len(classes)), chances >= 0.5
        else:
            # Of equal chances the first, as for voxels.
            first = 1 if self._without_none else 0
            truth, claimed = (_one_hot(one, len(classes)) for one in (marks, chances.argmax(1) + first))
        of_class = chances[:, -len(classes) :]
        found = _rankings(of_class, truth) | _decisions(claimed, truth)
        if not self.multi_label:
            found |= _shares(claimed, truth)
        return {name: found[name] for name in self.SCORES if name in found}

    def of_each(self, patients: "Sequence[Tensor]", classes: Sequence[str]) -> list[dict[str, float]]:
        """The share of a patient's images that are answered rightly: areas and the like need several patients."""
        return [{"accuracy": self.scores([one], classes)["accuracy"]} if len(one) else {} for one in patients]

    def chances(self, logits: "Tensor") -> "Tensor":
        """(N, outputs) logits, means over slices and windows, to probabilities, those of the classes last."""
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def tell(self, answers: "Tensor", classes: Sequence[str]) -> Told:
        """See the module; of several outputs that are equal the first is answered."""
        chances = [float(one) for one in self.chances(answers.double().mean(0, keepdim=True))[0]]
        named = dict(zip(classes, chances[-len(classes) :], strict=True))
        if self.multi_label:
            return Told(named, None, tuple(name for name, chance in named.items() if chance >= 0.5))
        none = None if self._without_none else chances[0]
        likeliest = max(named, key=lambda name: named[name])
        return Told(named, none, () if none is not None and none >= named[likeliest] else (likeliest,))

    def missed(self, scores: Mapping[str, float]) -> str | None:
        """Where no image of a class is found at all."""
        return "what is labelled" if scores.get("sensitivity") == 0 else None

    @property
    def _without_none(self) -> bool:
        return self.multi_label or self.of_regions


def _pooled(outputs: "Tensor") -> "Tensor":
    """The mean over voxels, of a network that answers each."""
    return outputs if outputs.ndim == 2 else outputs.flatten(2).mean(2)


def _mark_of(labels: "Tensor") -> "Tensor":
    """(N, *spatial) to (N) int64. A label is one value, with zeros only where a crop leaves the image."""
    return labels.flatten(1).amax(1).long()


def _bits(marks: "Tensor", classes: int) -> "Tensor":
    """(N) to (N, K) bool."""
    import torch  # noqa: PLC0415 - heavy

    return (marks[:, None] >> torch.arange(classes, device=marks.device)) % 2 == 1


def _one_hot(numbers: "Tensor", classes: int) -> "Tensor":
    """(N) of 0..K to (N, K) bool; of 0 all false."""
    import torch  # noqa: PLC0415 - heavy

    return numbers[:, None] == torch.arange(1, classes + 1)


def _rankings(chances: "Tensor", truth: "Tensor") -> dict[str, float]:
    """Areas, means over the classes that some images show and others do not."""
    from common.measures.ranking import auroc, average_precision  # noqa: PLC0415 - torch

    pairs = [(auroc(*one), average_precision(*one)) for one in zip(chances.T, truth.T, strict=True)]
    return mean_scores([{"auroc": area, "auprc": below} for area, below in pairs if area is not None and below])


def _decisions(claimed: "Tensor", truth: "Tensor") -> dict[str, float]:
    """One class against the rest, means over the classes; claimed, truth: (N, K) bool."""
    rows: list[dict[str, float]] = []
    clear: list[dict[str, float]] = []
    balanced: list[dict[str, float]] = []
    for said, shown in zip(claimed.T, truth.T, strict=True):
        hit, extra = int((said & shown).sum()), int((said & ~shown).sum())
        positive, negative = int(shown.sum()), int((~shown).sum())
        if positive:
            rate = hit / positive
            precision = hit / (hit + extra) if hit + extra else 0.0
            f1 = 2 * hit / (positive + hit + extra)
            rows.append({"sensitivity": rate, "recall": rate, "precision": precision, "f1": f1})
        if negative:
            clear.append({"specificity": 1 - extra / negative})
        if positive and negative:
            balanced.append({"balanced-accuracy": (hit / positive + 1 - extra / negative) / 2})
    accuracy = {"accuracy": float((claimed == truth).double().mean())}
    return mean_scores(rows) | mean_scores(clear) | mean_scores(balanced) | accuracy


def _shares(claimed: "Tensor", truth: "Tensor") -> dict[str, float]:
    """Where an image has one answer: the share of right ones; and its mean over what is shown, if that is not one."""
    import torch  # noqa: PLC0415 - heavy

    right = (claimed == truth).all(1)
    shown = torch.where(truth.any(1), truth.int().argmax(1) + 1, 0)
    kinds = sorted(set(shown.tolist()))
    found = {"accuracy": float(right.double().mean())}
    if len(kinds) > 1:
        found["balanced-accuracy"] = sum(float(right[shown == kind].double().mean()) for kind in kinds) / len(kinds)
    return found


__all__ = ["Classification"]
