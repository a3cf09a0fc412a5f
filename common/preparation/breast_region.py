"""Breast region of a mammogram: the tissue, without the dark film around it, and without labels and the film's edges.

Brighter than a threshold that Otsu's, on the logarithm of brightness, gives, because the skin's edge is as faint as the
film is dark; the largest such part, opened, so that what hangs on it by a thread goes, and filled. What is outside
becomes the darkest value, and counts in no statistic of what comes after.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.preparation.regions import largest, stands_out
from common.preparation.step import Expected, Geometry, Mask, Place, Step, Voxels, check_kept

# Modalities of projections that may be a breast.
MAMMOGRAMS = ("MG", "CR", "DX", "photo")
# Of the shorter edge: how far the image is smoothed, and what is thinner than twice this is no breast.
_SMOOTHED = 1 / 250
_OPENED = 1 / 40


class BreastRegion(Step):
    """`margin` in voxels is kept around what was found."""

    kind: Literal["breast-region"] = "breast-region"
    margin: Annotated[int, Field(ge=0, le=200)] = 0
    PLACE: ClassVar[Place] = "acquired"

    def misfit(self, expected: Expected) -> str | None:
        """What is no mammogram."""
        return no_mammogram(expected)

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Plane by plane. The label stays.

        Raises:
            DataError: LABEL_DOUBTFUL, what is labelled lies outside of the breast.
        """
        grey = voxels.image[0]
        inside = np.ones(grey.shape, np.bool_) if voxels.inside is None else voxels.inside.copy()
        for place in np.ndindex(grey.shape[:-2]):
            inside[place] &= breast(grey[place], self.margin)
        if voxels.label is not None:
            remedy, kept = "take the step out, or set a smaller margin", voxels.label * inside
            check_kept(voxels.label, kept, "breast-region", remedy, overlap=voxels.overlap)
        return replace(voxels, image=np.where(inside, voxels.image, voxels.image.min()), inside=inside)


def no_mammogram(expected: Expected) -> str | None:
    """Why a run of such images can have no step for mammograms; None: it can."""
    if expected.modality not in MAMMOGRAMS or expected.channels > 1:
        return f"is for mammograms: one channel, and modality {', '.join(MAMMOGRAMS[:-1])} or {MAMMOGRAMS[-1]}"
    return None


def breast(plane: NDArray[np.float32], margin: int = 0) -> Mask:
    """Where (Y, X) shows the breast; everywhere where nothing stands out."""
    from scipy import ndimage  # noqa: PLC0415 - heavy

    edge = min(plane.shape)
    smooth = ndimage.gaussian_filter(plane, edge * _SMOOTHED, mode="nearest")
    found = largest(stands_out(smooth))
    radius = edge * _OPENED
    # Beyond the image counts as breast, so that the chest wall is no edge.
    kept = ndimage.distance_transform_edt(found) > radius if not found.all() else found
    if kept.any() and not kept.all():
        found &= ndimage.distance_transform_edt(~largest(kept)) <= radius
    filled: Mask = ndimage.binary_fill_holes(found)
    if margin and filled.any():
        filled = ndimage.distance_transform_edt(~filled) <= margin
    return filled if filled.any() else np.ones(plane.shape, np.bool_)


__all__ = ["MAMMOGRAMS", "BreastRegion", "breast", "no_mammogram"]
