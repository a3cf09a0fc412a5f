"""N4: the slow change of brightness over an MR image, from the coils, is estimated and divided out.

The field is multiplicative, smooth (a B-spline) and is fitted where there is tissue, brighter than Otsu's
threshold of the logarithm of brightness, which the field shifts and does not stretch. A volume of few slices is
corrected slice by slice.
Source: Tustison et al, N4ITK: improved N3 bias correction, IEEE Trans. Med. Imaging 2010.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.errors import DataError
from common.preparation.regions import stands_out
from common.preparation.step import Expected, Geometry, Mask, Place, Step, Voxels, too_small

# Voxels along an axis that a spline can be fitted to, after shrinking too.
_FEWEST = 8
_LEVELS = 3


class N4(Step):
    """The field is fitted on every `shrink`-th voxel, with so many `iterations` at each of three resolutions."""

    kind: Literal["n4"] = "n4"
    shrink: Annotated[int, Field(ge=1, le=8)] = 4
    iterations: Annotated[int, Field(ge=1, le=100)] = 20
    PLACE: ClassVar[Place] = "acquired"

    def misfit(self, expected: Expected) -> str | None:
        """CT, whose values are measured in a unit, and colours."""
        if expected.modality == "CT":
            return "is for images whose brightness has no unit, and CT is measured in HU. Take it out"
        return "is for images of one channel" if expected.channels > 1 else None

    def refuse(self, before: Geometry) -> DataError | None:
        """Too small for the spline."""
        return too_small(before, _FEWEST, "n4")

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Where the mean of the field is 1: the brightness of the whole stays about what it was."""
        grey = voxels.image[0]
        tissue = stands_out(grey) & (grey > 0)
        if voxels.inside is not None:
            tissue &= voxels.inside
        if grey.ndim == 3 and grey.shape[0] < _FEWEST:
            corrected = np.stack([self._corrected(*of) for of in zip(grey, tissue, strict=True)])
        else:
            corrected = self._corrected(grey, tissue)
        return replace(voxels, image=corrected[None])

    def _corrected(self, grey: NDArray[np.float32], tissue: Mask) -> NDArray[np.float32]:
        if np.count_nonzero(tissue) < _FEWEST**2 or grey[tissue].min() == grey[tissue].max():
            return grey
        import SimpleITK  # noqa: PLC0415 - heavy

        # Without their spacing: the spline has as many control points along each axis, however long that is.
        image, mask = SimpleITK.GetImageFromArray(grey), SimpleITK.GetImageFromArray(tissue.astype(np.uint8))
        factors = [max(1, min(self.shrink, edge // _FEWEST)) for edge in reversed(grey.shape)]
        n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations([self.iterations] * _LEVELS)
        n4.SetNumberOfThreads(1)  # sums over threads differ in their last bits
        n4.Execute(SimpleITK.Shrink(image, factors), SimpleITK.Shrink(mask, factors))
        field = np.asarray(SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)), np.float64)
        field -= field[tissue].mean()  # N4 leaves its scale to chance
        return (grey / np.exp(field)).astype(np.float32)


__all__ = ["N4"]
