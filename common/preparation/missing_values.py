"""Missing values: voxels that were not measured get the value of the nearest ones that were, and count in no statistic.

What is missing: values that are no numbers (NaN, infinity), of which a study may have so many; the padding around an
image, as its file names it (DICOM PixelPaddingValue), which has the value of air or the darkest one when it comes here;
and dead lines, the rows or columns of a slice that a detector lost. Slice by slice, each channel by itself.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.preparation.regions import by_plane
from common.preparation.step import Geometry, Image, Mask, Place, Step, Voxels

# A line is dead when it jumps from both of its neighbours by more than so many standard deviations of what lines do ...
_JUMP = 8.0
# ... and with so much of its length.
_SHARE = 0.9
# Lines of a plane that a standard deviation is taken from, and voxels that a line is judged by.
_FEWEST_LINES, _FEWEST_VOXELS = 8, 8


class MissingValues(Step):
    """`most` is the share of an image's values that may be no numbers; a study with more is set aside, as one with any
    is in a run without this step. `dead_lines`: rows and columns that are one value, or far from the lines on both
    sides, become the mean of those. `padding`: it takes no part in percentiles, means and histograms.
    """

    kind: Literal["missing-values"] = "missing-values"
    most: Annotated[float, Field(ge=0, le=0.2)] = 0.01
    dead_lines: bool = True
    padding: bool = True
    PLACE: ClassVar[Place] = "acquired"

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """Image alone; label and padding stay."""
        image = voxels.image
        missing = ~np.isfinite(image)
        if missing.any():
            image = np.stack([_filled(*of) for of in zip(image, missing, strict=True)])
        if self.dead_lines:
            image = by_plane(image, lambda plane: _mended(_mended(plane).T).T)
        return replace(voxels, image=image)


def dead_lines(plane: NDArray[np.float32]) -> NDArray[np.intp]:
    """The rows of a plane that are dead; never the first or the last, of which only one neighbour is there."""
    lines = plane.astype(np.float64)
    if len(lines) < _FEWEST_LINES or lines.shape[1] < _FEWEST_VOXELS:
        return np.empty(0, np.intp)
    above, line, below = lines[:-2], lines[1:-1], lines[2:]
    up, down = line - above, line - below
    # Where all three are one value there is nothing to judge by, as outside of a body.
    judged = (up != 0) | (down != 0)
    counts = judged.sum(axis=1)
    jump = np.array(
        [float(np.median(row[of])) if of.any() else 0.0 for row, of in zip((up + down) / 2, judged, strict=True)]
    )
    usual = 1.4826 * float(np.median(np.abs(jump - np.median(jump))))
    alike = ((np.sign(up) == np.sign(jump)[:, None]) & (np.sign(down) == np.sign(jump)[:, None]) & judged).sum(axis=1)
    apart = np.abs(above - below)
    steady = np.array([float(np.median(row[of])) if of.any() else 0.0 for row, of in zip(apart, judged, strict=True)])
    jumps = (
        (counts >= _FEWEST_VOXELS)
        & (np.abs(jump) > _JUMP * usual)
        & (np.abs(jump) > 2 * steady)
        & (alike >= _SHARE * counts)
    )
    flat = [np.ptp(one, axis=1) == 0 for one in (above, line, below)]
    constant = ~flat[0] & flat[1] & ~flat[2]
    return np.flatnonzero(jumps | constant) + 1


def _mended(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """The plane with its dead rows as the mean of the rows beside them."""
    dead = dead_lines(plane)
    if not dead.size:
        return plane
    mended = plane.copy()
    mended[dead] = plane[dead - 1] / 2 + plane[dead + 1] / 2
    return mended


def _filled(channel: NDArray[np.float32], missing: Mask) -> Image:
    """The channel with the plane's nearest value where one is missing; a plane without any is the next that has."""
    from scipy import ndimage  # noqa: PLC0415 - heavy

    flat, holes = channel.reshape(-1, *channel.shape[-2:]).copy(), missing.reshape(-1, *channel.shape[-2:])
    measured = np.flatnonzero(~holes.all(axis=(1, 2)))
    if not measured.size:
        return channel  # nothing to fill it with; what scales intensities refuses it
    for place in measured:
        if holes[place].any():
            nearest = ndimage.distance_transform_edt(holes[place], return_distances=False, return_indices=True)
            flat[place] = flat[place][tuple(nearest)]
    for place in np.flatnonzero(holes.all(axis=(1, 2))):
        flat[place] = flat[measured[np.abs(measured - place).argmin()]]
    return flat.reshape(channel.shape)


__all__ = ["MissingValues", "dead_lines"]
