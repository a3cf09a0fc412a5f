"""DICOM RTSTRUCT to a label volume on its series' own grid: closed contours, filled.

A pixel belongs to a region when its centre lies inside an odd number of the region's contours on that slice (even-odd
rule): a contour within another is a hole, and a keyhole's channel has no width and draws nothing. Contours that cross
each other, or come twice, are parts of one region and united first; only for CLOSEDPLANAR_XOR PS3.3 says that they cut
each other out. A centre on the left or upper edge is inside,
on the right or lower edge outside. Slices without a contour are background; nothing is interpolated.

A contour that names the image it was drawn on must lie on that image, and the image be in the series; writers that
invent a frame of reference (rt-utils) are readable that way. A contour that names no image needs the series' frame of
reference and must lie on one of its slices. One broken contour refuses the whole object.
Source: DICOM PS3.3 C.8.8.5 (structure set), C.8.8.6 (ROI contour).
"""

import itertools
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.data.dicom.text import encodings_of, text_of_tag
from client.data.dicom.values import name_of
from client.data.read.dicom_seg import Grid
from client.data.study.labels import Naming
from common.errors import DataError, ErrorCode

_TAGS = ["StructureSetROISequence", "ROIContourSequence"]
_EXCLUSIVE = "CLOSEDPLANAR_XOR"
_AREAS = ("CLOSED_PLANAR", _EXCLUSIVE)
# A contour lies within another when this share of its pixels does: writers round, and holes touch their edge.
_WITHIN = 0.95
# A contour lies on a slice when all its points are no further away than this share of the slice spacing, or this.
_SHARE = 0.1
_ROUNDING_MM = 0.05
# Contours that run through pixel centres must not depend on the last bits of an affine: 1/1000 of a pixel.
_DECIMALS = 3


def read_labels(path: Path, grid: Grid, naming: Naming) -> NDArray[np.uint8]:
    """Fill the contours of a structure set.

    Where ROIs overlap, the class with the higher number wins, or each stays where the run's classes may overlap. As
    found, only ROIs with closed contours make classes: points and open lines alone (markers, a catheter) mark no area.

    Args:
        path: the structure set.
        grid: the series it was drawn on.
        naming: ROI name -> class.

    Returns:
        (Z, Y, X) uint8, 0 background, else what `Naming.value` says.

    Raises:
        DataError: NO_LABEL, LABEL_UNKNOWN, GEOMETRY_MISMATCH, UNREADABLE or UNSUPPORTED.
    """
    ds = pydicom.dcmread(path, specific_tags=list(_TAGS))
    encodings = encodings_of(ds)
    described = {int(roi.ROINumber): roi for roi in ds.get("StructureSetROISequence") or []}
    drawn = [roi for roi in ds.get("ROIContourSequence") or [] if roi.get("ContourSequence")]
    if naming.as_found:
        drawn = [roi for roi in drawn if any(map(_is_area, roi.ContourSequence))]
    if not drawn:
        raise DataError("the structure set holds no contours. Export it again.", ErrorCode.NO_LABEL)
    labels = np.zeros(grid.shape, np.uint8)
    for contours in drawn:
        number = int(contours.ReferencedROINumber)
        if number not in described:
            raise DataError(
                f"ROI {number} has contours but no name. Export the structure set again.", ErrorCode.LABEL_UNKNOWN
            )
        roi = described[number]
        value = naming.number([_name(roi, encodings)], number, what="ROI")
        if value:
            same_frame = str(roi.get("ReferencedFrameOfReferenceUID", "")) == grid.frame_of_reference != ""
            for z, region in _regions(contours.ContourSequence, grid, same_frame):
                naming.drawn |= {value} if region.any() else set()
                naming.draw(labels[z], region * np.uint8(naming.value(value)))
    return labels


