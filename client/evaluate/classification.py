"""What the scored images of a classification amount to: over all images, with intervals that draw patients.

An image, or a region of one, is answered as in a run's evaluation (client/data/cohort.py, common/tasks): prepared, and
of regions cut out at the size that the network sees. Each counts once; a patient may have several. An AUROC has
DeLong's interval where every patient has one image, which that asks for, and else the bootstrap's over patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.cohort import prepared
from client.data.isolate.isolation import Reading
from client.data.keep.split import Split
from client.data.regions import cut_regions
from client.evaluate.evaluation import Case, Cases
from client.evaluate.findings import SEED, figure, number
from client.evaluate.picture import draw
from client.predict.memory import within_memory
from client.predict.prediction import Segmenter
from common.errors import ConfigError, DataError
from common.learning.inference import predict_stack
from common.measures import calibration
from common.measures.intervals import Interval, auroc_interval, bootstrap_each
from common.measures.ranking import auroc, average_precision
from common.measures.threshold import Threshold, chosen
from common.tasks.classification import Classification

RELIABILITY_BINS = 10
NONE = "none of them"


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """One study. rows: (images, outputs + 1), as the task counts. digest: of the study's image."""

    rows: NDArray[np.float64]
    digest: str = field(repr=False)
    picture: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class Image:
    """One image. chances, truth, answer: (K,) of each class; right: the chance that was given to what is labelled."""

    patient: str
    place: Split
    study: int
    at: int  # of the study's images, from 1
    chances: NDArray[np.float64]
    truth: NDArray[np.bool_]
    answer: NDArray[np.bool_]
    right: float


@dataclass(frozen=True, eq=False)
class ClassFindings:
    """One class against the rest; None where images are all of one kind."""

    images: int  # that show it
    area: Interval | None
    method: str  # of the area's interval
    precision: Interval | None
    reliability: calibration.Reliability
    threshold: Threshold | None  # by Youden, on the validation patients
    sensitivity: float | None  # at that threshold
    specificity: float | None


@dataclass(frozen=True, eq=False)
class Classified:
    """Everything that is told of the images; the worst first."""

    classes: tuple[str, ...]
    names: tuple[str, ...]  # of the confusion matrix; none with several classes an image
    images: tuple[Image, ...]
    scores: Mapping[str, Interval]
    of_class: Mapping[str, ClassFindings]
    counts: NDArray[np.int64] | None


def score(reading: Reading, segmenter: Segmenter) -> ScoredImages:
    """Answer a study's images.

    Raises:
        DataError: the study cannot be prepared, or does not fit into memory.
    """
    run = segmenter.run
    with within_memory():
        done = prepared(reading, run)
        if isinstance(done, DataError):
            raise done
        images, labels = done.images, done.labels
        if run.task.of_regions:
            images, labels = cut_regions(images, labels, run, held_out=True)
        answers = predict_stack(segmenter.network, images, run, segmenter.device)
    rows = run.task.count(answers, labels, len(run.data.classes)).numpy()
    return ScoredImages(rows, reading.digest, draw(reading.study, None))


def classified(cases: Cases[ScoredImages], task: Classification, classes: tuple[str, ...]) -> Classified:
    """Take the images of a site together."""
    images = list(_images(cases.cases, task, len(classes)))
    patients = [torch.cat([torch.from_numpy(case.scored.rows) for case in group]) for group in cases.patients.values()]
    rng = np.random.default_rng(SEED)
    names = list(task.scores(patients, classes))

    def scores(drawn: NDArray[np.int64]) -> list[float]:
        found = task.scores([patients[at] for at in drawn], classes)
        return [found.get(name, math.nan) for name in names]

    validation = [] if cases.wanted in ("all", "validation") else list(_images(cases.validation, task, len(classes)))
    intervals = bootstrap_each(np.arange(len(patients)), scores, rng)
    labels = () if task.multi_label else classes if task.of_regions else (NONE, *classes)
    return Classified(
        classes,
        labels,
        tuple(sorted(images, key=lambda one: (one.right, one.patient, one.study, one.at))),
        dict(zip(names, intervals, strict=True)),
        {name: _class(images, validation, at, rng) for at, name in enumerate(classes)},
        _confusion(images, labels, classes) if labels else None,
    )


