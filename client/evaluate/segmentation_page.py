"""Tables, plots and pictures of an evaluated segmentation, from what `client.evaluate.segmentation` found."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from client.evaluate.evaluation import Cases
from client.evaluate.findings import Findings, Shown, Table, matrix_table, told
from client.evaluate.scoring import ScoredStudy
from client.evaluate.segmentation import Patient, Segmented, as_summary, segmented
from common.measures import calibration, histogram
from common.measures.intervals import Interval
from common.measures.volumes import relative_error
from common.pages.html import Markup
from common.pages.plot import Rule, plot
from common.tasks import Task

MOST_PICTURES = 24

_SHOWN_POOLED = ("accuracy", "balanced-accuracy")
_OVERLAP = (
    "Mean over patients: each patient counts the same. Pooled: all voxels of all patients taken together. In brackets "
    "the 95 % interval, by drawing patients again. For voxels, Dice is F1. A class that nobody here has is not scored; "
    "in a patient who has none of a class, none found is a 1."
)


def findings(cases: Cases[ScoredStudy], task: Task, classes: tuple[str, ...], tolerance: float) -> Findings:
    """All that is told of a segmentation; see `segmented`."""
    result = segmented(cases, task, classes, tolerance)
    tables = [
        _scores(result),
        _distances(result),
        _volumes(result),
        _rankings(result),
        _decisions(result),
    ]
    headline = result.mean.get(task.headline, Interval(math.nan, None, None))
    return Findings(
        as_summary(result),
        (f"{task.headline.capitalize()}, mean over patients", headline),
        _patients(result),
        tuple(table for table in tables if table.rows),
        tuple(one for one in _plots(result) if one),
        tuple(_pictures(cases, result)),
    )


def _decisions(result: Segmented) -> Table:
    """Voxels by truth and answer; of classes that overlap for each of them."""
    if not result.task.overlaps:
        about = "Voxels of all patients, a row for each truth."
        return matrix_table("Confusion matrix", ("background", *result.classes), result.counts.tolist(), about)
    columns = ("class", "labelled and found", "labelled, not found", "found, not labelled", "neither")
    rows = tuple(
        (name, int(hit), int(missed), int(extra), int(clear))
        for name, ((clear, extra), (missed, hit)) in zip(result.classes, result.counts[1:].tolist(), strict=True)
    )
    return Table("Decisions", columns, rows, "Voxels of all patients; each may be of several classes.")


def _scores(result: Segmented) -> Table:
    worst = result.patients[0].scores
    of_class = [result.task.of_class(name) for name in result.distances] if len(result.classes) > 1 else []
    rows = [
        (name, told(result.mean.get(name)), told(result.pooled.get(name)), worst.get(name))
        for name in (*result.task.SHOWN, *_SHOWN_POOLED, *of_class)
        if name in result.pooled
    ]
    about = _OVERLAP
    if result.inside:
        about += f" {result.inside} of {result.studies} studies were scored inside their field of view only."
    return Table("Overlap", ("", "mean over patients", "pooled over voxels", "worst patient"), tuple(rows), about)


def _distances(result: Segmented) -> Table:
    unit = "mm" if result.unit == "mm" else "pixels"
    rows = tuple(
        (
            name,
            told(one.hd95, 2),
            None if one.median_hd95 is None else f"{one.median_hd95:.2f}",
            told(one.average, 2),
            told(one.surface_dice),
            f"{one.patients - one.undefined} of {one.patients}",
        )
        for name, one in result.distances.items()
        if one.patients
    )
    columns = (
        *("class", f"Hausdorff 95, {unit}", "its median", f"average surface distance, {unit}"),
        *(f"surface Dice at {result.tolerance:g} {unit}", "patients with a distance"),
    )
    about = (
        "Of the patients in whom the class is labelled or found. Where one of the two is empty there is no distance: "
        "such a patient is in the median, as infinitely far, and in the surface Dice, as 0, and in no mean distance."
    )
    return Table("Surfaces", columns, rows, about)


def _volumes(result: Segmented) -> Table:
    unit = "ml" if result.volume_unit == "ml" else "pixels"
    rows = tuple(
        (
            name,
            told(Interval(one.bias, *(one.bias_interval or (None, None))), 2),
            *(None if limit is None else f"{limit:.2f}" for limit in (one.low, one.high)),
            float(np.mean([abs(p.found[at] - p.truth[at]) for p in result.patients])),
            _median_relative(result, at),
        )
        for name, one in result.volumes.items()
        for at in [result.classes.index(name)]
    )
    columns = (
        *("class", f"mean difference, {unit}", "lower limit", "upper limit", f"mean absolute error, {unit}"),
        "median relative error",
    )
    about = (
        "Found less labelled, by patient. Bland and Altman's limits of agreement: mean and 1.96 standard deviations. "
        "The relative error is of the patients who have the class."
    )
    return Table("Volumes", columns, rows, about)


def _median_relative(result: Segmented, at: int) -> str | None:
    errors = [relative_error(one.found[at], one.truth[at]) for one in result.patients]
    some = [abs(error) for error in errors if error is not None]
    return f"{100 * float(np.median(some)):.1f} %" if some else None


def _rankings(result: Segmented) -> Table:
    rows = []
    for name, one in result.rankings.items():
        if one.auroc is None or one.precision is None:
            continue
        rows.append(
            (
                name,
                told(one.auroc_interval),
                f"{one.auroc.high - one.auroc.value:.4f}",
                told(one.precision_interval),
                calibration.calibration_error(one.reliability),
                calibration.brier(one.reliability),
                None if one.threshold is None else f"{one.threshold.value:.3f}",
                one.dice_at_threshold,
            )
        )
    columns = (
        *("class", "AUROC", "exact to ±", "AUPRC", "calibration error", "Brier score"),
        *("threshold", "pooled Dice at it"),
    )
    about = (
        "Of the probability of each voxel, kept in 256 steps; ± is the most that this can change the AUROC. The "
        "threshold has the largest Dice on the validation patients, who are not among those scored; without any there "
        "is none."
    )
    return Table("Probabilities", columns, tuple(rows), about)


def _patients(result: Segmented) -> Table:
    own = {result.task.of_class(name) for name in result.distances}
    scores = [name for name in result.patients[0].scores if name in own or name in result.task.SHOWN]
    columns = ["patient", "split", "studies", *scores]
    for name in result.distances:
        columns += [f"hd95-{result.unit}-{name}", f"asd-{result.unit}-{name}", f"surface-dice-{name}"]
        columns += [f"found-{result.volume_unit}-{name}", f"labelled-{result.volume_unit}-{name}"]
    return Table("Patients", tuple(columns), tuple(_row(one, scores, result) for one in result.patients))


def _row(one: Patient, scores: list[str], result: Segmented) -> tuple[object, ...]:
    row: list[object] = [one.name, one.place, ", ".join(map(str, one.studies)), *(one.scores[name] for name in scores)]
    for name in result.distances:
        at = result.classes.index(name)
        surface = one.surfaces[at] if one.surfaces else None
        row += [None] * 3 if surface is None else [surface.hd95, surface.average, surface.surface_dice]
        row += [one.found[at], one.truth[at]]
    return tuple(row)


def _plots(result: Segmented) -> Iterator[Markup]:
    for name, one in result.volumes.items():
        at = result.classes.index(name)
        points = [((p.found[at] + p.truth[at]) / 2, p.found[at] - p.truth[at]) for p in result.patients]
        limits = [("+1.96 SD", one.high), ("mean", one.bias), ("-1.96 SD", one.low)]
        yield plot(
            f"Volume of {name} (Bland-Altman)",
            {name: points},
            x=f"mean of found and labelled, {result.volume_unit}",
            y=f"found - labelled, {result.volume_unit}",
            lines=False,
            rules=[Rule(value, label) for label, value in limits if value is not None],
        )
    some = {name: one for name, one in result.rankings.items() if one.auroc is not None}
    counts = {name: one.counts for name, one in some.items()}
    yield probability_plots(counts)[0]
    yield probability_plots(counts)[1]
    yield reliability_plot({name: one.reliability for name, one in some.items()})


def probability_plots(counts: Mapping[str, histogram.Histogram]) -> tuple[Markup, Markup]:
    """ROC and precision-recall curves, one for each class."""
    roc = {name: _pairs(histogram.roc_curve(one)) for name, one in counts.items()}
    recall = {name: _pairs(histogram.precision_recall_curve(one)) for name, one in counts.items()}
    return (
        plot("ROC curve", roc, x="1 - specificity", y="sensitivity", square=True),
        plot("Precision-recall curve", recall, x="recall", y="precision", square=True, diagonal=False),
    )


def reliability_plot(sums: Mapping[str, calibration.Reliability]) -> Markup:
    """Share of positives against mean probability, one line for each class."""
    curves = {name: _pairs(calibration.curve(one)) for name, one in sums.items()}
    return plot("Calibration", curves, x="mean probability", y="share that is the class", square=True)


def _pairs(curve: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in curve]


def _pictures(cases: Cases[ScoredStudy], result: Segmented) -> Iterator[Shown]:
    """The worst patients' first studies; of the rest the numbers stand in the table."""
    of_number = {(case.patient, case.number): case for case in cases.cases}
    for one in result.patients[:MOST_PICTURES]:
        value = one.scores.get(result.task.headline)
        score = "not scored" if value is None else f"{result.task.headline} {value:.3f}"
        yield Shown(f"{one.name}, study {one.studies[0]}: {score}", of_number[one.name, one.studies[0]].scored.picture)


__all__ = ["findings", "probability_plots", "reliability_plot"]
