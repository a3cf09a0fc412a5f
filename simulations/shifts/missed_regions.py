"""Careless annotators: regions of a label map are missed, each with a probability."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from client.data.study.study import Study
from common import labelmap
from simulations.shifts.shift import LabelShift, masks_of


class MissedRegions(LabelShift):
    """Of label maps; a region hangs together by its faces, edges or corners. The largest of each class is seen."""

    kind: Literal["missed-regions"] = "missed-regions"
    probability: Annotated[float, Field(gt=0, le=1)] = 0.3

    def on_map(self, label: NDArray[np.uint8], study: Study, rng: np.random.Generator) -> NDArray[np.uint8]:
        """See `LabelShift`."""
        from scipy import ndimage  # noqa: PLC0415 - 0.3 s, needed by shifted sites alone

        made = label.copy()
        for number, mask in masks_of(label, study).items():
            regions, count = ndimage.label(mask, np.ones((3,) * label.ndim))
            sizes = np.bincount(regions.ravel())[1:]
            missed = rng.random(count) < self.probability
            missed[sizes.argmax()] = False
            value = labelmap.value_of(number, overlap=study.overlap)
            made[np.isin(regions, 1 + np.flatnonzero(missed))] -= np.uint8(value)
        return made


__all__ = ["MissedRegions"]
