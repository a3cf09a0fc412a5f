"""Where voxels lie in the patient: slices to a stack, and index axes to body axes.

Patient coordinates are DICOM's: mm, LPS. An affine maps index (z, y, x, 1) to (x, y, z, 1) in mm. Slices are ordered
by position along their normal, never by instance number. Source: DICOM PS3.3 C.7.6.2 (Image Plane Module).
"""

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ErrorCode

Floats = NDArray[np.float64]

# A step between slices may differ from the median step by this share plus this length (positions are written
# with two decimals by some scanners). A missing slice doubles a step, so any share below 1 finds it.
STEP_TOLERANCE = 0.05
ROUNDING_MM = 0.01
# Direction cosines are written with at least four decimals.
_DIRECTION_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices, evenly spaced.

    order: (Z,) the input's indices, sorted along the normal.
    positions: (Z, 3) LPS mm of the first pixel of each slice, sorted.
    orientation: (6,) direction of a row (x index), then of a column (y index).
    spacing_mm: (z, y, x); z is measured along the normal.
    """

    order: NDArray[np.intp]
    positions: Floats
    orientation: Floats
    spacing_mm: tuple[float, float, float]
    affine: Floats


def stack_slices(positions: Floats, orientations: Floats, pixel_spacing: Floats, thickness_mm: float) -> Stack:
    """Order slices and check that they make an even stack.

    Args:
        positions: (Z, 3) Image Position (Patient).
        orientations: (Z, 6) Image Orientation (Patient).
        pixel_spacing: (Z, 2) mm, (y, x).
        thickness_mm: z spacing where there is one slice only; 1 mm where this is no length either.

    Raises:
        DataError: GEOMETRY_MISMATCH for slices that do not belong into one stack, MISSING_SLICES for a gap,
            IMPLAUSIBLE for pixels without a size.
    """
    if not (np.isfinite(pixel_spacing).all() and (pixel_spacing > 0).all()):
        raise DataError("the pixel spacing is not a positive length. Export the series again.", ErrorCode.IMPLAUSIBLE)
    if not (np.isfinite(positions).all() and np.isfinite(orientations).all()):
        raise DataError(
            "a position or an orientation is no finite number. Export the series again.", ErrorCode.GEOMETRY_MISMATCH
        )
    if not (math.isfinite(thickness_mm) and thickness_mm > 0):
        thickness_mm = 1.0
    row, column = _directions(orientations)
    normal = np.cross(row, column)
    rows_mm, columns_mm = _common(pixel_spacing, "pixel spacings", relative=_DIRECTION_TOLERANCE)
    depths = positions @ normal
    order = np.argsort(depths, kind="stable")
    positions = positions[order]
    step = _step(positions, normal) if len(positions) > 1 else normal * thickness_mm
    affine = np.eye(4)
    affine[:3] = np.stack([step, column * rows_mm, row * columns_mm, positions[0]], axis=1)
    spacing_mm = (float(step @ normal), float(rows_mm), float(columns_mm))
    return Stack(order, positions, np.concatenate([row, column]), spacing_mm, affine)


def body_axes(affine: Floats, keep_slices: bool) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn a volume so that its axes run to the head, to the back and to the left, as nearly as they can.

    Sites store the same anatomy in different orders; a network must see one.

    Args:
        affine: (4, 4) index (z, y, x, 1) -> LPS mm.
        keep_slices: leave axis 0 first (the acquired slices of a 2D model), and order the other two.

    Returns:
        For each new axis, the old axis it comes from, and whether it is reversed.

    Raises:
        DataError: GEOMETRY_MISMATCH, the affine has no volume.
    """
    directions = affine[:3, :3][::-1]  # rows (z, y, x) of the patient; columns (z, y, x) of the index
    lengths = np.linalg.norm(directions, axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(directions)) < 1e-6 * max(1e-12, float(lengths.prod())):
        raise DataError(
            "the image's axes span no volume. Its geometry is corrupt: export it again.", ErrorCode.GEOMETRY_MISMATCH
        )
    cosines = directions / lengths
    best = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[w, a]) for w, a in enumerate(axes)))
    axes = [0, *(axis for axis in best if axis != 0)] if keep_slices else list(best)
    flips = [bool(cosines[best.index(axis), axis] < 0) for axis in axes]
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def _directions(orientations: Floats) -> tuple[Floats, Floats]:
    orientation = _common(orientations, "orientations", relative=0.0)
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 1e-2 or abs(lengths[1] - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise DataError(
            "the orientation of the slices is not two perpendicular unit vectors. Export the series again.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return row / lengths[0], column / lengths[1]


def _common(values: Floats, what: str, relative: float) -> Floats:
    first: Floats = values[0]
    if not np.allclose(values, first, rtol=relative, atol=_DIRECTION_TOLERANCE):
        raise DataError(
            f"the slices have different {what}; one series must be one stack. Split it, or take out the localiser.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return first


def _step(positions: Floats, normal: Floats) -> Floats:
    steps = np.diff(positions, axis=0)
    depths = steps @ normal
    if depths.min() <= ROUNDING_MM:
        raise DataError(
            "two slices lie at the same position; expected one image per position. "
            "Export phases, echoes or diffusion weights as series of their own.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    median = float(np.median(depths))
    tolerance = STEP_TOLERANCE * median + ROUNDING_MM
    if np.abs(depths - median).max() > tolerance:
        gaps = int((depths > median + tolerance).sum())
        raise DataError(
            f"the slices are {median:.2f} mm apart, but {gaps} gap(s) are wider or others narrower. "
            "Slices are missing, or the spacing varies: export the whole series.",
            ErrorCode.MISSING_SLICES,
        )
    # A tilted gantry moves every slice sideways by the same amount, which the affine can say; a jump it cannot.
    sideways = steps - np.outer(depths, normal)
    if np.linalg.norm(sideways - np.median(sideways, axis=0), axis=1).max() > tolerance:
        raise DataError(
            "the slices are shifted sideways against each other; expected one straight stack. Split the series.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    step: Floats = (positions[-1] - positions[0]) / (len(positions) - 1)
    return step
