"""What the scored studies of a segmentation amount to: by patient, mean over patients, and pooled over voxels.

A mean over patients counts each patient the same; pooled over voxels, as the literature on vessels does, a patient
counts by what there is to see. Both are told, each with an interval that draws patients. A class that no patient here
has is not scored, as in a run (common/tasks/segmentation.py). Distances are of the patients in whom a class is labelled
or answered; where one of the two is empty there is no distance, and how often that was stands beside the mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.keep.split import Split
from client.evaluate.evaluation import Cases
from client.evaluate.findings import SEED, bounded, figure, number
from client.evaluate.scoring import BINS, ScoredStudy
from common.errors import ConfigError
from common.measures import calibration, histogram
from common.measures.intervals import Interval, bootstrap, bootstrap_each
from common.measures.surface import SurfaceDistances, of_patient
from common.measures.threshold import Threshold, chosen_by_bins
from common.measures.volumes import Agreement, agreement
from common.tasks import Task
from common.tasks.segmentation import labelled, scores_of

RELIABILITY_BINS = 16  # a divisor of BINS: no fine bin lies in two


@dataclass(frozen=True, eq=False)
class Patient:
    """All studies of a patient together; see `ScoredStudy`. surfaces: none where lengths are of other units."""

    name: str
    place: Split
    studies: tuple[int, ...]
    counts: NDArray[np.int64]
    chances: histogram.Histogram
    surfaces: tuple[SurfaceDistances, ...]
    found: tuple[float, ...]
    truth: tuple[float, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Distances:
    """Of one class over the patients in whom there is any; undefined: how many of them have no distance."""

    patients: int
    undefined: int
    hd95: Interval | None
    median_hd95: float | None
    average: Interval | None
    surface_dice: Interval | None


@dataclass(frozen=True, eq=False)
class Ranking:
    """Of the probabilities of one class, pooled over voxels; None where voxels are all of one kind."""

    counts: histogram.Histogram
    auroc: histogram.Bounded | None
    auroc_interval: Interval | None
    precision: histogram.Bounded | None
    precision_interval: Interval | None
    reliability: calibration.Reliability
    threshold: Threshold | None  # largest Dice on the validation patients
    dice_at_threshold: float | None  # of the patients scored, pooled


@dataclass(frozen=True, eq=False)
class Segmented:
    """Everything that is told of the patients, but for pictures."""

    task: Task
    classes: tuple[str, ...]
    patients: tuple[Patient, ...]  # the worst first
    mean: Mapping[str, Interval]
    pooled: Mapping[str, Interval]
    counts: NDArray[np.int64]
    unit: str  # of lengths
    volume_unit: str
    tolerance: float
    inside: int  # studies with a field of view
    studies: int
    distances: Mapping[str, Distances]
    volumes: Mapping[str, Agreement]
    rankings: Mapping[str, Ranking]


def segmented(cases: Cases[ScoredStudy], task: Task, classes: tuple[str, ...], tolerance: float) -> Segmented:
    """Take the studies of a site together.

    Args:
        cases: what was scored.
        task: names the scores; of segmentation.
        classes: names of 1..K.
        tolerance: of the surface Dice.
    """
    total = np.sum([case.scored.counts for case in cases.cases], axis=0)
    numbers = range(1, len(classes) + 1)
    present = frozenset(index for index in numbers if labelled(torch.from_numpy(total), index))
    physical = any(case.scored.physical for case in cases.cases)
    patients = [_patient(group, classes, present, physical=physical) for group in cases.patients.values()]
    patients.sort(key=lambda one: (one.scores.get(task.headline, math.nan), one.name))
    rng = np.random.default_rng(SEED)
    names = list(patients[0].scores)
    means = bootstrap_each([list(one.scores.values()) for one in patients], lambda rows: rows.mean(axis=0), rng)
    counts = np.stack([one.counts for one in patients])
    of_all = partial(pooled_scores, classes=classes, present=present)
    pooled = bootstrap_each(counts, lambda rows: list(of_all(rows.sum(axis=0)).values()), rng)
    validation = [] if cases.wanted in ("all", "validation") else [case.scored.chances for case in cases.validation]
    scored = [(index, classes[index - 1]) for index in sorted(present)]
    return Segmented(
        task,
        classes,
        tuple(patients),
        dict(zip(names, means, strict=True)),
        dict(zip(of_all(total), pooled, strict=True)),
        total,
        "mm" if physical else "px",
        "ml" if physical else "px",
        tolerance,
        sum(case.scored.inside for case in cases.cases),
        len(cases.cases),
        {name: _distances(patients, index, rng) for index, name in scored},
        {name: _volumes(patients, index) for index, name in scored},
        {name: _ranking(patients, validation, index, rng) for index, name in scored},
    )


def pooled_scores(matrix: NDArray[np.int64], classes: Sequence[str], present: frozenset[int]) -> dict[str, float]:
    """The scores of all voxels taken together, with the accuracy, and its mean over classes and background.

    Of classes that overlap both are means over the classes scored, and the balanced one is of each the mean of
    sensitivity and specificity.
    """
    if matrix.ndim == 3:
        return scores_of(torch.from_numpy(matrix), classes, present) | _accuracies(matrix, sorted(present))
    of_each = matrix.sum(axis=1)
    there = of_each > 0
    accuracy = float(np.trace(matrix) / of_each.sum())
    balanced = float((np.diag(matrix)[there] / of_each[there]).mean())
    scores = scores_of(torch.from_numpy(matrix), classes, present)
    return scores | {"accuracy": accuracy, "balanced-accuracy": balanced}


def _accuracies(tables: NDArray[np.int64], present: Sequence[int]) -> dict[str, float]:
    """Of (K+1, 2, 2); a part of it that nothing belongs to does not count."""
    if not present:
        return {}
    some = tables[list(present)]
    right, of_each = np.diagonal(some, axis1=1, axis2=2), some.sum(axis=2)
    rates = np.where(of_each > 0, right / np.maximum(of_each, 1), np.nan)
    accuracy = right.sum(axis=1) / of_each.sum(axis=1)
    return {"accuracy": float(accuracy.mean()), "balanced-accuracy": float(np.nanmean(rates, axis=1).mean())}


def as_summary(result: Segmented) -> dict[str, Any]:
    """Plain values."""
    return {
        "mean-of-patients": {name: figure(one) for name, one in result.mean.items()},
        "pooled": {name: figure(one) for name, one in result.pooled.items()},
        "worst-patient": dict(result.patients[0].scores),
        "confusion": _confusion(result),
        "field-of-view": {"studies": result.inside, "of": result.studies},
        "distances": {
            name: {
                "unit": result.unit,
                "patients": one.patients,
                "undefined": one.undefined,
                "hd95": figure(one.hd95),
                "median-hd95": number(one.median_hd95),
                "average-surface-distance": figure(one.average),
                "surface-dice": figure(one.surface_dice),
                "tolerance": result.tolerance,
            }
            for name, one in result.distances.items()
        },
        "volumes": {name: {"unit": result.volume_unit, **_kebab(vars(one))} for name, one in result.volumes.items()},
        "ranking": {
            name: {
                "roc-auc": bounded(one.auroc, one.auroc_interval),
                "average-precision": bounded(one.precision, one.precision_interval),
                "calibration-error": number(calibration.calibration_error(one.reliability)),
                "brier": number(calibration.brier(one.reliability)),
                "threshold": None if one.threshold is None else one.threshold.value,
                f"{result.task.headline}-at-threshold": number(one.dice_at_threshold),
            }
            for name, one in result.rankings.items()
        },
    }


def _confusion(result: Segmented) -> dict[str, Any]:
    """With classes that overlap a table for each, the first for any class at all."""
    first = "any" if result.task.overlaps else "background"
    return {"classes": [first, *result.classes], "truth-by-answer": result.counts.tolist()}


def _patient(cases: Sequence[Any], classes: tuple[str, ...], present: frozenset[int], *, physical: bool) -> Patient:
    studies: list[ScoredStudy] = [case.scored for case in cases]
    counts = np.sum([one.counts for one in studies], axis=0)
    measured = all(one.surfaces and one.physical == physical for one in studies)
    return Patient(
        cases[0].patient,
        cases[0].place,
        tuple(case.number for case in cases),
        counts,
        np.sum([one.chances for one in studies], axis=0),
        tuple(map(of_patient, zip(*(one.surfaces for one in studies), strict=True))) if measured else (),
        tuple(map(sum, zip(*(one.found for one in studies), strict=True))),
        tuple(map(sum, zip(*(one.truth for one in studies), strict=True))),
        scores_of(torch.from_numpy(counts), classes, present),
    )


def _distances(patients: Sequence[Patient], index: int, rng: np.random.Generator) -> Distances:
    some = [one for one in patients if one.surfaces and (one.found[index - 1] or one.truth[index - 1])]
    surfaces = [one.surfaces[index - 1] for one in some]
    defined = [one for one in surfaces if math.isfinite(one.hd95)]

    def mean(values: Sequence[float]) -> Interval | None:
        return bootstrap(values, lambda rows: float(rows.mean()), rng) if values else None

    return Distances(
        len(some),
        len(surfaces) - len(defined),
        mean([one.hd95 for one in defined]),
        _median([one.hd95 for one in surfaces]),
        mean([one.average for one in defined]),
        mean([one.surface_dice for one in surfaces]),
    )


def _median(values: Sequence[float]) -> float | None:
    """Of distances, also infinite ones; None where it is none itself."""
    if not values:
        return None
    ranked = sorted(values)
    low, high = ranked[(len(ranked) - 1) // 2], ranked[len(ranked) // 2]
    return (low + high) / 2 if math.isfinite(high) else None


def _volumes(patients: Sequence[Patient], index: int) -> Agreement:
    return agreement([one.found[index - 1] for one in patients], [one.truth[index - 1] for one in patients])


def _ranking(
    patients: Sequence[Patient], validation: Sequence[histogram.Histogram], index: int, rng: np.random.Generator
) -> Ranking:
    rows = np.stack([one.chances[index - 1] for one in patients])
    counts = rows.sum(axis=0)

    def values(drawn: NDArray[np.int64]) -> list[float]:
        together = drawn.sum(axis=0)
        found = histogram.auroc(together), histogram.average_precision(together)
        return [math.nan if one is None else one.value for one in found]

    of_auroc, of_precision = bootstrap_each(rows, values, rng)
    threshold = dice = None
    if validation:
        try:
            threshold = chosen_by_bins(np.sum(validation, axis=0)[index - 1], "f1")
        except ConfigError:  # no validation patient has the class, or nothing else
            threshold = None
    if threshold is not None:
        false, hit = counts[:, round(threshold.value * BINS) :].sum(axis=1)
        dice = float(2 * hit / (hit + false + counts[1].sum())) if hit + false + counts[1].sum() else 1.0
    return Ranking(
        counts,
        histogram.auroc(counts),
        of_auroc,
        histogram.average_precision(counts),
        of_precision,
        calibration.reliability_of(counts, RELIABILITY_BINS),
        threshold,
        dice,
    )


def _kebab(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.replace("_", "-"): list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


__all__ = ["Distances", "Patient", "Ranking", "Segmented", "as_summary", "pooled_scores", "segmented"]
