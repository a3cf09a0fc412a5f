"""Is one model better than another on the same patients, and by how much?

The test is Wilcoxon's signed-rank test over the patients' differences of one score, without those who do not differ: of
up to 50 patients exact, as scipy counts it (of up to 13 where some differ by as much as others), else by the normal
approximation. Scores such as Dice lie far from normal, so that a t-test is none, and the p-value of a bootstrap of ten
patients is too small. Where a study makes several such comparisons their p-values are Holm's (Scandinavian Journal of
Statistics 1979).

The size of the difference is its mean over patients, with a bootstrap interval over patients, which says how it would
move with other patients like these; and its range over the seeds, which says how it moves with other trainings. A
patient who is tested under several seeds counts once, by the mean of their differences: two seeds are not two people.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.measures.intervals import Interval, bootstrap
from common.system.files import write_atomically
from common.tasks import Task
from simulations.studies import tables
from simulations.studies.tables import Score

NAME = "paired"
_SEED = 0  # of the bootstrap: the same table each time
# 0.6 - 0.4 is less than 0.8 - 0.6 in the last bit, and such bits would be ranks.
_DECIMALS = 12


@dataclass(frozen=True)
class Paired:
    """First model less second, on the patients whom both were tested on.

    seeds: the mean difference of each seed. p: two-sided, None of nobody; adjusted: by Holm over the study's pairs.
    """

    first: str
    second: str
    measure: str
    patients: int
    difference: Interval
    seeds: tuple[float, ...]
    p: float | None
    adjusted: float | None


def paired(scores: Sequence[Score], pairs: Sequence[tuple[str, str]], task: Task) -> list[Paired]:
    """Compare pairs of models on the patients of both.

    Args:
        scores: of single patients; none: there is nothing to compare.
        pairs: names of models; what the first gains over the second is told.
        task: its first score that single patients have is compared.
    """
    told = {one.measure for one in scores}
    measure = next((name for name in task.SCORES if name in told), None)
    if measure is None:
        return []
    values: dict[str, dict[tuple[str, str | None, int], float]] = {}
    for one in scores:
        if one.measure == measure:
            values.setdefault(one.model, {})[one.site, one.patient, one.seed] = one.value
    found = [_paired(first, second, measure, values.get(first, {}), values.get(second, {})) for first, second in pairs]
    adjusted = iter(holm([one.p for one in found if one.p is not None]))
    return [one if one.p is None else replace(one, adjusted=next(adjusted)) for one in found]


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down p-values of one family, in its order: the k-th smallest of n times n - k, none below one before it."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        so_far = max(so_far, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = so_far
    return adjusted


def summary(found: Sequence[Paired]) -> tuple[list[str], list[list[object]]]:
    """Column names, and a row for each pair."""
    columns = ["paired", "score", "patients", "difference", "95 % over patients", "over seeds", "p", "p by Holm"]
    return columns, [
        [
            *(f"{one.first} less {one.second}", one.measure, one.patients),
            None if math.isnan(one.difference.value) else f"{one.difference.value:+.3f}",
            *(_between(one.difference), tables.signed(one.seeds), _small(one.p), _small(one.adjusted)),
        ]
        for one in found
    ]


def write(out: Path, title: str, found: Sequence[Paired]) -> None:
    """Write paired.csv, .md and .tex into a study's folder; nothing where nothing is compared."""
    if not found:
        return
    columns = ["first", "second", "measure", "patients", "difference", "low", "high", "seed-low", "seed-high"]
    rows = [
        [
            *(one.first, one.second, one.measure, one.patients),
            *(one.difference.value, one.difference.low, one.difference.high),
            *((min(one.seeds), max(one.seeds)) if one.seeds else (None, None)),
            *(one.p, one.adjusted),
        ]
        for one in found
    ]
    tables.write_csv(out / f"{NAME}.csv", ([*columns, "p", "p-holm"], rows))
    head, cells = summary(found)
    write_atomically(out / f"{NAME}.md", f"{tables.markdown(head, cells)}\n".encode())
    caption = f"{title}: differences on the same test patients (Wilcoxon signed-rank test, p-values also by Holm)"
    write_atomically(out / f"{NAME}.tex", tables.latex((head, cells), caption, f"tab:{NAME}").encode())


def _paired(
    first: str,
    second: str,
    measure: str,
    ours: Mapping[tuple[str, str | None, int], float],
    theirs: Mapping[tuple[str, str | None, int], float],
) -> Paired:
    both = [key for key in ours if key in theirs]
    patients: dict[tuple[str, str | None], list[float]] = {}
    seeds: dict[int, list[float]] = {}
    for key in both:
        site, patient, seed = key
        patients.setdefault((site, patient), []).append(ours[key] - theirs[key])
        seeds.setdefault(seed, []).append(ours[key] - theirs[key])
    differences = np.array([statistics.fmean(several) for several in patients.values()]).round(_DECIMALS)
    if not differences.size:
        return Paired(first, second, measure, 0, Interval(math.nan, None, None), (), None, None)
    return Paired(
        first,
        second,
        measure,
        len(differences),
        bootstrap(differences, lambda rows: float(rows.mean()), np.random.default_rng(_SEED)),
        tuple(statistics.fmean(seeds[seed]) for seed in sorted(seeds)),
        _signed_rank(differences),
        None,
    )


def _signed_rank(differences: NDArray[np.float64]) -> float:
    """Two-sided p; 1 where no patient differs."""
    from scipy.stats import wilcoxon  # noqa: PLC0415 - 0.5 s, needed once

    # scipy counts exactly only where it is given no zeros.
    apart = differences[differences != 0]
    return float(wilcoxon(apart).pvalue) if apart.size else 1.0


def _between(interval: Interval) -> str | None:
    return None if interval.low is None else f"{interval.low:+.3f} to {interval.high:+.3f}"


def _small(p: float | None) -> str | None:
    return None if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


__all__ = ["NAME", "Paired", "holm", "paired", "summary", "write"]
