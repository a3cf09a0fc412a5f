"""A map of the preprocessed grid on the study's own grid.

The way back is that of a segmentation (`client.data.prepare`), whose steps move labels and never compute with them. So
a map goes the same way as two labels, the high and the low byte of its value among 65535 steps from its smallest to its
largest; 0 in both is a voxel of which the map says nothing, or which preparation cut away, and becomes NaN. A voxel has
the value of the nearest one.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.data.prepare.preprocess import Way, restore

_STEPS = 2**16 - 2


def restored(values: Tensor, way: Way) -> NDArray[np.float32]:
    """A map (*sp) of the preprocessed study, NaN where it says nothing, as (*sp) of the study."""
    found = values.numpy().astype(np.float64)
    low, high = (float(np.nanmin(found)), float(np.nanmax(found))) if np.isfinite(found).any() else (0.0, 0.0)
    scale = (high - low) or 1.0
    levels = np.where(np.isnan(found), 0, 1 + np.rint((np.nan_to_num(found) - low) / scale * _STEPS)).astype(np.uint16)
    parts = [restore((levels >> shift).astype(np.uint8), way).astype(np.uint16) for shift in (8, 0)]
    back = (parts[0] << 8) | parts[1]
    return np.where(back == 0, np.nan, low + (back.astype(np.float64) - 1) / _STEPS * scale).astype(np.float32)


__all__ = ["restored"]
