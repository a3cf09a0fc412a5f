"""What a site tells of its training patients where a run asks for it: how often, how large, how bright.

Each patient counts once, whatever the number of their images: a value is taken of each study, then the mean over the
patient's studies; what leaves is the mean over the patients and their standard deviation (common/config/statistics.py).
Studies are looked at one after the other, as training sees them, and nothing but numbers is kept of them.

Computed once a run, before the first update leaves, and kept here (client/home/statistics.py): what a site tells does
not follow who comes or goes meanwhile. What goes wrong is written into the site's log and costs no update.
"""

import logging
import math
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from client.data.cohort import Case, Cohort
from client.home.statistics import Told, keep, kept
from client.site import Site
from common.audit.entries import SMALLEST_COUNT, bucketed
from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.config.statistics import (
    COUNTED,
    QUANTITIES,
    foreground_of,
    intensity_of,
    rounded,
    share_of,
    statistic_names,
    to_decimals,
)

_PERCENTILES = (5, 50, 95)
_MOST_VOXELS = 1_000_000  # that percentiles are taken of: of a larger channel, voxels at equal distances

_log = logging.getLogger(__name__)


def told(document: RunDocument, site: Site, cohort: Cohort) -> dict[str, float]:
    """What the run is told beside an update; nothing where it does not ask, the policy names nothing of it, or fewer
    patients train, or it is of fewer, than its min-patients, or than ten.
    """
    names = statistic_names(document.config, site.policy.metrics)
    least, training = max(site.policy.min_patients, SMALLEST_COUNT), len(cohort.patients("train"))
    if not names or training < least:
        return {}
    try:
        of_run = kept(site.home, site.key, document.hash)
        if of_run is None:
            of_run = Told(patients=training, values=statistics_of(cohort, document.config))
            keep(site.home, site.key, document.hash, of_run)
    except Exception:  # noqa: BLE001 - whatever it is, the update is made, and must not tell of it
        _log.exception("no statistics of the training patients are told")
        return {}
    found = {name: of_run.values[name] for name in sorted(names & of_run.values.keys())}
    return found if of_run.patients >= least and len(found) > 1 else {}  # one alone is a count of nothing


def statistics_of(cohort: Cohort, run: RunConfig) -> dict[str, float]:
    """All that may be told of ten training patients or more, rounded, whatever a policy says."""
    patients = cohort.patients("train")
    foreground = [_foreground(cohort.cases_of(patient), run) for patient in patients]
    intensities = [_intensities(cohort.cases_of(patient)) for patient in patients]
    found: dict[str, float] = {COUNTED: bucketed(len(patients))}
    for label in run.data.classes:
        shares = [one[label] for one in foreground if label in one]
        if bucketed(len(patients)) >= 2 * SMALLEST_COUNT:
            found[share_of(label)] = rounded(_class_share(len(shares), len(patients)))
        if run.task.DRAWS and len(shares) >= SMALLEST_COUNT:
            found |= _told(foreground_of(label), shares)
    for quantity, channel in intensities[0]:
        values = [one[quantity, channel] for one in intensities]
        found |= _told(intensity_of(quantity, channel), values)
    return found


def _class_share(have: int, patients: int) -> float:
    """Of twenty patients or more: in steps of five of them, and at least ten away from nobody and from all."""
    of = bucketed(patients)
    return min(bucketed(have), of - SMALLEST_COUNT) / of


def _told(names: tuple[str, str], values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over patients; nothing where they would be one patient's, or are no numbers."""
    if not all(map(math.isfinite, values)) or _dominated([to_decimals(value, names[0]) for value in values]):
        return {}
    both = statistics.fmean(values), statistics.stdev(values)
    return {name: rounded(one, name) for name, one in zip(names, both, strict=True)}


def _dominated(values: Sequence[float]) -> bool:
    """Whether one patient alone makes more than half of how far all lie apart, in squares.

    A window can be so narrow that but one patient has anything in it: mean and spread would tell that, and how much.
    """
    mean = statistics.fmean(values)
    squares = [(value - mean) ** 2 for value in values]
    return max(squares) > sum(squares) / 2


def _foreground(cases: Sequence[Case], run: RunConfig) -> dict[str, float]:
    """Class -> its share of the voxels of a patient, of those that the patient has."""
    voxels = sum(case.labels.numel() for case in cases)
    marked = {
        label: sum(int(run.task.marks(case.labels, number).count_nonzero()) for case in cases)
        for number, label in enumerate(run.data.classes, start=1)
    }
    return {label: count / voxels for label, count in marked.items() if count}


def _intensities(cases: Sequence[Case]) -> dict[tuple[str, int], float]:
    """(quantity, channel from 1) -> the mean over a patient's studies."""
    rows = [dict(_quantities(case.images)) for case in cases]
    return {place: statistics.fmean(row[place] for row in rows) for place in rows[0]}


def _quantities(images: Tensor) -> Iterator[tuple[tuple[str, int], float]]:
    """Of one study (S, C, *sp), a channel after the other."""
    for channel in range(images.shape[1]):
        values = images[:, channel].reshape(-1)
        deviation, mean = torch.std_mean(values, correction=0)
        some = values[:: -(-len(values) // _MOST_VOXELS)].numpy()
        found = (float(mean), float(deviation), *map(float, np.percentile(some, _PERCENTILES)))
        for quantity, value in zip(QUANTITIES, found, strict=True):
            yield (quantity, channel + 1), value


__all__ = ["statistics_of", "told"]