def fill(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons by the even-odd rule, all of them together.

    Args:
        contours: (N, 2) corners (y, x) in pixels each; whole numbers are pixel centres. They close themselves.
        shape: (Y, X).

    Returns:
        (Y, X), whether the pixel's centre is inside an odd number of the polygons.
    """
    height, width = shape
    # Each edge toggles all pixels to its right, in the rows whose centre line it crosses: the count of toggles so far
    # says inside or outside.
    toggles = np.zeros((height, width + 1), np.uint8)
    for contour in contours:
        upper, lower = contour, np.roll(contour, -1, axis=0)
        falls = (upper[:, 0] <= lower[:, 0])[:, None]
        upper, lower = np.where(falls, upper, lower), np.where(falls, lower, upper)
        first, last = (np.clip(np.ceil(ends[:, 0]), 0, height).astype(np.intp) for ends in (upper, lower))
        counts = last - first
        edge = np.repeat(np.arange(len(contour)), counts)
        rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        share = (rows - upper[edge, 0]) / (lower[edge, 0] - upper[edge, 0])
        crossing = upper[edge, 1] + share * (lower[edge, 1] - upper[edge, 1])
        np.add.at(toggles, (rows, np.clip(np.ceil(crossing), 0, width).astype(np.intp)), 1)
    filled: NDArray[np.bool_] = np.cumsum(toggles[:, :width], axis=1, dtype=np.uint8) % 2 == 1
    return filled


def united(contours: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons by the even-odd rule, those that cross each other as one.

    Args:
        contours: (N, 2) corners (y, x) in pixels each, see `fill`.
        shape: (Y, X).

    Returns:
        (Y, X).
    """
    if not _touch(contours):
        return fill(contours, shape)
    parts: list[NDArray[np.bool_]] = []
    for contour in contours:
        part = fill([contour], shape)
        crossed = [_cross(part, other) for other in parts]
        for other in itertools.compress(parts, crossed):
            part |= other
        parts = [*itertools.compress(parts, map(operator.not_, crossed)), part]
    filled: NDArray[np.bool_] = np.logical_xor.reduce(parts)
    return filled


def _touch(contours: Sequence[NDArray[np.float64]]) -> bool:
    """Whether the boxes around any two polygons have a point in common."""
    lows, highs = (np.array([end(contour, axis=0) for contour in contours]) for end in (np.min, np.max))
    apart = (lows[:, None] > highs[None]).any(axis=2) | (highs[:, None] < lows[None]).any(axis=2)
    return int((~apart).sum()) > len(contours)  # each touches itself


def _cross(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> bool:
    """Whether two regions overlap and neither is a hole, or an island, of the other."""
    both = int((first & second).sum())
    small, large = sorted((int(first.sum()), int(second.sum())))
    return both > 0 and (both < _WITHIN * small or small >= _WITHIN * large)


def _name(roi: Dataset, encodings: Sequence[str]) -> str:
    return text_of_tag(roi, "ROIName", encodings) or str(roi.get("ROIName") or "")


def _is_area(contour: Dataset) -> bool:
    return contour.get("ContourGeometricType") in _AREAS


def _regions(contours: Sequence[Dataset], grid: Grid, same_frame: bool) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """For each slice that an ROI touches, its pixels there."""
    by_slice: dict[int, list[NDArray[np.float64]]] = {}
    exclusive = any(contour.ContourGeometricType == _EXCLUSIVE for contour in contours)
    for contour in contours:
        if not _is_area(contour):
            raise DataError(
                "an ROI holds points or open lines; expected closed contours. Map it to "
                '"background" in label-map in site.toml, or draw it closed.',
                ErrorCode.UNSUPPORTED,
            )
        z, corners = _place(contour, grid, same_frame)
        by_slice.setdefault(z, []).append(corners)
    for z, polygons in by_slice.items():
        shape = (grid.shape[1], grid.shape[2])
        yield z, fill(polygons, shape) if exclusive else united(polygons, shape)


def _place(contour: Dataset, grid: Grid, same_frame: bool) -> tuple[int, NDArray[np.float64]]:
    """The slice of a contour, and its corners (N, 2) in pixels (y, x)."""
    if grid.stack is None:
        raise _misplaced("its series has no place in the patient")
    points = _points(contour).T
    index = np.linalg.inv(grid.stack.affine) @ np.vstack([points, np.ones(points.shape[1])])
    z = round(float(np.median(index[0])))
    named = contour.get("ContourImageSequence") or []
    slices = grid.slices_named(named)
    if named and not slices:
        raise _misplaced("a contour was drawn on an image that is not in the series")
    if not named and not same_frame:
        raise _misplaced("a contour names no image, and its frame of reference is not the series'")
    tolerance_mm = max(_ROUNDING_MM, _SHARE * grid.stack.spacing_mm[0])
    if np.abs(index[0] - z).max() * grid.stack.spacing_mm[0] > tolerance_mm or not 0 <= z < grid.shape[0]:
        raise _misplaced("a contour lies between, across or outside of the slices")
    if named and z not in slices:
        raise _misplaced("a contour does not lie on the image it was drawn on")
    corners: NDArray[np.float64] = np.round(index[1:3].T, _DECIMALS)
    return z, corners


def _points(contour: Dataset) -> NDArray[np.float64]:
    """(N, 3) mm, LPS."""
    # Read past pydicom, which makes an object of every number: 7 times slower on a thorax of 264,000.
    raw = contour.get_item("ContourData")
    values = raw.value if raw is not None else None
    try:
        numbers = np.array(values.split(b"\\") if isinstance(values, bytes) else [], np.float64)
    except ValueError:
        raise DataError(
            f"{name_of('ContourData')} holds something that is no number; they are written with a decimal point. "
            "Export the structure set again.",
            ErrorCode.UNREADABLE,
        ) from None
    if not len(numbers) or len(numbers) % 3 or not np.isfinite(numbers).all():
        raise DataError(
            f"a contour holds {len(numbers)} numbers; expected three finite ones per point. Export it again.",
            ErrorCode.UNREADABLE,
        )
    return numbers.reshape(-1, 3)


def _misplaced(how: str) -> DataError:
    return DataError(
        f"the structure set does not fit its series: {how}. Export both together.", ErrorCode.GEOMETRY_MISMATCH
    )
