"""How well two classes of regions are told apart, each figure with a 95 % interval by patient.

Every region was answered once, by a model that never saw its patient; the answers of all folds are scored together.
Where the whole was repeated with other seeds, a score is the mean over the repeats, so it is of one model and not of
several that vote. A chance of one half or more is a yes. Sensitivity, which is also recall, is the share of the
positive regions with a yes, specificity of the negative ones with a no, precision of the yeses that are right; AUROC is
the share of pairs of a positive and a negative that are in order, ties half.

The intervals draw patients, with all of their regions, and hold for the models as they were trained: they do not tell
how another division into folds, or other training patients, would move them. Where all or none of a share is right, the
bootstrap knows no doubt, and the exact interval of Clopper and Pearson (Biometrika 1934) over the patients behind that
share stands in its place. An answer that is the same for every region of a repeat has no interval: it is a rule.

One caution for AUROC over all folds: the models of different folds are compared with each other there, and a fold whose
test patients have more positives trains on fewer. Both push it down rather than up (Forman and Scholz, SIGKDD
Explorations 2010), and folds that are dealt for each class by itself keep the second small.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.measures.intervals import Interval, bootstrap

SCORES = ("sensitivity", "specificity", "precision", "recall", "AUROC")

_YES = 0.5
_RESAMPLES = 2000
_LEVEL = 0.95

Chances = NDArray[np.float64]
Truth = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Regions:
    """What was answered. patients: (N,) whose each region is; positive: (N,) whether it is of the second class."""

    patients: NDArray[np.str_]
    positive: Truth


def scores(regions: Regions, chances: Chances, seed: int = 0) -> dict[str, Interval]:
    """Every score with its interval; NaN where it is not defined, such as the precision of who never says yes.

    Args:
        regions: the truth.
        chances: (N,) or (repeats, N), of the positive class.
        seed: of the bootstrap; the same draws of patients for every score and every model.

    Raises:
        DataError: the regions are all of one class.
    """
    _check(regions)
    repeats = np.atleast_2d(chances)
    constant = bool((repeats == repeats[:, :1]).all())
    return {name: Interval(_mean(name, repeats, regions.positive), None, None) if constant
            else _with_doubt(name, regions, repeats, seed) for name in SCORES}  # fmt: skip


def difference(regions: Regions, first: Chances, second: Chances, seed: int = 0) -> Interval:
    """AUROC of the first answers minus that of the second, on the same draws of patients."""
    _check(regions)

    ours, theirs = np.atleast_2d(first), np.atleast_2d(second)

    def apart(at: NDArray[np.int64]) -> float:
        truth = regions.positive[at]
        return _mean("AUROC", ours[:, at], truth) - _mean("AUROC", theirs[:, at], truth)

    return _interval(regions, seed, apart)


def score(name: str, chances: Chances, positive: Truth) -> float:
    """One score of some regions, (N,); NaN where it is not defined."""
    yes = chances >= _YES
    match name:
        case "sensitivity" | "recall":
            return _share(yes, positive)
        case "specificity":
            return _share(~yes, ~positive)
        case "precision":
            return _share(positive, yes)
        case _:
            ours, theirs = chances[positive][:, None], chances[~positive][None]
            return float(((ours > theirs) + 0.5 * (ours == theirs)).mean()) if ours.size and theirs.size else math.nan


def told(interval: Interval) -> str:
    """As a table shows it: 0.71 (0.50-0.88)."""
    if math.isnan(interval.value):
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} ({interval.low:.2f}-{interval.high:.2f})"


def summary_rows(found: Mapping[str, Mapping[str, Interval]]) -> tuple[list[str], list[list[object]]]:
    """Column names, and a row for each model."""
    return ["model", *SCORES], [[name, *(told(one[score]) for score in SCORES)] for name, one in found.items()]


def as_data(found: Mapping[str, Mapping[str, Interval]]) -> list[dict[str, object]]:
    """The same as numbers; None for what is not defined."""
    return [
        {"model": name}
        | {
            score: {"value": None if math.isnan(one.value) else one.value, "low": one.low, "high": one.high}
            for score, one in scored.items()
        }
        for name, scored in found.items()
    ]


def described(regions: Regions, classes: Sequence[str], folds: int, seeds: Sequence[int]) -> str:
    """Who was answered and how; classes: their names, that of the positive one last."""
    of_class = [regions.patients[regions.positive == kind] for kind in (False, True)]
    shares = " and ".join(
        f"{len(theirs)} {name} of {len(np.unique(theirs))} patients"
        for name, theirs in zip(classes, of_class, strict=True)
    )
    return (
        f"{len(regions.positive)} regions of {len(np.unique(regions.patients))} patients: {shares}. {folds} folds by "
        f"patient, seeds {', '.join(map(str, seeds))}; {classes[1]} is what is to be found; 95 % intervals by patient."
    )


def _mean(name: str, repeats: Chances, positive: Truth) -> float:
    """Over the repeats for which it is defined."""
    values = [value for chances in repeats if not math.isnan(value := score(name, chances, positive))]
    return math.fsum(values) / len(values) if values else math.nan


def _with_doubt(name: str, regions: Regions, repeats: Chances, seed: int) -> Interval:
    interval = _interval(regions, seed, lambda at: _mean(name, repeats[:, at], regions.positive[at]))
    if interval.value not in (0.0, 1.0):
        return interval
    if name == "AUROC":  # no pair is out of order, and nothing follows for others
        return Interval(interval.value, None, None)
    return _exact(interval.value, _behind(name, regions, repeats))


def _interval(regions: Regions, seed: int, statistic: Callable[[NDArray[np.int64]], float]) -> Interval:
    """Of a statistic of places of regions, by drawing patients."""
    _, whose = np.unique(regions.patients, return_inverse=True)
    places = [np.flatnonzero(whose == one) for one in range(int(whose.max()) + 1)]
    return bootstrap(
        np.arange(len(places)),
        lambda drawn: statistic(np.concatenate([places[one] for one in drawn])),
        np.random.default_rng(seed),
        resamples=_RESAMPLES,
        level=_LEVEL,
    )


def _exact(value: float, patients: int) -> Interval:
    from scipy.stats import binomtest  # noqa: PLC0415 - heavy

    exact = binomtest(round(value * patients), patients).proportion_ci(_LEVEL)
    return Interval(value, float(exact.low), float(exact.high))


def _behind(name: str, regions: Regions, repeats: Chances) -> int:
    """How many patients a share is of, of the repeat with the fewest."""
    return min(_patients_behind(name, regions, chances) for chances in repeats)


def _patients_behind(name: str, regions: Regions, chances: Chances) -> int:
    yes = chances >= _YES
    of = {"specificity": ~regions.positive, "precision": yes}.get(name, regions.positive)
    return len(np.unique(regions.patients[of]))


def _share(right: Truth, among: Truth) -> float:
    return float((right & among).sum() / among.sum()) if among.any() else math.nan


def _check(regions: Regions) -> None:
    positives = int(regions.positive.sum())
    if positives in (0, len(regions.positive)):
        raise DataError(
            f"{positives} of {len(regions.positive)} regions are of the class to be found, and both classes are "
            "needed. Add patients of the other."
        )


__all__ = [
    "SCORES",
    "Regions",
    "as_data",
    "described",
    "difference",
    "score",
    "scores",
    "summary_rows",
    "told",
]
