"""Tables, plots and pictures of an evaluated classification, from what `client.evaluate.classification` found."""

import math
from collections.abc import Iterator

from client.evaluate.classification import Classified, ScoredImages, as_summary, classified, named
from client.evaluate.evaluation import Cases
from client.evaluate.findings import Findings, Shown, Table, matrix_table, told
from client.evaluate.segmentation_page import MOST_PICTURES, probability_plots, reliability_plot
from common.measures import calibration, histogram
from common.measures.intervals import Interval
from common.tasks.classification import Classification

_BINS = 1000  # of the plotted curves


def findings(cases: Cases[ScoredImages], task: Classification, classes: tuple[str, ...]) -> Findings:
    """All that is told of a classification."""
    result = classified(cases, task, classes)
    headline = result.scores.get(task.headline, Interval(math.nan, None, None))
    tables = [_scores(result, task), _classes(result)]
    if result.counts is not None:
        about = "Images, a row for each truth."
        tables.append(matrix_table("Confusion matrix", result.names, result.counts.tolist(), about))
    else:
        tables.append(_decisions(result))
    counts = {
        name: histogram.histogram(
            [one.chances[at] for one in result.images], [one.truth[at] for one in result.images], _BINS
        )
        for at, name in enumerate(classes)
        if result.of_class[name].area is not None
    }
    plots = (*probability_plots(counts), reliability_plot({name: result.of_class[name].reliability for name in counts}))
    return Findings(
        as_summary(result),
        (f"{task.headline.upper()}, over images", headline),
        _patients(result),
        tuple(tables),
        tuple(one for one in plots if one),
        tuple(_pictures(cases, result)),
    )


def _scores(result: Classified, task: Classification) -> Table:
    rows = tuple((name, told(result.scores[name])) for name in task.SHOWN if name in result.scores)
    about = (
        f"Over {len(result.images)} images, means over the classes. In brackets the 95 % interval, by drawing patients "
        "again with all of their images."
    )
    return Table("Scores", ("", "over images"), rows, about)


def _classes(result: Classified) -> Table:
    rows = tuple(
        (
            name,
            one.images,
            told(one.area),
            one.method,
            told(one.precision),
            calibration.calibration_error(one.reliability),
            calibration.brier(one.reliability),
            None if one.threshold is None else f"{one.threshold.value:.3f}",
            one.sensitivity,
            one.specificity,
        )
        for name, one in result.of_class.items()
    )
    columns = (
        *("class", "images of it", "AUROC", "its interval", "AUPRC", "calibration error", "Brier score"),
        *("threshold", "sensitivity at it", "specificity at it"),
    )
    about = (
        "Each class against the rest. The threshold is that of the largest sensitivity + specificity on the validation "
        "patients, who are not among those scored; without any there is none. DeLong's interval takes images for "
        "independent, and stands where each patient has one."
    )
    return Table("Classes", columns, rows, about)


def _decisions(result: Classified) -> Table:
    rows = []
    for at, name in enumerate(result.classes):
        pairs = [(bool(one.truth[at]), bool(one.answer[at])) for one in result.images]
        rows.append(
            (name, *(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))
        )
    columns = ("class", "shown and called", "shown, not called", "called, not shown", "neither")
    return Table("Decisions", columns, tuple(rows), "Images; each may show several classes.")


def _patients(result: Classified) -> Table:
    columns = (
        "patient",
        "split",
        "study",
        "image",
        "labelled",
        "called",
        *(f"chance-{name}" for name in result.classes),
    )
    rows = tuple(
        (
            *(one.patient, one.place, one.study, one.at),
            *(named(marks, result.classes) for marks in (one.truth, one.answer)),
            *map(float, one.chances),
        )
        for one in result.images
    )
    about = "The images whose label was given the least chance come first."
    return Table("Images by patient", columns, rows, about)


def _pictures(cases: Cases[ScoredImages], result: Classified) -> Iterator[Shown]:
    of_study = {(case.patient, case.number): case.scored.picture for case in cases.cases}
    shown = list(dict.fromkeys((one.patient, one.study) for one in result.images))[:MOST_PICTURES]
    worst = {(one.patient, one.study): one for one in reversed(result.images)}
    for key in shown:
        one = worst[key]
        labelled, called = (named(marks, result.classes) for marks in (one.truth, one.answer))
        yield Shown(f"{one.patient}, study {one.study}: labelled {labelled}, called {called}", of_study[key])


__all__ = ["findings"]
