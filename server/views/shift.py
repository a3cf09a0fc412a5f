"""How far hospitals lie apart by the statistics that they tell of their patients, and how likely chance does as much.

Each site tells means over n patients and how far those lie apart, rounded (common/config/statistics.py). Two questions
are asked of each statistic. How far apart are the sites: for shares of patients the largest difference that is certain;
for means the standard deviation between sites beyond that of chance, in units of that between patients of one site. And
how often would sites that draw their patients from one pool lie as far apart: a chi-square test of the shares, and the
analysis of variance of the means (F-test; of normal patients with equal spreads), both of all sites at once. The chance
is multiplied by the number of statistics that are looked at (Bonferroni), so that of sites that are alike at most one
run in a hundred has any below 0.01.

Sites that differ and have few patients are not found: `labels_unfound` says how large a difference needs to be. What is
told may be anything that is told so: a mean that is rounded, a share that is ten patients from none or from all. Of
that the sites are given what makes them most alike; so a shift that is small beside two digits is not found.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from common.audit.entries import bucketed
from common.config.statistics import COUNTED, QUANTITIES, foreground_of, intensity_of, resolution, rounded, share_of

_STEP, _FEWEST = 5, 10  # patients: how counts are told
_GRID = 400
_SHARES = [number / _GRID for number in range(1, _GRID)]  # that the pool may have

Values: TypeAlias = Mapping[str, float]  # by name
Told: TypeAlias = Mapping[str, Values]  # by site


@dataclass(frozen=True)
class Shift:
    """How far apart sites are in one statistic."""

    what: str
    found: float
    chance: float  # that sites which are alike lie so far apart in any of the statistics that were looked at
    lowest: tuple[str, float]  # site, and its value
    highest: tuple[str, float]


def of_labels(told: Told, classes: Sequence[str]) -> Shift | None:
    """Of how many patients have a class: the class with the least chance. None where no two sites tell of one."""
    shifts = [_of_shares(told, label) for label in classes]
    return _least([one for one in shifts if one is not None])


def labels_unfound(
    told: Told, classes: Sequence[str], *, limit: float, chance: float
) -> tuple[str, float | None] | None:
    """How large a difference in shares of patients with a class is not found at the site with the fewest patients.

    Told as it is found most easily: about one half of the patients have the class, the site more and all others less,
    and each has exactly its share. Where patients are drawn, such a one is found more often than not.

    Args:
        told: by the sites.
        classes: of the run.
        limit: a difference counts as found from this on,
        chance: and below this chance.

    Returns:
        The site, and the smallest difference that is found, in steps of 0.05; None for it where none is. None where no
        two sites tell of a class.
    """
    looked_at = [label for label in classes if sum(share_of(label) in one for one in told.values()) > 1]
    if not looked_at:
        return None
    of = {site: int(one[COUNTED]) for site, one in told.items() if share_of(looked_at[0]) in one}
    fewest = min(sorted(of), key=lambda site: of[site])
    others = tuple(sorted(count for site, count in of.items() if site != fewest))
    return fewest, _smallest_found(of[fewest], others, limit, chance / len(looked_at))


@lru_cache(maxsize=256)
def _smallest_found(odd: int, others: Sequence[int], limit: float, chance: float) -> float | None:
    """The difference from which on all are found, of a site with so many patients and others with so many each."""
    smallest = None
    for number in range(20, 0, -1):
        above, below = 0.5 + number / 40, 0.5 - number / 40
        shares = [(_told_share(above, odd), odd), *((_told_share(below, count), count) for count in others)]
        made = {str(site): {COUNTED: count, share_of(""): share} for site, (share, count) in enumerate(shares)}
        shift = _of_shares(made, "")
        if shift is None or shift.found < limit or shift.chance >= chance:
            break
        smallest = number / 20
    return smallest


def of_foreground(told: Told, classes: Sequence[str]) -> Shift | None:
    """Of how large the foreground of a class is where there is any, likewise."""
    shifts = [_of_means(told, label, foreground_of(label), _having(label)) for label in classes]
    return _least([one for one in shifts if one is not None])


def of_intensities(told: Told, channels: int) -> Shift | None:
    """Of the images' intensities, likewise."""
    names = [(quantity, channel) for channel in range(1, channels + 1) for quantity in QUANTITIES]
    shifts = [_of_means(told, _words(*place, channels), intensity_of(*place), _counted) for place in names]
    return _least([one for one in shifts if one is not None])


