"""What a site may tell of its training patients beside its update, where a run asks: [federation] statistics.

Scalars, with each update and always the same in a run, each a mean over patients that count alike, or how far patients
lie apart (standard deviation over them). A policy lets a group go by one name:

    class-share       class-share-CLASS: the share of the patients who have it, in steps of five patients, and never
                      fewer than ten from none or from all
    foreground-share  foreground-share-CLASS and foreground-spread-CLASS: the share of a patient's voxels that it is, of
                      those who have it; not where fewer than ten do. Of tasks that draw maps
    intensity         intensity-QUANTITY-CHANNEL and intensity-QUANTITY-spread-CHANNEL, channels from 1, of the images
                      as training sees them: their mean, deviation, and 5th, 50th and 95th percentile
    counted-patients  goes with any of these: how many they are of, in steps of five and at least ten

Each has two significant digits. A mean and its spread are not told where one patient alone makes more than half of how
far all lie apart, in squares. None leaves a private run: no noise covers them.
"""

import math
from collections.abc import Iterator, Sequence

from common.config.run import RunConfig

CLASS_SHARE, FOREGROUND_SHARE, INTENSITY = "class-share", "foreground-share", "intensity"
STATISTICS = (CLASS_SHARE, FOREGROUND_SHARE, INTENSITY)  # as a policy names them
COUNTED = "counted-patients"
# Of each channel of a patient's images.
QUANTITIES = ("mean", "deviation", "p05", "p50", "p95")

_SPREAD = "foreground-spread"
_DIGITS = 2
# Of intensities: what lies below is the rounding of images that are brought to a mean of 0.
_DECIMALS = 4


def share_of(label: str) -> str:
    """The name of the share of patients who have a class."""
    return f"{CLASS_SHARE}-{label}"


def foreground_of(label: str) -> tuple[str, str]:
    """The names of a class's share of a patient's voxels, and of how far patients lie apart in it."""
    return f"{FOREGROUND_SHARE}-{label}", f"{_SPREAD}-{label}"


def intensity_of(quantity: str, channel: int) -> tuple[str, str]:
    """The names of a quantity of a channel, from 1, and of how far patients lie apart in it."""
    return f"{INTENSITY}-{quantity}-{channel}", f"{INTENSITY}-{quantity}-spread-{channel}"


def is_statistic(name: str) -> bool:
    """Whether a scalar of an update is one of these, of any run."""
    return name == COUNTED or name.startswith(tuple(f"{one}-" for one in (*STATISTICS, _SPREAD)))


def lowest_and_highest(name: str) -> tuple[float, float]:
    """Between which values it lies whatever the images are; infinite where they decide."""
    if name == COUNTED:
        return 1.0, math.inf
    if not name.startswith(f"{INTENSITY}-"):
        return 0.0, 1.0
    spread = name.startswith(f"{INTENSITY}-deviation-") or "-spread-" in name
    return (0.0 if spread else -math.inf), math.inf


def statistic_names(run: RunConfig, allowed: Sequence[str] = STATISTICS) -> frozenset[str]:
    """What a run asks for, as far as it may leave.

    Args:
        run: the approved one.
        allowed: of a policy, among others.
    """
    if run.privacy is not None or not run.federation.statistics:
        return frozenset()
    names = frozenset(_names(run, allowed))
    return names | {COUNTED} if names else names


def to_decimals(value: float, name: str) -> float:
    """To the decimals that a statistic is told with at most; those of shares have no end."""
    return round(value, _DECIMALS) if name.startswith(INTENSITY) else value


def rounded(value: float, name: str = "") -> float:
    """A value as it may be told, of a statistic by its name."""
    return float(f"{to_decimals(value, name):.{_DIGITS}g}")


def resolution(value: float, name: str = "") -> float:
    """How far apart two values lie that are told as this one and as the next."""
    mantissa, _, exponent = f"{value:.{_DIGITS - 1}e}".partition("e")
    step = 10.0 ** (int(exponent) - _DIGITS + 1) if float(mantissa) else 0.0
    return max(step, 10.0**-_DECIMALS) if name.startswith(INTENSITY) else step


def _names(run: RunConfig, allowed: Sequence[str]) -> Iterator[str]:
    for label in run.data.classes:
        if CLASS_SHARE in allowed:
            yield share_of(label)
        if FOREGROUND_SHARE in allowed and run.task.DRAWS:
            yield from foreground_of(label)
    if INTENSITY in allowed:
        for channel in range(1, run.data.channels + 1):
            for quantity in QUANTITIES:
                yield from intensity_of(quantity, channel)


__all__ = [
    "CLASS_SHARE",
    "COUNTED",
    "FOREGROUND_SHARE",
    "INTENSITY",
    "QUANTITIES",
    "STATISTICS",
    "foreground_of",
    "intensity_of",
    "is_statistic",
    "lowest_and_highest",
    "resolution",
    "rounded",
    "share_of",
    "statistic_names",
    "to_decimals",
]
