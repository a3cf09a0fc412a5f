"""Crop to foreground: the smallest box that holds what is brighter than a threshold, and a margin around it.

Where the box lies follows from the voxels, so labels find back by the box itself. A label that the box would cut is
refused: its patient would be trained and scored on what is left of it.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from common.preparation.regions import brightness, otsu
from common.preparation.step import Change, Geometry, Label, Place, Step, Voxels, check_kept


class CropToForeground(Step):
    """`threshold` in the image's units; without it Otsu's, of the study. `margin` in voxels along each axis."""

    kind: Literal["crop-to-foreground"] = "crop-to-foreground"
    threshold: float | None = None
    margin: Annotated[int, Field(ge=0, le=1000)] = 0
    PLACE: ClassVar[Place] = "acquired"

    def on(self, voxels: Voxels, before: Geometry) -> Change:
        """The box of this study; all of it where nothing is brighter."""
        grey = brightness(voxels.image)
        bright = grey > (otsu(grey) if self.threshold is None else self.threshold)
        if voxels.inside is not None:
            bright &= voxels.inside
        box = []
        for axis, edge in enumerate(before.shape):
            held = np.flatnonzero(bright.any(axis=tuple(other for other in range(bright.ndim) if other != axis)))
            first, last = (int(held[0]), int(held[-1])) if held.size else (0, edge - 1)
            box.append((max(0, first - self.margin), min(edge, last + 1 + self.margin)))
        return Box(tuple(box))

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """What its box does."""
        return self.on(voxels, before).apply(voxels, before)


@dataclass(frozen=True)
class Box(Change):
    """A part of a study. ends: first voxel and the one after the last, along each axis of *sp."""

    ends: tuple[tuple[int, int], ...]

    def after(self, before: Geometry) -> Geometry:
        """The shape of the box."""
        return replace(before, shape=tuple(end - first for first, end in self.ends), affine=None)

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """The part.

        Raises:
            DataError: LABEL_DOUBTFUL, it would cut the label.
        """
        part = tuple(slice(*ends) for ends in self.ends)
        label = None if voxels.label is None else voxels.label[part]
        if voxels.label is not None and label is not None:
            remedy = "set a lower threshold or a wider margin"
            check_kept(voxels.label, label, "crop-to-foreground", remedy, overlap=voxels.overlap)
        return Voxels(
            np.ascontiguousarray(voxels.image[:, *part]),
            None if label is None else np.ascontiguousarray(label),
            None if voxels.inside is None else voxels.inside[part],
        )

    def invert(self, labels: Label, before: Geometry) -> Label:
        """The whole study, with background around the box."""
        whole = np.zeros(before.shape, np.uint8)
        whole[tuple(slice(*ends) for ends in self.ends)] = labels
        return whole


__all__ = ["Box", "CropToForeground"]
