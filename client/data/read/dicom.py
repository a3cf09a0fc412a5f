"""DICOM images with DICOM SEG or RTSTRUCT labels: files to volumes in HU (CT), stored units, or 0-255 (8-bit colour).

Rescaling and a modality LUT are applied to what is stored, for they give the unit; windows and VOI LUTs are for display
and are not. MONOCHROME1 is for display too: it turns pictures and projections, which are looked at, after that, and no
CT or MR, which are measured. Padding is no tissue: it becomes air in a CT, else the darkest that was measured.
Overlays are ignored. Only the attributes listed here and in the modules of pixels and frames are ever decoded.
Source: DICOM PS3.3 C.7.6.3.1.2 (photometric interpretation), C.7.5.1.1.2 (padding), C.11.1 (modality LUT), C.11.2 (VOI
LUT).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from client.data.dicom.frames import ENHANCED, FRAME_TAGS, Frame, frames_of, stack_frames
from client.data.dicom.pixels import NEEDED, PIXEL_TAGS, decoded, palette_colours, too_large
from client.data.dicom.values import check_present, name_of, number_of, numbers_of, with_identity
from client.data.read.dicom_header import SLICES
from client.data.read.dicom_labels import read_labels
from client.data.read.dicom_seg import Grid
from client.data.read.dicom_series import find
from client.data.study.geometry import Stack
from client.data.study.labels import Naming
from client.data.study.pulse import watched
from client.data.study.study import MOST_VALUES, Reference, Study, parsing, quiet
from common.errors import DataError, ErrorCode

_READING_TAGS = [
    *PIXEL_TAGS,
    *FRAME_TAGS,
    "Modality",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ImagerPixelSpacing",
    "ModalityLUTSequence",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
]
# Classes and modalities whose values are measurements; what is not here is looked at.
_MEASURED = SLICES | ENHANCED
_MEASURED_MODALITIES = ("CT", "MR", "PT", "NM")
# What a CT's Rescale Type may say its values are instead of HU (PS3.3 C.11.1.1.2); US is unspecified.
_NO_HU = ("OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")
_AIR_HU = -1000.0
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
        _check_units(images, frames)
        stack = _stack(images, frames)
        order = np.arange(len(frames)) if stack is None else stack.order
        image, padding = _volume(images, frames, np.argsort(order))
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
            padding=padding,
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


def _check_units(images: Sequence[Dataset], frames: Sequence[Frame]) -> None:
    """Refuse a series whose values are of several kinds, or a CT whose values say that they are no HU."""
    plain = sum(not frame.rescaled for frame in frames)
    if 0 < plain < len(frames):
        raise DataError(
            f"{plain} of {len(frames)} slices have no {name_of('RescaleSlope')}, and the others have one, so their "
            "intensities are of two kinds. Export the series again.",
            ErrorCode.IMPLAUSIBLE,
        )
    stated = {frame.units for frame in frames} & {*_NO_HU}
    if stated and _modality(images[0]) == "CT":
        raise DataError(
            f"{name_of('RescaleType')} says that the CT's values are {', '.join(sorted(stated))}, not HU (a map of "
            "dual energy, for example). Take the series out.",
            ErrorCode.UNSUPPORTED,
        )


def _flat_spacing(ds: Dataset) -> tuple[float, float, float] | None:
    """(z, y, x) of a projection; z is a formality, for it has no depth."""
    spacing = numbers_of(ds, "PixelSpacing", 2) or numbers_of(ds, "ImagerPixelSpacing", 2)
    known = bool(spacing) and all(math.isfinite(edge) and edge > 0 for edge in spacing)
    return (1.0, spacing[0], spacing[1]) if known else None


def _volume(
    images: Sequence[Dataset], frames: Sequence[Frame], slices: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """(C, Z, Y, X), C 3 for colour; filled slice by slice, since a second copy would cost more time than decoding. And
    (Z, Y, X) where it is padding; None where there is none.

    Args:
        images: with their pixels, which are let go one after the other.
        frames: of all images, in their order.
        slices: (Z,) where each frame goes.
    """
    for ds in images:
        check_present(ds, NEEDED)
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
        for values, (frame, z) in zip(_stored(ds), places, strict=False):
            if channels == 3:
                volume[:, z] = np.moveaxis(values, -1, 0)
            else:
                _rescale(values, ds, frame, volume[0, z])
                if ds.PhotometricInterpretation == "MONOCHROME1" and not _is_measured(ds):
                    _turn(ds, frame, volume[0, z])
                if "PixelPaddingValue" in ds:
                    volume[0, z][_padding(values, ds)] = np.nan
        del ds.PixelData
    if any("PixelPaddingValue" in ds for ds in images):
        return volume, _fill_padding(volume, _modality(images[0]))
    return volume, None


def _is_colour(ds: Dataset) -> bool:
    return int(ds.get("SamplesPerPixel") or 1) > 1 or ds.PhotometricInterpretation == "PALETTE COLOR"


def _is_measured(ds: Dataset) -> bool:
    return str(ds.get("SOPClassUID", "")) in _MEASURED or _modality(ds) in _MEASURED_MODALITIES


def _stored(ds: Dataset) -> NDArray[Any]:
    """(F, Y, X) stored values, or (F, Y, X, 3) colours."""
    values = decoded(ds)
    return palette_colours(values, ds) if ds.PhotometricInterpretation == "PALETTE COLOR" else values


def _rescale(values: NDArray[Any], ds: Dataset, frame: Frame, out: NDArray[np.float32]) -> None:
    if ds.get("ModalityLUTSequence"):
        out[:] = apply_modality_lut(values, ds)
        return
    np.multiply(values, np.float32(frame.slope), out=out, casting="unsafe")
    out += np.float32(frame.intercept)


def _turn(ds: Dataset, frame: Frame, values: NDArray[np.float32]) -> None:
    """Turn rescaled values about the middle of what they could be, so that higher is brighter."""
    if ds.get("ModalityLUTSequence"):
        ends = 2.0 ** int(ds.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    else:
        low, high = _stored_range(ds)
        ends = frame.slope * (low + high) + 2 * frame.intercept
    np.subtract(np.float32(ends), values, out=values)


def _stored_range(ds: Dataset) -> tuple[int, int]:
    count = 2 ** int(ds.BitsStored)
    return (-count // 2, count // 2 - 1) if ds.PixelRepresentation == 1 else (0, count - 1)


def _padding(values: NDArray[Any], ds: Dataset) -> NDArray[np.bool_]:
    """(Y, X) where the stored values are padding. Writers disagree on its sign, so the bits are compared."""
    first = number_of(ds, "PixelPaddingValue")
    if first is None:
        return np.zeros(values.shape, np.bool_)
    last = number_of(ds, "PixelPaddingRangeLimit")
    ends = sorted(_as_stored(int(end), ds) for end in (first, first if last is None else last))
    padded: NDArray[np.bool_] = (values >= ends[0]) & (values <= ends[1])
    return padded


def _as_stored(value: int, ds: Dataset) -> int:
    """A value of as many bits as the pixels have, with their sign."""
    count = 2 ** int(ds.BitsStored)
    value %= count
    return value - count if ds.PixelRepresentation == 1 and value >= count // 2 else value


def _fill_padding(volume: NDArray[np.float32], modality: str) -> NDArray[np.bool_] | None:
    """Put air, or the darkest value there is, where padding (NaN) is, and say where that was; None: nowhere."""
    padding = np.isnan(volume)
    if padding.all():
        raise DataError(
            f"all pixels have the {name_of('PixelPaddingValue')}, so the image shows nothing. Take it out.",
            ErrorCode.IMPLAUSIBLE,
        )
    if not padding.any():
        return None
    volume[padding] = _AIR_HU if modality == "CT" else np.nanmin(volume)
    place: NDArray[np.bool_] = padding[0]
    return place


__all__ = ["find", "read"]
