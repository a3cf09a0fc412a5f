"""A coarser scanner: an image is blurred and sampled on a coarser grid, then brought back to the grid that it had.

So it looks as the series of such a scanner after it was resampled to the spacing of the others, and the label, which
was drawn on that grid, stays as it is.
"""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simulations.shifts.shift import ImageShift

# Full width at half maximum of a Gaussian over its standard deviation: the blur is as wide as a coarse voxel.
_WIDTH = 2.3548


class Resolution(ImageShift):
    """`factor` is the edge of a coarse voxel in voxels. along: of volumes all axes, or from slice to slice alone."""

    kind: Literal["resolution"] = "resolution"
    factor: Annotated[float, Field(gt=1, le=32)] = 2.0
    along: Literal["all", "slices"] = "all"

    def on(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Nothing is drawn at random; an axis of one voxel stays, and so do pictures with along = "slices"."""
        from scipy.ndimage import gaussian_filter  # noqa: PLC0415 - 0.3 s, needed by shifted sites alone

        axes = [axis for axis in range(image.ndim - 1) if self.along == "all" or (axis == 0 and image.ndim == 4)]
        wide = [self.factor / _WIDTH if axis in axes else 0.0 for axis in range(image.ndim - 1)]
        made: NDArray[np.float32] = gaussian_filter(image, [0.0, *wide], mode="nearest")
        for axis in axes:
            made = _coarse(made, axis + 1, self.factor)
        return made


def _coarse(image: NDArray[np.float32], axis: int, factor: float) -> NDArray[np.float32]:
    """Kept at the middles of coarse voxels, and drawn straight between those."""
    edge = image.shape[axis]
    count = max(1, round(edge / factor))
    middles = (np.arange(count) + 0.5) * edge / count - 0.5
    few = _between(image, axis, np.arange(edge), middles)
    return _between(few, axis, middles, np.arange(edge))


def _between(image: NDArray[np.float32], axis: int, given: NDArray[Any], at: NDArray[Any]) -> NDArray[np.float32]:
    from scipy.interpolate import make_interp_spline  # noqa: PLC0415 - see above

    if len(given) == 1:
        return np.repeat(image, len(at), axis)
    straight = make_interp_spline(given, image, k=1, axis=axis)
    return np.asarray(straight(at.clip(given[0], given[-1])), np.float32)


__all__ = ["Resolution"]
