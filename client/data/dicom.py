"""DICOM images with DICOM SEG or RTSTRUCT labels: files to volumes in HU (CT), stored units, or 0-255 (8-bit colour).

Rescaling and a modality LUT are applied, for they give the unit; windows and VOI LUTs are for display and are not.
Overlays are ignored. Only the attributes listed here and in the modules of pixels and frames are ever decoded.
Source: DICOM PS3.3 C.7.6.3 (pixels), C.11.1 (modality LUT), C.11.2 (VOI LUT).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from client.data.dicom_frames import FRAME_TAGS, Frame, frames_of, stack_frames
from client.data.dicom_header import with_identity
from client.data.dicom_labels import read_labels
from client.data.dicom_pixels import MOST_VALUES, PIXEL_TAGS, decoded, palette_colours, too_large
from client.data.dicom_seg import Grid
from client.data.dicom_series import find
from client.data.geometry import Stack
from client.data.labels import Naming
from client.data.pulse import watched
from client.data.study import Reference, Study, parsing, quiet
from common.errors import DataError, ErrorCode

_READING_TAGS = [
    *PIXEL_TAGS,
    *FRAME_TAGS,
    "Modality",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ImagerPixelSpacing",
    "ModalityLUTSequence",
]
# Defined terms for images (PS3.3 C.7.3.1.1.1).
# fmt: off
_MODALITIES = frozenset({
    "AR", "BI", "BMD", "CR", "CT", "DG", "DX", "ES", "GM", "IO", "IVOCT", "IVUS", "LS", "MG", "MR", "NM", "OAM", "OCT",
    "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OT", "PT", "PX", "RF", "RG", "SC", "SM", "TG", "US", "VA", "XA", "XC",
})
# fmt: on


def read(reference: Reference, naming: Naming | None) -> Study:
    """Read a series, and its label when its classes are wanted.

    Raises:
        DataError: UNREADABLE, UNSUPPORTED, OUT_OF_MEMORY, NO_LABEL, LABEL_UNKNOWN, GEOMETRY_MISMATCH, MISSING_SLICES or
            IMPLAUSIBLE.
    """
    if naming is not None and not reference.labels:
        raise DataError(
            "no segmentation or structure set refers to this series. Add it, or take the series out.",
            ErrorCode.NO_LABEL,
        )
    with parsing("DICOM series"), quiet():
        images = [
            with_identity(pydicom.dcmread(path, specific_tags=list(_READING_TAGS)))
            for path in watched(reference.images)
        ]
        frames_by_image = [frames_of(ds) for ds in images]
        paths = [path for path, frames in zip(reference.images, frames_by_image, strict=True) for _ in frames]
        frames = [frame for frames in frames_by_image for frame in frames]
        stack = _stack(images, frames)
        order = np.arange(len(frames)) if stack is None else stack.order
        image = _volume(images, frames, np.argsort(order))
        label = None
        if naming is not None:
            grid = Grid(
                image.shape[1:],
                stack,
                tuple(frames[index].instance for index in order),
                str(images[0].get("FrameOfReferenceUID", "")),
                tuple(frames[index].number for index in order),
                frozenset({str(images[0].get("SeriesInstanceUID") or ""), *(one.instance for one in frames)} - {""}),
            )
            label = read_labels(
                reference.labels, grid, naming, reference.fractional_threshold, checked=reference.labels_checked
            )
        return Study(
            image,
            label,
            _flat_spacing(images[0]) if stack is None else stack.spacing_mm,
            None if stack is None else stack.affine,
            _modality(images[0]),
            reference.patient,
            reference.key,
            tuple(paths[index] for index in order),
        )


def _stack(images: Sequence[Dataset], frames: Sequence[Frame]) -> Stack | None:
    """See `stack_frames`; a refusal says when only their folder joins the slices."""
    try:
        return stack_frames(frames)
    except DataError as error:
        if len(images) == 1 or any(ds.get("SeriesInstanceUID") for ds in images):
            raise
        raise DataError(
            f"Series Instance UID (0020,000E) is empty in these {len(images)} files, so those of one folder were taken "
            f"as one series, and they make none: {error} Or put each series into a folder of its own.",
            error.code,
        ) from None


def _modality(ds: Dataset) -> str:
    """A term of the standard, which reports may show; whatever else was typed there is OT, other."""
    stated = str(ds.get("Modality") or "").strip()
    return stated if stated in _MODALITIES or not stated else "OT"


def _flat_spacing(ds: Dataset) -> tuple[float, float, float] | None:
    """(z, y, x) of a projection; z is a formality, for it has no depth."""
    spacing = [float(edge) for edge in ds.get("PixelSpacing") or ds.get("ImagerPixelSpacing") or []]
    known = len(spacing) == 2 and all(math.isfinite(edge) and edge > 0 for edge in spacing)
    return (1.0, spacing[0], spacing[1]) if known else None


def _volume(images: Sequence[Dataset], frames: Sequence[Frame], slices: NDArray[np.intp]) -> NDArray[np.float32]:
    """(C, Z, Y, X), C 3 for colour; filled slice by slice, since a second copy would cost more time than decoding.

    Args:
        images: with their pixels, which are let go one after the other.
        frames: of all images, in their order.
        slices: (Z,) where each frame goes.
    """
    shapes = {(3 if _is_colour(ds) else 1, int(ds.Rows), int(ds.Columns)) for ds in images}
    if len(shapes) > 1:
        raise DataError(
            f"the slices have {len(shapes)} different sizes or colours; one series must be one stack. "
            "Split the series.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    ((channels, rows, columns),) = shapes
    shape = (channels, len(frames), rows, columns)
    if math.prod(shape) > MOST_VALUES:
        raise too_large(math.prod(shape))
    volume = np.empty(shape, np.float32)
    places = zip(frames, slices, strict=True)
    for ds in watched(images):
        for values, (frame, z) in zip(_brightness(ds), places, strict=False):
            if channels == 3:
                volume[:, z] = np.moveaxis(values, -1, 0)
            else:
                _rescale(values, ds, frame, volume[0, z])
        del ds.PixelData
    return volume


def _is_colour(ds: Dataset) -> bool:
    return int(ds.get("SamplesPerPixel") or 1) > 1 or ds.PhotometricInterpretation == "PALETTE COLOR"


def _brightness(ds: Dataset) -> NDArray[Any]:
    """(F, Y, X) stored values that rise with brightness, or (F, Y, X, 3) colours."""
    values = decoded(ds)
    match ds.PhotometricInterpretation:
        case "PALETTE COLOR":
            return palette_colours(values, ds)
        case "MONOCHROME1":
            top = -1 if ds.PixelRepresentation == 1 else 2 ** int(ds.BitsStored) - 1
            values = np.subtract(top, values, dtype=np.int64)
    return values


def _rescale(values: NDArray[Any], ds: Dataset, frame: Frame, out: NDArray[np.float32]) -> None:
    if ds.get("ModalityLUTSequence"):
        out[:] = apply_modality_lut(values, ds)
        return
    np.multiply(values, np.float32(frame.slope), out=out, casting="unsafe")
    out += np.float32(frame.intercept)


__all__ = ["find", "read"]
