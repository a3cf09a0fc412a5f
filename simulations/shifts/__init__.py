"""How a simulated site's images and labels differ from others': one file each, and one line in `SHIFTS`.

A shift is applied to a site's studies before the site sees them: the images of all its patients, or their labels, are
written once more, changed. Imports `client.data.study` for what a study is.
"""

from common.document.choice import OneOf
from simulations.shifts.annotator import Annotator
from simulations.shifts.bias_field import BiasField
from simulations.shifts.gain import Gain
from simulations.shifts.gamma import Gamma
from simulations.shifts.missed_regions import MissedRegions
from simulations.shifts.noise import Noise
from simulations.shifts.resolution import Resolution
from simulations.shifts.shift import Shift, shifted
from simulations.shifts.wrong_classes import WrongClasses

SHIFTS: tuple[type[Shift], ...] = (
    Gain,
    Gamma,
    BiasField,
    Resolution,
    Noise,
    WrongClasses,
    MissedRegions,
    Annotator,
)  # fmt: skip
# Of a table of [[shifts]].
SHIFT_CHOICE = OneOf("kind", SHIFTS, always_said=True)

__all__ = ["SHIFTS", "SHIFT_CHOICE", "Shift", "shifted"]
