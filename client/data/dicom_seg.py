"""DICOM SEG to a label volume on its series' own grid: binary, fractional and labelmap, sparse or not.

Slices without a frame are background, so a segmentation that names no voxel is a negative study and welcome; one
without any frame is no label. A fractional segment counts where it reaches half of its maximum. Frames are placed by
position where the series has one, else by the image they were derived from; a frame on another grid is refused.
Source: DICOM PS3.3 A.51, C.8.20.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.data.geometry import Stack
from client.data.labels import class_of_name
from common.config import DataConfig
from common.errors import DataError, ErrorCode

# A frame lies on a slice when it is no further away than this share of the smallest spacing, or this length.
_SHARE = 0.1
_ROUNDING_MM = 0.05

_TAGS = [
    "SegmentationType",
    "MaximumFractionalValue",
    "SegmentSequence",
    "FrameOfReferenceUID",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
]


@dataclass(frozen=True, eq=False)
class Grid:
    """The series a label must fit.

    shape: (Z, Y, X); stack: its geometry, None for a projection; instances: SOP instance UID of each slice.
    """

    shape: tuple[int, ...]
    stack: Stack | None
    instances: tuple[str, ...]
    frame_of_reference: str


def read_labels(paths: Sequence[Path], grid: Grid, data: DataConfig, label_map: Mapping[str, str]) -> NDArray[np.uint8]:
    """Draw all segmentations of a series into one label volume.

    Where segments overlap, the class named later in the run wins, whatever their order in the files.

    Args:
        paths: the segmentations.
        grid: the series.
        data: names the classes.
        label_map: segment label -> class.

    Returns:
        (Z, Y, X) uint8, 0 background, 1..K.

    Raises:
        DataError: NO_LABEL, LABEL_UNKNOWN, GEOMETRY_MISMATCH or UNSUPPORTED.
    """
    labels = np.zeros(grid.shape, np.uint8)
    for path in paths:
        ds = pydicom.dcmread(path, specific_tags=list(_TAGS))
        classes = {
            int(segment.SegmentNumber): class_of_name(str(segment.SegmentLabel), data, label_map, ordinal)
            for ordinal, segment in enumerate(ds.SegmentSequence, start=1)
            if int(segment.SegmentNumber) != 0  # labelmaps may describe their background
        }
        for z, drawn in _planes(ds, grid, classes):
            np.maximum(labels[z], drawn, out=labels[z])
    return labels


def _planes(ds: Dataset, grid: Grid, classes: Mapping[int, int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """For each frame, its slice and what it draws there."""
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if "PixelData" not in ds or not groups:
        raise DataError("the segmentation holds no frames. Export it again.", ErrorCode.NO_LABEL)
    if (ds.Rows, ds.Columns) != grid.shape[1:]:
        raise _other_grid(
            f"its frames have {ds.Rows} x {ds.Columns} pixels, the image {grid.shape[1]} x {grid.shape[2]}"
        )
    if grid.stack is not None and ds.get("FrameOfReferenceUID", grid.frame_of_reference) != grid.frame_of_reference:
        raise _other_grid("it has another frame of reference")
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frames = ds.pixel_array.reshape(len(groups), *grid.shape[1:])
    for frame, group in zip(frames, groups, strict=True):
        z = _slice_of(group, shared, grid)
        if ds.SegmentationType == "LABELMAP":
            yield z, _classes_of(frame, classes)
        else:
            segment = int(_macro(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            half = ds.MaximumFractionalValue / 2 if ds.SegmentationType == "FRACTIONAL" else 1
            yield z, np.where(frame >= half, classes[segment], 0).astype(np.uint8)


def _classes_of(frame: NDArray[np.integer[Any]], classes: Mapping[int, int]) -> NDArray[np.uint8]:
    """A labelmap frame, whose pixels are segment numbers, to classes."""
    numbers, where = np.unique(frame, return_inverse=True)
    strangers = {int(number) for number in numbers} - {0, *classes}
    if strangers:
        raise DataError(
            f"the labelmap uses {len(strangers)} segment number(s) that it does not describe. Export it again.",
            ErrorCode.LABEL_UNKNOWN,
        )
    return np.array([classes.get(int(number), 0) for number in numbers], np.uint8)[where].reshape(frame.shape)


def _slice_of(group: Dataset, shared: Dataset, grid: Grid) -> int:
    position = _macro(group, shared, "PlanePositionSequence")
    if grid.stack is None or position is None:
        return _source_slice(group, shared, grid)
    _check_plane(group, shared, grid.stack)
    where = np.array([float(number) for number in position.ImagePositionPatient])
    distances = np.linalg.norm(grid.stack.positions - where, axis=1)
    nearest = int(distances.argmin())
    if distances[nearest] > max(_ROUNDING_MM, _SHARE * min(grid.stack.spacing_mm)):
        raise _other_grid("a frame lies between or outside the slices")
    return nearest


def _check_plane(group: Dataset, shared: Dataset, stack: Stack) -> None:
    plane = _macro(group, shared, "PlaneOrientationSequence")
    if plane is not None and not np.allclose(
        [float(number) for number in plane.ImageOrientationPatient], stack.orientation, atol=1e-3
    ):
        raise _other_grid("its frames are turned against the slices")
    measures = _macro(group, shared, "PixelMeasuresSequence")
    if measures is not None and not np.allclose(
        [float(number) for number in measures.PixelSpacing], stack.spacing_mm[1:], rtol=1e-3
    ):
        raise _other_grid("its pixels have another size")


def _source_slice(group: Dataset, shared: Dataset, grid: Grid) -> int:
    """The slice that the frame says it was derived from."""
    derivation = _macro(group, shared, "DerivationImageSequence")
    sources = [] if derivation is None else derivation.get("SourceImageSequence") or []
    named = [str(source.ReferencedSOPInstanceUID) for source in sources]
    found = [grid.instances.index(uid) for uid in named if uid in grid.instances]
    if found:
        return found[0]
    if len(grid.instances) == 1:
        return 0
    raise _other_grid("a frame says neither where it lies nor which image it was drawn on")


def _macro(group: Dataset, shared: Dataset, keyword: str) -> Any:
    """The first item of a functional group macro, per frame or shared; None where there is none."""
    items = group.get(keyword) or shared.get(keyword)
    return items[0] if items else None


def _other_grid(how: str) -> DataError:
    return DataError(
        f"the segmentation has another grid than its series: {how}. Resample it to the series.",
        ErrorCode.GEOMETRY_MISMATCH,
    )
