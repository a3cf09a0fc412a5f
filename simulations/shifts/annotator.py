"""The style of an annotator: outlines that are drawn generously, or tightly, by so many millimetres."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from client.data.study.study import Study
from common import labelmap
from simulations.shifts.shift import LabelShift, masks_of


class Annotator(LabelShift):
    """Above 0 each class grows over what is no class, below 0 it shrinks; by pixels, where lengths are not known.

    Where two classes grow into one place it goes to the nearer one. One that would vanish stays as it is.
    """

    kind: Literal["annotator"] = "annotator"
    margin_mm: Annotated[float, Field(ge=-100, le=100)] = 1.0

    def on_map(self, label: NDArray[np.uint8], study: Study, rng: np.random.Generator) -> NDArray[np.uint8]:
        """See `LabelShift`; nothing is drawn at random."""
        masks = masks_of(label, study)
        if not masks or self.margin_mm == 0:
            return label
        spacing = study.spacing_mm or (1.0,) * label.ndim
        return (
            _grown(label, masks, spacing, self.margin_mm, study)
            if self.margin_mm > 0
            else _shrunk(label, masks, spacing, -self.margin_mm, study)
        )


def _grown(
    label: NDArray[np.uint8],
    masks: dict[int, NDArray[np.bool_]],
    spacing: tuple[float, ...],
    margin: float,
    study: Study,
) -> NDArray[np.uint8]:
    made, nearest = label.copy(), np.full(label.shape, np.inf)
    for number, mask in masks.items():
        distance = _distance(~mask, spacing)
        value = np.uint8(labelmap.value_of(number, overlap=study.overlap))
        if study.overlap:
            made[distance <= margin] |= value
        else:
            taken = ~label.astype(bool) & (distance <= margin) & (distance < nearest)
            made[taken], nearest[taken] = value, distance[taken]
    return made


def _shrunk(
    label: NDArray[np.uint8],
    masks: dict[int, NDArray[np.bool_]],
    spacing: tuple[float, ...],
    margin: float,
    study: Study,
) -> NDArray[np.uint8]:
    made = label.copy()
    for number, mask in masks.items():
        lost = mask & (_distance(mask, spacing) <= margin)
        if lost.sum() < mask.sum():
            made[lost] -= np.uint8(labelmap.value_of(number, overlap=study.overlap))
    return made


def _distance(inside: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """mm from each voxel that is inside to the nearest one that is not; infinite where none is."""
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415 - 0.3 s, needed by shifted sites alone

    if inside.all():
        return np.full(inside.shape, np.inf)  # scipy would measure from beyond a corner
    return np.asarray(distance_transform_edt(inside, sampling=spacing))


__all__ = ["Annotator"]