def _words(quantity: str, channel: int, channels: int) -> str:
    said = f"{int(quantity[1:])}th percentile" if quantity.startswith("p") else quantity
    return said if channels == 1 else f"{said} of channel {channel}"


def _least(shifts: Sequence[Shift]) -> Shift | None:
    """The one that chance makes least likely; of equal ones the largest."""
    if not shifts:
        return None
    least = min(shifts, key=lambda one: (one.chance, -one.found))
    chance = min(1.0, least.chance * len(shifts))
    return Shift(least.what, least.found, chance, least.lowest, least.highest)


def _of_shares(told: Told, label: str) -> Shift | None:
    from scipy.special import chdtrc  # noqa: PLC0415 - heavy

    name = share_of(label)
    sites = [(site, values[name], values[COUNTED]) for site, values in told.items() if name in values]
    if len(sites) < 2:
        return None
    within = [(*_interval(share, of), of) for _, share, of in sites]

    def distance(pool: float) -> float:
        """Chi-square of the shares, where the pool has this one; counts are rounded, above and below the line."""
        return sum(
            max(low - pool, pool - high, 0.0) ** 2 / (pool * (1 - pool) / of + _STEP**2 / 6 / of**2)
            for low, high, of in within
        )

    certain = max(low for low, _, _ in within) - min(high for _, high, _ in within)
    chance = float(chdtrc(len(sites) - 1, min(map(distance, _SHARES))))
    return Shift(label, max(certain, 0.0), chance, *_ends([(share, site) for site, share, _ in sites]))


def _told_share(share: float, of: int) -> float:
    """As a site of so many patients tells it: in steps of five of them, ten from none and from all."""
    return rounded(min(bucketed(round(share * of)), of - _FEWEST) / of)


def _interval(share: float, of: float) -> tuple[float, float]:
    """Where a share may lie that is told of so many patients."""
    near = _FEWEST / of + resolution(share) / 2
    return (0.0 if share <= near else share, 1.0 if share >= 1 - near else share)


def _of_means(told: Told, what: str, names: tuple[str, str], of: Callable[[Values], float]) -> Shift | None:
    from scipy.special import fdtrc  # noqa: PLC0415 - heavy

    mean, spread = names
    sites = {site: values for site, values in told.items() if values.keys() >= {mean, spread}}
    if len(sites) < 2:
        return None
    means, patients = [one[mean] for one in sites.values()], [of(one) for one in sites.values()]
    groups, freedom = len(sites) - 1, sum(patients) - len(sites)
    within = sum((n - 1) * one[spread] ** 2 for n, one in zip(patients, sites.values(), strict=True)) / freedom
    if within == 0:  # brought to one value by the preparation
        return None
    halves = [resolution(one, mean) / 2 for one in means]
    ends = [one + side * half for one, half in zip(means, halves, strict=True) for side in (-1, 0, 1)]
    steps = [min(means) + number / _GRID * (max(means) - min(means)) for number in range(_GRID)]

    def apart(middle: float) -> list[float]:
        """How far each mean is from it for certain, whatever rounding did to it."""
        return [
            math.copysign(max(abs(one - middle) - half, 0.0), one - middle)
            for one, half in zip(means, halves, strict=True)
        ]

    def square(middle: float) -> float:
        return sum(n * one**2 for n, one in zip(patients, apart(middle), strict=True)) / within

    middle = min((*ends, *steps), key=square)
    beyond = statistics.variance(apart(middle)) - within * statistics.fmean(1 / n for n in patients)
    chance = float(fdtrc(groups, freedom, square(middle) / groups))
    found = math.sqrt(max(beyond, 0.0)) / math.sqrt(within)  # finite, however small a spread a site tells
    return Shift(what, found, chance, *_ends(list(zip(means, sites, strict=True))))


def _counted(values: Values) -> float:
    return values[COUNTED]


def _having(label: str) -> Callable[[Values], float]:
    """How many patients of a site have a class: as few as it may be, ten where no share is told."""

    def of(values: Values) -> float:
        if share_of(label) not in values:
            return _FEWEST
        return max(_FEWEST, _interval(values[share_of(label)], values[COUNTED])[0] * values[COUNTED])

    return of


def _ends(values: Sequence[tuple[float, str]]) -> tuple[tuple[str, float], tuple[str, float]]:
    """The site with the lowest value, and that with the highest."""
    (lowest, low), (highest, high) = min(values), max(values)
    return (low, lowest), (high, highest)


__all__ = ["Shift", "labels_unfound", "of_foreground", "of_intensities", "of_labels"]
