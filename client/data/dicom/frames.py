"""Where the frames of a DICOM image lie, and what their stored values mean: one slice of a volume for each.

A single-frame image says so in attributes of its own. A multi-frame one (Enhanced CT and MR, and what was converted to
them) says so in functional groups, of a frame or shared by all; its frames may come in any order. Second stacks are
refused, and so are phases and echoes, which lie where a slice lies already. Positions, orientations and spacings are
DICOM's: mm, LPS.
Source: DICOM PS3.3 C.7.6.2 (plane), C.7.6.16 (functional groups), C.11.1 (rescaling).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.data.dicom.values import name_of, number_of, numbers_of
from client.data.study.geometry import Stack, stack_slices
from common.errors import DataError, ErrorCode

# What `frames_of` looks at; for `dcmread(specific_tags=...)`.
FRAME_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1",  # CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # CT, converted
    "1.2.840.10008.5.1.4.1.1.4.1",  # MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # MR, converted
}
_RESCALING = ("RescaleSlope", "RescaleIntercept")
_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)


@dataclass(frozen=True)
class Frame:
    """One frame. position (3,), orientation (6,) and spacing_mm (y, x) are empty where the image does not say."""

    instance: str
    number: int  # within the instance, from 1
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    thickness_mm: float
    slope: float
    intercept: float
    rescaled: bool = True  # whether the image says so
    units: str = ""  # Rescale Type


def frames_of(ds: Dataset) -> list[Frame]:
    """The frames of an image, in the order of the file.

    Raises:
        DataError: GEOMETRY_MISMATCH, its frames do not say where they lie, or make several stacks; UNSUPPORTED, it is
            a clip; IMPLAUSIBLE, its values cannot be rescaled.
    """
    count = int(number_of(ds, "NumberOfFrames") or 1)
    groups = ds.get("PerFrameFunctionalGroupsSequence") or []
    if not groups and count == 1:
        return [_frame(ds, 1, ds)]
    if not groups and str(ds.get("SOPClassUID", "")) not in ENHANCED:
        raise DataError(
            f"the image is a clip of {count} frames; expected a picture or a volume. "
            "Export the frames that matter as single images.",
            ErrorCode.UNSUPPORTED,
        )
    if len(groups) != count:
        raise DataError(
            f"the image has {count} frames, and its header says of {len(groups)} where they lie. "
            "Export the series again.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    stacks = {str(_macro(group, shared, "FrameContentSequence").get("StackID") or "") for group in groups}
    if len(stacks) > 1:
        raise DataError(
            f"the image holds {len(stacks)} stacks; expected one. Export each stack as a series of its own.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return [_frame(ds, number, _attributes(group, shared)) for number, group in enumerate(groups, start=1)]


def stack_frames(frames: Sequence[Frame]) -> Stack | None:
    """The geometry of the frames of a series; None for a projection or a photograph, which has none.

    Raises:
        DataError: GEOMETRY_MISMATCH, MISSING_SLICES or IMPLAUSIBLE; see `stack_slices`.
    """
    placed = [bool(frame.position and frame.orientation) for frame in frames]
    if len(frames) == 1 and not placed[0]:
        return None
    lacking = {
        keyword: sum(not getattr(frame, name) for frame in frames)
        for keyword, name in (
            ("ImagePositionPatient", "position"),
            ("ImageOrientationPatient", "orientation"),
            ("PixelSpacing", "spacing_mm"),
        )
    }
    if any(lacking.values()):
        told = ", ".join(f"{name_of(keyword)} in {count}" for keyword, count in lacking.items() if count)
        raise DataError(
            f"of {len(frames)} slices some do not say where they lie; what is empty or missing: {told}. Export the "
            "series again.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return stack_slices(
        np.array([frame.position for frame in frames]),
        np.array([frame.orientation for frame in frames]),
        np.array([frame.spacing_mm for frame in frames]),
        frames[0].thickness_mm,
    )


def frame_order(ds: Dataset) -> NDArray[np.intp]:
    """(Z,) which frame of a multi-frame image each slice of its study is, from 0.

    A segmentation of the image must come in the order of its frames: `labels[np.argsort(frame_order(header))]`.
    """
    frames = frames_of(ds)
    stack = stack_frames(frames)
    return np.arange(len(frames)) if stack is None else stack.order


def _frame(ds: Dataset, number: int, attributes: Dataset) -> Frame:
    slope, intercept = number_of(attributes, "RescaleSlope"), number_of(attributes, "RescaleIntercept")
    if (slope is None) != (intercept is None):
        given, empty = map(name_of, _RESCALING if intercept is None else reversed(_RESCALING))
        raise DataError(
            f"{empty} is empty or missing, and {given} is there, so what the intensities mean is not known. Export the "
            "series again.",
            ErrorCode.IMPLAUSIBLE,
        )
    frame = Frame(
        str(ds.get("SOPInstanceUID", "")),
        number,
        numbers_of(attributes, "ImagePositionPatient", 3),
        numbers_of(attributes, "ImageOrientationPatient", 6),
        numbers_of(attributes, "PixelSpacing", 2),
        number_of(attributes, "SliceThickness") or 0.0,
        1.0 if slope is None else slope,
        0.0 if intercept is None else intercept,
        slope is not None,
        str(attributes.get("RescaleType") or "").strip().upper(),
    )
    if not (math.isfinite(frame.slope) and math.isfinite(frame.intercept) and frame.slope):
        raise DataError(
            "the rescale slope is 0 or, like the intercept, no finite number, so intensities mean nothing. "
            "Export the series again.",
            ErrorCode.IMPLAUSIBLE,
        )
    return frame


def _attributes(group: Dataset, shared: Dataset) -> Dataset:
    """What the functional groups say of a frame, as a single-frame image would."""
    attributes = Dataset()
    for keyword in _MACROS:
        attributes.update(_macro(group, shared, keyword))
    return attributes


def _macro(group: Dataset, shared: Dataset, keyword: str) -> Dataset:
    """The item of a functional group macro, of the frame or else shared; an empty one where there is none."""
    items: Any = group.get(keyword) or shared.get(keyword) or [Dataset()]
    item: Dataset = items[0]
    return item
