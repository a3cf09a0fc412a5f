"""Study to network input, and the network's labels back to the study's own grid: a list of changes.

Preparing folds over the list, restoring folds back, a look at the data folds over the refusals. What every run has is
here; what a run asks for besides, and what a step is, is `common.preparation`. Imports that, `client.data.study` and
`common.config`; no torch before a change is applied.
"""

from client.data.prepare.channels import Channels
from client.data.prepare.intensity import Intensity
from client.data.prepare.orientation import Orientation
from client.data.prepare.resampling import Resampling
from common.config import RunConfig
from common.preparation import Change


def changes_of(run: RunConfig) -> tuple[Change, ...]:
    """All that is done to a study for a run, in order."""
    asked = run.preprocessing.steps
    return (
        Orientation(run),
        Channels(run),
        *(step for step in asked if step.PLACE == "acquired"),
        Resampling(run),
        Intensity(run),
        *(step for step in asked if step.PLACE == "scaled"),
    )


__all__ = ["changes_of"]
