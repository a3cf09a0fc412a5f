"""Field of view: the disc that a fundus camera, an endoscope or an ultrasound probe sees; what is around it becomes 0.

Brighter than a threshold, the largest such part, its holes filled and its edge smoothed. What comes after takes its
statistics from inside alone.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.preparation.regions import largest
from common.preparation.step import Expected, Geometry, Mask, Place, Step, Voxels, check_kept

# Of the shorter edge: how far the image is smoothed before, and small parts are taken off after.
_SMOOTHED = 1 / 300
_OPENED = 1 / 100


class FieldOfView(Step):
    """`threshold` of the brightest channel, on [0, 1]; `margin` in voxels is taken off all around."""

    kind: Literal["field-of-view"] = "field-of-view"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.15
    margin: Annotated[int, Field(ge=0, le=200)] = 0
    PLACE: ClassVar[Place] = "scaled"

    def misfit(self, expected: Expected) -> str | None:
        """Intensities that are not on [0, 1]."""
        return None if expected.scaled else "needs intensities on [0, 1]: take another intensity than a zscore"

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Slice by slice; one without anything bright stays as it is. The label stays.

        Raises:
            DataError: LABEL_DOUBTFUL, what is labelled lies outside of the field of view.
        """
        value = voxels.image.max(axis=0)
        seen = np.ones(value.shape, np.bool_)
        for place in np.ndindex(value.shape[:-2]):
            seen[place] = self._seen(value[place])
        if voxels.label is not None:
            remedy, kept = "set a lower threshold or a smaller margin", voxels.label * seen
            check_kept(voxels.label, kept, "field-of-view", remedy, overlap=voxels.overlap)
        inside = seen if voxels.inside is None else seen & voxels.inside
        return replace(voxels, image=np.where(seen, voxels.image, np.float32(0)), inside=inside)

    def _seen(self, plane: NDArray[np.float32]) -> Mask:
        from scipy import ndimage  # noqa: PLC0415 - heavy

        edge = min(plane.shape)
        smooth = ndimage.gaussian_filter(plane, edge * _SMOOTHED, mode="nearest")
        found = ndimage.binary_fill_holes(largest(smooth > self.threshold))
        # Distances, not a structuring element: a disc of any size costs the same. Beyond the image counts as inside.
        opened, radius = found, edge * _OPENED
        if radius >= 1 and not found.all():
            kept = _depth(found) > radius
            opened = found & (ndimage.distance_transform_edt(~kept) <= radius) if kept.any() else found
        if self.margin and not opened.all():
            opened = _depth(opened) > self.margin
        seen: Mask = largest(opened)
        return seen if seen.any() else np.ones(plane.shape, np.bool_)


def _depth(mask: Mask) -> NDArray[np.float64]:
    """How far each voxel of a mask is from what is outside of it."""
    from scipy import ndimage  # noqa: PLC0415 - heavy

    depth: NDArray[np.float64] = ndimage.distance_transform_edt(mask)
    return depth


__all__ = ["FieldOfView"]
