"""DICOM SEG to a label volume on its series' own grid: binary, fractional and labelmap, sparse or not.

Slices without a frame are background, so a segmentation that names no voxel is a negative study and welcome; one
without any frame is no label. A segment goes by its label or by its code, written "SCT:10200004". A fractional segment,
of probability or of occupancy, counts where it reaches a share of its maximum. Frames are placed by position where the
series has a frame of reference, else by the image and frame they were derived from. Where the segmentation names
another frame of reference (anonymisers and some writers make one up), every frame must lie on the image it names. A
segmentation on another grid is resampled when both lie in one frame of reference, and refused else; one of a tiled
slide is refused.
Source: DICOM PS3.3 A.51 and A.86, C.8.20 (C.8.20.2: fractional and labelmap), C.7.6.16 (functional groups).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.data.dicom.pixels import decoded
from client.data.dicom.text import encodings_of, text_of_tag
from client.data.dicom.values import name_of, number_of, numbers_of
from client.data.study.geometry import Stack
from client.data.study.label_grid import resample
from client.data.study.labels import Naming
from client.data.study.study import MOST_VALUES
from common.errors import DataError, ErrorCode

# A frame lies on a slice when it is no further away than this share of the smallest spacing, or this length.
_SHARE = 0.1
_ROUNDING_MM = 0.05
# Direction cosines and pixel sizes are the same up to this.
_DIRECTION = 1e-3
# Numbers that an attribute must have.
_COUNTS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}

_TAGS = [
    "SegmentationType",
    "MaximumFractionalValue",
    "SegmentSequence",
    "PixelPaddingValue",
    "DimensionOrganizationType",
    "TotalPixelMatrixColumns",
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

    shape: (Z, Y, X); stack: its geometry, None for a projection; instances: SOP instance UID of each slice;
    frames: the number of each slice's frame within its instance, from 1; none where every instance is one frame.
    names: the UIDs of the series and its instances, by which a label refers to it; none: not known.
    """

    shape: tuple[int, ...]
    stack: Stack | None
    instances: tuple[str, ...]
    frame_of_reference: str
    frames: tuple[int, ...] = ()
    names: frozenset[str] = frozenset()

    def slices_named(self, images: Iterable[Dataset]) -> list[int]:
        """The slices that references to images, and to frames of them, name."""
        found = []
        for image in images:
            of_instance = self._places.get(str(image.get("ReferencedSOPInstanceUID", "")), {})
            numbers = image.get("ReferencedFrameNumber")
            chosen = list(of_instance) if numbers is None else [int(number) for number in np.atleast_1d(numbers)]
            found += [of_instance[number] for number in chosen if number in of_instance]
        return found

    @cached_property
    def _places(self) -> dict[str, dict[int, int]]:
        """The slice of each instance and frame number."""
        places: dict[str, dict[int, int]] = {}
        for z, (instance, frame) in enumerate(
            zip(self.instances, self.frames or (1,) * len(self.instances), strict=True)
        ):
            places.setdefault(instance, {})[frame] = z
        return places


