"""Labels on their own grid to labels on their image's, in the space of the patient, by nearest neighbour.

Axes are (z, y, x); an affine goes from an index (z, y, x, 1) to mm, LPS. What gets lost on the way is measured, because
a label that lies elsewhere than its image was hardly drawn on it.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client.data.study.labels import Naming
from common import labelmap
from common.errors import DataError, ErrorCode

# Of a voxel: centres on the very edge of the image are inside, whatever the last bits of an affine say.
_ROUNDING = 1e-6
# Grids have the same voxels where no corner is further off than this share of one.
_SAME_VOXEL = 0.1


def resample(
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    onto: NDArray[np.float64],
    shape: tuple[int, ...],
    naming: Naming | None = None,
) -> NDArray[np.uint8]:
    """Bring labels from their own grid to another in the same patient space, by nearest neighbour.

    What the labels' grid does not reach is background.

    Args:
        labels: (z, y, x).
        affine: (4, 4) of the labels, index (z, y, x, 1) -> mm.
        onto: (4, 4) of the image, likewise.
        shape: (Z, Y, X) of the image.
        naming: is told that the label was resampled, and which share of it was lost.

    Returns:
        (Z, Y, X).

    Raises:
        DataError: GEOMETRY_MISMATCH, the grids do not meet, or nothing that is labelled falls on the image.
    """
    try:
        to_labels = np.linalg.inv(affine) @ onto
    except np.linalg.LinAlgError:
        to_labels = np.full((4, 4), np.nan)
    if not np.isfinite(to_labels).all():
        raise _apart("its geometry is corrupt")
    across = to_labels[:3, 1:3] @ np.indices(shape[1:]).reshape(2, -1) + to_labels[:3, 3:]
    edges = np.array(labels.shape)[:, None]
    moved = np.zeros((shape[0], shape[1] * shape[2]), np.uint8)
    meets = False
    for z, plane in enumerate(moved):
        # A centre halfway between two goes to the later one, whatever the last bits of an affine say.
        index = np.floor(across + z * to_labels[:3, :1] + (0.5 + 1e-6))
        inside = ((index >= 0) & (index < edges)).all(axis=0)
        plane[inside] = labels[tuple(index[:, inside].astype(np.intp))]
        meets = meets or bool(inside.any())
    if not meets or (labels.any() and not moved.any()):
        raise _apart("nothing that it labels falls on the image")
    if naming is not None:
        told, between = naming.labelling, not _same_voxels(to_labels, shape)
        lost = _lost(labels, np.linalg.inv(onto) @ affine, moved, shape, overlap=naming.overlap)
        naming.labelling = replace(told, resampled=told.resampled + between, lost=max(told.lost, lost))
    return moved.reshape(shape)


def _same_voxels(to_labels: NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    """Whether two grids have the same voxels, in whatever order of axes, and only begin or end elsewhere.

    Args:
        to_labels: (4, 4), index on the image's grid -> index on the labels'.
        shape: (Z, Y, X) of the image.
    """
    whole = np.rint(to_labels)
    corners = np.stack([*np.indices((2, 2, 2)).reshape(3, -1) * (np.array(shape)[:, None] - 1), np.ones(8)])
    return abs(abs(np.linalg.det(whole[:3, :3])) - 1) < _ROUNDING and bool(
        np.abs((to_labels - whole) @ corners).max() <= _SAME_VOXEL
    )


def _lost(
    labels: NDArray[np.uint8],
    to_image: NDArray[np.float64],
    moved: NDArray[np.uint8],
    shape: tuple[int, ...],
    *,
    overlap: bool,
) -> float:
    """The largest share of a class that did not arrive: its voxels whose centres lie outside of the image; all of them
    where the image's grid is too coarse for any.

    Args:
        labels: (z, y, x) on their own grid.
        to_image: (4, 4), index on their grid -> index on the image's.
        moved: the same labels on the image's grid, any shape.
        shape: (Z, Y, X) of the image.
        overlap: whether classes may overlap.
    """
    outside = labelmap.counts(labels[:0], overlap=overlap)[1:]
    edges = np.array(shape)[:, None]
    for z, plane in enumerate(labels):
        y, x = np.nonzero(plane)
        index = to_image[:3] @ np.stack([np.full(len(y), float(z)), y, x, np.ones(len(y))])
        beyond = ((index < -0.5 - _ROUNDING) | (index > edges - 0.5 + _ROUNDING)).any(axis=0)
        outside += labelmap.counts(plane[y[beyond], x[beyond]], overlap=overlap)[1:]
    before, after = (labelmap.counts(volume, overlap=overlap)[1:] for volume in (labels, moved))
    gone = np.where(after > 0, outside, before)
    return float((gone[before > 0] / before[before > 0]).max(initial=0.0))


def _apart(why: str) -> DataError:
    return DataError(
        f"the label lies on another grid than its image, and {why}. Resample it to the image.",
        ErrorCode.GEOMETRY_MISMATCH,
    )


__all__ = ["resample"]
