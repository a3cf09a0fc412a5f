"""The preparation steps that a run may ask for: one file each, with its settings, and one line in `STEPS`.

What is done in every run (axes, channels, resampling, intensities) is client/data/prepare, which folds over both. No
DICOM here. Imports `common.document.table`; what computes only where a step is applied.
"""

from common.document.choice import OneOf
from common.preparation.bilateral import Bilateral
from common.preparation.breast_region import BreastRegion
from common.preparation.clahe import CLAHE
from common.preparation.crop import CropToForeground
from common.preparation.equalisation import Equalisation
from common.preparation.field_of_view import FieldOfView
from common.preparation.gaussian import Gaussian
from common.preparation.median import Median
from common.preparation.missing_values import MissingValues
from common.preparation.n4 import N4
from common.preparation.non_local_means import NonLocalMeans
from common.preparation.pectoral_muscle import PectoralMuscle
from common.preparation.step import Change, Expected, Geometry, Step, Voxels

# In the order in which they are usually written.
STEPS: tuple[type[Step], ...] = (
    MissingValues,
    N4,
    Gaussian,
    Median,
    Bilateral,
    NonLocalMeans,
    BreastRegion,
    PectoralMuscle,
    CropToForeground,
    FieldOfView,
    Equalisation,
    CLAHE,
)  # fmt: skip
# Of an entry of [[preprocessing.steps]].
STEP_CHOICE = OneOf("kind", STEPS, always_said=True)

__all__ = ["STEPS", "STEP_CHOICE", "Change", "Expected", "Geometry", "Step", "Voxels"]
