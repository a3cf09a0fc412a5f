"""DICOM series with DICOM SEG or RTSTRUCT labels: files to volumes in HU (CT) or stored units.

Only the attributes listed here are ever decoded.
Source: DICOM PS3.3 C.7.6.2 (plane), C.7.6.3 (pixels), C.11.1 (modality LUT).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from client.data import dicom_seg, rtstruct
from client.data.dicom_series import STRUCTURE_SET, find
from client.data.geometry import Stack, stack_slices
from client.data.study import Reference, Study, parsing, quiet
from common.config import DataConfig
from common.errors import DataError, ErrorCode

_READING_TAGS = [
    "SOPInstanceUID",
    "Modality",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PixelData",
]


def read(reference: Reference, data: DataConfig | None) -> Study:
    """Read a series, and its label when the run's data contract is given.

    Raises:
        DataError: UNREADABLE, NO_LABEL, GEOMETRY_MISMATCH, MISSING_SLICES, LABEL_UNKNOWN or UNSUPPORTED.
    """
    if data is not None and not reference.labels:
        raise DataError(
            "no segmentation or structure set refers to this series. Add it, or take the series out.",
            ErrorCode.NO_LABEL,
        )
    with parsing("DICOM series"), quiet():
        slices = [pydicom.dcmread(path, specific_tags=list(_READING_TAGS)) for path in reference.images]
        stack = _stack(slices)
        if stack is not None:
            slices = [slices[index] for index in stack.order]
        files = tuple(reference.images if stack is None else (reference.images[index] for index in stack.order))
        image = _volume(slices)
        label = None
        if data is not None:
            grid = dicom_seg.Grid(
                image.shape,
                stack,
                tuple(str(ds.SOPInstanceUID) for ds in slices),
                str(slices[0].get("FrameOfReferenceUID", "")),
            )
            label = _label(reference, grid, data)
        return Study(
            image[None],
            label,
            _flat_spacing(slices[0]) if stack is None else stack.spacing_mm,
            None if stack is None else stack.affine,
            str(slices[0].get("Modality", "")),
            reference.patient,
            reference.key,
            files,
        )


def _label(reference: Reference, grid: dicom_seg.Grid, data: DataConfig) -> NDArray[np.uint8]:
    """(Z, Y, X) of all labels of a series; where they overlap, the class named later in the run wins."""
    structure_sets = [path for path in reference.labels if _sop_class(path) == STRUCTURE_SET]
    segmentations = [path for path in reference.labels if path not in structure_sets]
    label = dicom_seg.read_labels(segmentations, grid, data, reference.label_map)
    for path in structure_sets:
        np.maximum(label, rtstruct.read_labels(path, grid, data, reference.label_map), out=label)
    return label


def _sop_class(path: Path) -> str:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return str(header.get("SOPClassUID", ""))


def _stack(slices: Sequence[Dataset]) -> Stack | None:
    """The geometry of the slices; None for a projection, which has none."""
    sizes = {(ds.Rows, ds.Columns) for ds in slices}
    if len(sizes) > 1:
        raise DataError(
            f"the slices have {len(sizes)} different sizes; one series must be one stack. Split the series.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    for ds in slices:
        if int(ds.get("NumberOfFrames") or 1) > 1 or int(ds.get("SamplesPerPixel", 1)) > 1:
            raise DataError(
                "multi-frame and colour DICOM images are not supported. Export single grey frames.",
                ErrorCode.UNSUPPORTED,
            )
    placed = [ds.get("ImagePositionPatient") and ds.get("ImageOrientationPatient") for ds in slices]
    if len(slices) == 1 and not placed[0]:
        return None
    if not all(placed) or not all(ds.get("PixelSpacing") for ds in slices):
        raise DataError(
            "slices lack their position, orientation or pixel spacing, so their order is not known. "
            "Export the series again.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return stack_slices(
        _numbers(slices, "ImagePositionPatient"),
        _numbers(slices, "ImageOrientationPatient"),
        _numbers(slices, "PixelSpacing"),
        float(slices[0].get("SliceThickness") or 1.0),
    )


def _numbers(slices: Sequence[Dataset], keyword: str) -> NDArray[np.float64]:
    return np.array([[float(number) for number in ds[keyword].value] for ds in slices])


def _flat_spacing(ds: Dataset) -> tuple[float, float, float] | None:
    """(z, y, x) of a projection; z is a formality, for it has no depth."""
    spacing = [float(edge) for edge in ds.get("PixelSpacing") or ds.get("ImagerPixelSpacing") or []]
    return (1.0, spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None


def _volume(slices: Sequence[Dataset]) -> NDArray[np.float32]:
    """(Z, Y, X); filled slice by slice, since a whole second copy would cost more time than decoding."""
    volume = np.empty((len(slices), slices[0].Rows, slices[0].Columns), np.float32)
    for plane, ds in zip(volume, slices, strict=True):
        _rescale(_stored_values(ds), ds, plane)
        del ds.PixelData
    return volume


def _stored_values(ds: Dataset) -> NDArray[Any]:
    """(Y, X) integers, MONOCHROME1 turned to rising brightness; pydicom clears unused bits (old overlays)."""
    values = ds.pixel_array
    allocated, stored, signed = int(ds.BitsAllocated), int(ds.BitsStored), ds.PixelRepresentation == 1
    if int(ds.get("HighBit", stored - 1)) != stored - 1 or allocated not in (8, 16, 32):
        raise DataError(
            f"the pixels use bits in a way that is not supported ({stored} of {allocated}). Export the series again.",
            ErrorCode.UNSUPPORTED,
        )
    match ds.PhotometricInterpretation:
        case "MONOCHROME2":
            return values
        case "MONOCHROME1":
            return -1 - values if signed else (2**stored - 1) - values
    raise DataError(
        "the image is neither MONOCHROME1 nor MONOCHROME2. Export single grey frames.", ErrorCode.UNSUPPORTED
    )


def _rescale(values: NDArray[Any], ds: Dataset, out: NDArray[np.float32]) -> None:
    if ds.get("ModalityLUTSequence"):
        out[:] = apply_modality_lut(values, ds)
        return
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    np.multiply(values, np.float32(1 if slope is None else slope), out=out, casting="unsafe")
    out += np.float32(0 if intercept is None else intercept)


__all__ = ["find", "read"]
