"""What sites of a simulation do wrong: one file each, and one line in `FAULTS`. Imports `common.document`.

A fault changes what leaves a site, not how it trains: the site's own code runs as ever.
"""

from common.document.choice import OneOf
from simulations.faults.fault import Fault
from simulations.faults.little_is_enough import LittleIsEnough
from simulations.faults.scaled import Scaled

FAULTS: tuple[type[Fault], ...] = (
    Scaled,
    LittleIsEnough,
)  # fmt: skip
# Of a table of [[compare.faults]].
FAULT_CHOICE = OneOf("kind", FAULTS, always_said=True)

__all__ = ["FAULTS", "FAULT_CHOICE", "Fault"]
