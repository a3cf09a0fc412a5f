"""Study to network input, and the network's labels back to the study's own grid: a list of steps.

Preparing folds over `STEPS`, restoring folds back, a look at the data folds over the refusals. A step runs in the order
of the table, where the run asks for it. Imports `client.data.study.study`, `client.data.study.geometry` and `common`;
no torch before a step is applied.
"""

from client.data.prepare.channels import Channels
from client.data.prepare.intensity import Intensity
from client.data.prepare.orientation import Orientation
from client.data.prepare.resampling import Resampling
from client.data.prepare.step import Geometry, Step

STEPS: tuple[Step, ...] = (
    Orientation(),
    Channels(),
    Resampling(),
    Intensity(),
)

__all__ = ["STEPS", "Geometry", "Step"]