def read_labels(path: Path, grid: Grid, naming: Naming, fractional_threshold: float = 0.5) -> NDArray[np.uint8]:
    """Draw a segmentation of a series into a label volume.

    Where segments overlap, the class with the higher number wins, whatever their order in the file; or each stays where
    the run's classes may overlap.

    Args:
        path: the segmentation.
        grid: the series.
        naming: segment label or code -> class.
        fractional_threshold: share of the maximum, above 0, from which on a voxel of a fractional segment counts.

    Returns:
        (Z, Y, X) uint8, 0 background, else what `Naming.value` says.

    Raises:
        DataError: NO_LABEL, LABEL_UNKNOWN, GEOMETRY_MISMATCH or UNSUPPORTED.
    """
    ds = pydicom.dcmread(path, specific_tags=list(_TAGS))
    if str(ds.get("DimensionOrganizationType", "")).startswith("TILED") or "TotalPixelMatrixColumns" in ds:
        raise DataError(
            "the segmentation is of a tiled slide, which is not supported. Take it out.", ErrorCode.UNSUPPORTED
        )
    # Labelmaps may describe what is outside of their segments: number 0, and the padding value.
    outside = {0, int(ds.get("PixelPaddingValue") or 0)} if ds.get("SegmentationType") == "LABELMAP" else set[int]()
    encodings = encodings_of(ds)
    classes = dict.fromkeys(outside, 0) | {
        int(segment.SegmentNumber): naming.number(_names(segment, encodings), ordinal)
        for ordinal, segment in enumerate(ds.SegmentSequence, start=1)
        if int(segment.SegmentNumber) not in outside
    }
    values = {segment: naming.value(number) for segment, number in classes.items()}
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if "PixelData" not in ds or not groups:
        raise DataError("the segmentation holds no frames. Export it again.", ErrorCode.NO_LABEL)
    frame_of_reference = str(ds.get("FrameOfReferenceUID") or "")
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    size = (int(ds.Rows), int(ds.Columns))
    slices = [_slice_of(group, shared, grid) for group in groups]
    if grid.stack is not None and frame_of_reference and grid.frame_of_reference not in ("", frame_of_reference):
        named = [grid.slices_named(_sources(group, shared)) for group in groups]
        if not all(z in images for z, images in zip(slices, named, strict=True)):
            raise _other_grid("it has another frame of reference, and not every frame lies on the image that it names")
    on_grid = [z for z in slices if z is not None]
    if size == grid.shape[1:] and len(on_grid) == len(groups):
        return _stacked(on_grid, _planes(ds, groups, shared, values, fractional_threshold), grid.shape, naming)
    if grid.stack is None:
        raise _other_grid("its frames have another size or no place")
    if not (frame_of_reference and grid.frame_of_reference):
        raise _other_grid("one of them names no frame of reference")
    own_slices, affine = _own_grid(groups, shared, grid.stack, most_slices=MOST_VALUES // max(1, size[0] * size[1]))
    planes = _planes(ds, groups, shared, values, fractional_threshold)
    volume = _stacked(own_slices, planes, (max(own_slices) + 1, *size), naming)
    return resample(volume, affine, grid.stack.affine, grid.shape, naming)


def _names(segment: Dataset, encodings: Sequence[str]) -> list[str]:
    """What a segment may go by: its label, and the code of its property type."""
    codes = [
        f"{code.get('CodingSchemeDesignator', '')}:{code.get('CodeValue') or code.get('LongCodeValue') or ''}"
        for code in segment.get("SegmentedPropertyTypeCodeSequence") or []
    ]
    return [text_of_tag(segment, "SegmentLabel", encodings) or str(segment.get("SegmentLabel") or ""), *codes]


def _stacked(
    slices: Sequence[int], planes: Iterable[NDArray[np.uint8]], shape: tuple[int, ...], naming: Naming
) -> NDArray[np.uint8]:
    volume = np.zeros(shape, np.uint8)
    for z, plane in zip(slices, planes, strict=True):
        naming.drawn.add(int(plane.max()))
        naming.draw(volume[z], plane)
    return volume


def _planes(
    ds: Dataset, groups: Sequence[Dataset], shared: Dataset, values: Mapping[int, int], fractional_threshold: float
) -> Iterator[NDArray[np.uint8]]:
    """What each frame draws, (Y, X); values: of each segment."""
    frames = decoded(ds)
    for frame, group in zip(frames, groups, strict=True):
        if ds.SegmentationType == "LABELMAP":
            yield _values_of(frame, values)
        else:
            segment = int(_macro(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            if segment not in values:
                raise _undescribed()
            fractional = ds.SegmentationType == "FRACTIONAL"
            counts = frame / ds.MaximumFractionalValue >= fractional_threshold if fractional else frame != 0
            yield counts * np.uint8(values[segment])


def _values_of(frame: NDArray[np.integer[Any]], values: Mapping[int, int]) -> NDArray[np.uint8]:
    """A labelmap frame, whose pixels are segment numbers, to what the label holds."""
    numbers, where = np.unique(frame, return_inverse=True)
    if not {int(number) for number in numbers} <= values.keys():
        raise _undescribed()
    return np.array([values[int(number)] for number in numbers], np.uint8)[where].reshape(frame.shape)


def _slice_of(group: Dataset, shared: Dataset, grid: Grid) -> int | None:
    """The slice that a frame lies on; None when it lies on none."""
    position = _macro(group, shared, "PlanePositionSequence")
    if grid.stack is None or position is None or not grid.frame_of_reference:
        return _source_slice(group, shared, grid)
    if not _lies_like(group, shared, grid.stack):
        return None
    distances = np.linalg.norm(grid.stack.positions - _said(position, "ImagePositionPatient"), axis=1)
    nearest = int(distances.argmin())
    return nearest if distances[nearest] <= max(_ROUNDING_MM, _SHARE * min(grid.stack.spacing_mm)) else None


def _lies_like(group: Dataset, shared: Dataset, stack: Stack) -> bool:
    """Whether a frame has the direction and the pixel size of the slices, as far as it says."""
    plane = _macro(group, shared, "PlaneOrientationSequence")
    measures = _macro(group, shared, "PixelMeasuresSequence")
    return (
        plane is None or np.allclose(_said(plane, "ImageOrientationPatient"), stack.orientation, atol=_DIRECTION)
    ) and (measures is None or np.allclose(_said(measures, "PixelSpacing"), stack.spacing_mm[1:], rtol=_DIRECTION))


def _own_grid(
    groups: Sequence[Dataset], shared: Dataset, stack: Stack, most_slices: int
) -> tuple[list[int], NDArray[np.float64]]:
    """The slice of each frame on the segmentation's own grid, and the affine of that grid.

    Frames may be missing, so the step is what the object says, else the smallest between two frames.
    """
    places = [_macro(group, shared, "PlanePositionSequence") for group in groups]
    planes = [_macro(group, shared, "PlaneOrientationSequence") for group in groups]
    measures = [_macro(group, shared, "PixelMeasuresSequence") for group in groups]
    if None in places or None in planes or None in measures:
        raise _other_grid("a frame does not say where it lies")
    positions = np.array([_said(place, "ImagePositionPatient") for place in places])
    orientations = np.array([_said(plane, "ImageOrientationPatient") for plane in planes])
    spacings = np.array([_said(measure, "PixelSpacing") for measure in measures])
    if not np.allclose(orientations, orientations[0], atol=_DIRECTION) or not np.allclose(spacings, spacings[0]):
        raise _other_grid("its frames are turned against each other or have pixels of several sizes")
    row, column = orientations[0].reshape(2, 3)
    normal = np.cross(row, column)
    depths = (positions - positions[0]) @ normal
    gaps = np.diff(np.sort(depths))
    gaps = gaps[gaps > _ROUNDING_MM]
    said = number_of(measures[0], "SpacingBetweenSlices")
    step_mm = abs(
        float(said or (gaps.min() if len(gaps) else number_of(measures[0], "SliceThickness") or stack.spacing_mm[0]))
    )
    origin = positions[int(depths.argmin())]
    slices = np.rint((depths - depths.min()) / step_mm)
    off = np.linalg.norm(positions - origin - slices[:, None] * step_mm * normal, axis=1)
    if not (off.max() <= max(_ROUNDING_MM, _SHARE * step_mm) and slices.max() < most_slices):
        raise _other_grid("its frames make no even stack")
    affine = np.eye(4)
    affine[:3] = np.stack([normal * step_mm, column * spacings[0][0], row * spacings[0][1], origin], axis=1)
    return [int(z) for z in slices], affine


def _source_slice(group: Dataset, shared: Dataset, grid: Grid) -> int:
    """The slice that the frame says it was derived from."""
    found = grid.slices_named(_sources(group, shared))
    if len(grid.instances) == 1:
        return 0
    if len(found) != 1:
        raise _other_grid("a frame says neither where it lies nor which one image it was drawn on")
    return found[0]


def _sources(group: Dataset, shared: Dataset) -> Sequence[Dataset]:
    """The images that a frame says it was derived from."""
    derivation = _macro(group, shared, "DerivationImageSequence")
    return [] if derivation is None else derivation.get("SourceImageSequence") or []


def _macro(group: Dataset, shared: Dataset, keyword: str) -> Any:
    """The first item of a functional group macro, per frame or shared; None where there is none."""
    items = group.get(keyword) or shared.get(keyword)
    return items[0] if items else None


def _said(item: Dataset, keyword: str) -> NDArray[np.float64]:
    found = numbers_of(item, keyword, _COUNTS[keyword])
    if not found:
        raise _other_grid(f"{name_of(keyword)} of a frame is empty")
    return np.array(found)


def _undescribed() -> DataError:
    return DataError(
        "the segmentation uses a segment number that it does not describe. Export it again.", ErrorCode.LABEL_UNKNOWN
    )


def _other_grid(how: str) -> DataError:
    return DataError(
        f"the segmentation has another grid than its series: {how}. Resample it to the series.",
        ErrorCode.GEOMETRY_MISMATCH,
    )