def as_summary(result: Classified) -> dict[str, Any]:
    """Plain values."""
    names = list(result.names)
    matrix = {} if result.counts is None else {"classes": names, "truth-by-answer": result.counts.tolist()}
    return {
        "images": {"scored": len(result.images)},
        "scores": {name: figure(one) for name, one in result.scores.items()},
        "by-class": {
            name: {
                "images": one.images,
                "roc-auc": figure(one.area),
                "roc-auc-interval": one.method,
                "average-precision": figure(one.precision),
                "calibration-error": number(calibration.calibration_error(one.reliability)),
                "brier": number(calibration.brier(one.reliability)),
                "threshold": None if one.threshold is None else one.threshold.value,
                "sensitivity-at-threshold": number(one.sensitivity),
                "specificity-at-threshold": number(one.specificity),
            }
            for name, one in result.of_class.items()
        },
        "confusion": matrix,
    }


def _images(cases: Sequence[Case[ScoredImages]], task: Classification, classes: int) -> "Sequence[Image]":
    found = []
    for case in cases:
        rows = torch.from_numpy(case.scored.rows)
        every = task.chances(rows[:, :-1]).clamp(0, 1).numpy()
        chances, marks = every[:, -classes:], rows[:, -1].long().numpy()
        numbers = np.arange(classes)
        if task.multi_label:
            truth, answer = (marks[:, None] >> numbers) % 2 == 1, chances >= 0.5
            right = np.where(truth, chances, 1 - chances).mean(axis=1)
        else:
            first = 0 if every.shape[1] > classes else 1
            truth, answer = marks[:, None] == numbers + 1, every.argmax(axis=1)[:, None] + first == numbers + 1
            right = every[np.arange(len(every)), marks - first]
        for at in range(len(rows)):
            one = Image(
                case.patient, case.place, case.number, at + 1, chances[at], truth[at], answer[at], float(right[at])
            )
            found.append(one)
    return found


def _class(images: Sequence[Image], validation: Sequence[Image], at: int, rng: np.random.Generator) -> ClassFindings:
    scores, truth = _column(images, at)
    area, method, precision = None, "none", None
    if 0 < truth.sum() < len(truth):
        patients = [one.patient for one in images]
        groups = [np.flatnonzero([name == one for name in patients]) for one in dict.fromkeys(patients)]

        def measures(drawn: NDArray[np.int64]) -> list[float]:
            some = np.concatenate([groups[group] for group in drawn])
            pair = torch.from_numpy(scores[some]), torch.from_numpy(truth[some])
            return [math.nan if value is None else value for value in (auroc(*pair), average_precision(*pair))]

        area, precision = bootstrap_each(np.arange(len(groups)), measures, rng)
        method = "bootstrap"
        if len(groups) == len(images):
            area, method = auroc_interval(scores, truth), "delong"
    threshold = sensitivity = specificity = None
    if validation:
        try:
            threshold = chosen(*_column(validation, at))
        except ConfigError:  # all validation images are of one kind
            threshold = None
    if threshold is not None:
        called = scores >= threshold.value
        sensitivity = float(called[truth].mean()) if truth.any() else None
        specificity = float(1 - called[~truth].mean()) if not truth.all() else None
    sums = calibration.reliability(scores, truth, RELIABILITY_BINS)
    return ClassFindings(int(truth.sum()), area, method, precision, sums, threshold, sensitivity, specificity)


def _column(images: Sequence[Image], at: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([one.chances[at] for one in images]), np.array([one.truth[at] for one in images])


def _confusion(images: Sequence[Image], labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for one in images:
        truth, answer = (labels.index(named(marks, classes)) for marks in (one.truth, one.answer))
        counts[truth, answer] += 1
    return counts


def named(marks: NDArray[np.bool_], classes: Sequence[str]) -> str:
    """The classes that are set, in words."""
    return " | ".join(name for name, there in zip(classes, marks, strict=True) if there) or NONE


__all__ = ["NONE", "ClassFindings", "Classified", "Image", "ScoredImages", "as_summary", "classified", "named", "score"]
