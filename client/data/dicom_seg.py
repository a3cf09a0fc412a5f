"""DICOM SEG to a label volume on its series' own grid: binary, fractional and labelmap, sparse or not.

Slices without a frame are background, so a segmentation that names no voxel is a negative study and welcome; one
without any frame is no label. A fractional segment counts where it reaches half of its maximum. Frames are placed by
position where the series has one, else by the image they were derived from. A segmentation on another grid is
resampled when both lie in one frame of reference, and refused else.
Source: DICOM PS3.3 A.51, C.8.20.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.data.geometry import Stack
from client.data.labels import class_of_name, resample
from common.config import DataConfig
from common.errors import DataError, ErrorCode

# A frame lies on a slice when it is no further away than this share of the smallest spacing, or this length.
_SHARE = 0.1
_ROUNDING_MM = 0.05
# Direction cosines and pixel sizes are the same up to this.
_DIRECTION = 1e-3
# No scan has more; an object that says so would fill the memory.
_MOST_SLICES = 10_000

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
        np.maximum(labels, _drawn(ds, grid, classes), out=labels)
    return labels


def _drawn(ds: Dataset, grid: Grid, classes: Mapping[int, int]) -> NDArray[np.uint8]:
    """What one segmentation draws on the series."""
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if "PixelData" not in ds or not groups:
        raise DataError("the segmentation holds no frames. Export it again.", ErrorCode.NO_LABEL)
    if grid.stack is not None and ds.get("FrameOfReferenceUID", grid.frame_of_reference) != grid.frame_of_reference:
        raise _other_grid("it has another frame of reference")
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    size = (int(ds.Rows), int(ds.Columns))
    slices = [_slice_of(group, shared, grid) for group in groups]
    on_grid = [z for z in slices if z is not None]
    if size == grid.shape[1:] and len(on_grid) == len(groups):
        return _stacked(on_grid, _planes(ds, groups, shared, classes), grid.shape)
    if grid.stack is None:
        raise _other_grid("its frames have another size or no place")
    if not ds.get("FrameOfReferenceUID"):
        raise _other_grid("it names no frame of reference")
    own_slices, affine = _own_grid(groups, shared, grid.stack)
    volume = _stacked(own_slices, _planes(ds, groups, shared, classes), (max(own_slices) + 1, *size))
    return resample(volume, affine, grid.stack.affine, grid.shape)


def _stacked(slices: Sequence[int], planes: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    volume = np.zeros(shape, np.uint8)
    for z, plane in zip(slices, planes, strict=True):
        np.maximum(volume[z], plane, out=volume[z])
    return volume


def _planes(
    ds: Dataset, groups: Sequence[Dataset], shared: Dataset, classes: Mapping[int, int]
) -> Iterator[NDArray[np.uint8]]:
    """What each frame draws, (Y, X)."""
    frames = ds.pixel_array.reshape(len(groups), ds.Rows, ds.Columns)
    for frame, group in zip(frames, groups, strict=True):
        if ds.SegmentationType == "LABELMAP":
            yield _classes_of(frame, classes)
        else:
            segment = int(_macro(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            half = ds.MaximumFractionalValue / 2 if ds.SegmentationType == "FRACTIONAL" else 1
            yield np.where(frame >= half, classes[segment], 0).astype(np.uint8)


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


def _slice_of(group: Dataset, shared: Dataset, grid: Grid) -> int | None:
    """The slice that a frame lies on; None when it lies on none."""
    position = _macro(group, shared, "PlanePositionSequence")
    if grid.stack is None or position is None:
        return _source_slice(group, shared, grid)
    if not _lies_like(group, shared, grid.stack):
        return None
    distances = np.linalg.norm(grid.stack.positions - _numbers(position.ImagePositionPatient), axis=1)
    nearest = int(distances.argmin())
    return nearest if distances[nearest] <= max(_ROUNDING_MM, _SHARE * min(grid.stack.spacing_mm)) else None


def _lies_like(group: Dataset, shared: Dataset, stack: Stack) -> bool:
    """Whether a frame has the direction and the pixel size of the slices, as far as it says."""
    plane = _macro(group, shared, "PlaneOrientationSequence")
    measures = _macro(group, shared, "PixelMeasuresSequence")
    return (
        plane is None or np.allclose(_numbers(plane.ImageOrientationPatient), stack.orientation, atol=_DIRECTION)
    ) and (measures is None or np.allclose(_numbers(measures.PixelSpacing), stack.spacing_mm[1:], rtol=_DIRECTION))


def _own_grid(groups: Sequence[Dataset], shared: Dataset, stack: Stack) -> tuple[list[int], NDArray[np.float64]]:
    """The slice of each frame on the segmentation's own grid, and the affine of that grid.

    Frames may be missing, so the step is what the object says, else the smallest between two frames.
    """
    places = [_macro(group, shared, "PlanePositionSequence") for group in groups]
    planes = [_macro(group, shared, "PlaneOrientationSequence") for group in groups]
    measures = [_macro(group, shared, "PixelMeasuresSequence") for group in groups]
    if None in places or None in planes or None in measures:
        raise _other_grid("a frame does not say where it lies")
    positions = np.array([_numbers(place.ImagePositionPatient) for place in places])
    orientations = np.array([_numbers(plane.ImageOrientationPatient) for plane in planes])
    spacings = np.array([_numbers(measure.PixelSpacing) for measure in measures])
    if not np.allclose(orientations, orientations[0], atol=_DIRECTION) or not np.allclose(spacings, spacings[0]):
        raise _other_grid("its frames are turned against each other or have pixels of several sizes")
    row, column = orientations[0].reshape(2, 3)
    normal = np.cross(row, column)
    depths = (positions - positions[0]) @ normal
    gaps = np.diff(np.sort(depths))
    gaps = gaps[gaps > _ROUNDING_MM]
    said = measures[0].get("SpacingBetweenSlices")
    step_mm = abs(
        float(said or (gaps.min() if len(gaps) else measures[0].get("SliceThickness") or stack.spacing_mm[0]))
    )
    origin = positions[int(depths.argmin())]
    slices = np.rint((depths - depths.min()) / step_mm)
    off = np.linalg.norm(positions - origin - slices[:, None] * step_mm * normal, axis=1)
    if not (off.max() <= max(_ROUNDING_MM, _SHARE * step_mm) and slices.max() < _MOST_SLICES):
        raise _other_grid("its frames make no even stack")
    affine = np.eye(4)
    affine[:3] = np.stack([normal * step_mm, column * spacings[0][0], row * spacings[0][1], origin], axis=1)
    return [int(z) for z in slices], affine


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


def _numbers(values: Iterable[Any]) -> NDArray[np.float64]:
    return np.array([float(value) for value in values])


def _other_grid(how: str) -> DataError:
    return DataError(
        f"the segmentation has another grid than its series: {how}. Resample it to the series.",
        ErrorCode.GEOMETRY_MISMATCH,
    )
