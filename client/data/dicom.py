"""DICOM series with DICOM SEG or RTSTRUCT labels: from a tree of files to volumes in HU (CT) or stored units.

Only the attributes listed here are ever decoded; of the patient that is the Patient ID, which groups studies and
stays in this package. Files that are no image and no label (reports, plans, PDFs, DICOMDIR) are ignored and counted.
Source: DICOM PS3.3 C.7.6.2 (plane), C.7.6.3 (pixels), C.11.1 (modality LUT).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from client.data import dicom_seg, rtstruct
from client.data.deidentify import check_pixels
from client.data.geometry import Stack, stack_slices
from client.data.pairs import files_under, patient_of
from client.data.study import Found, Reference, Study, parsing, quiet
from common.config import DataConfig, SourceConfig
from common.errors import DataError, ErrorCode

# SOP classes whose instances are slices of a series, and those whose every instance is an image of its own.
_SLICES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
}
_SINGLES = {
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # DX, for processing
    "1.2.840.10008.5.1.4.1.1.1.2",  # MG, for presentation
    "1.2.840.10008.5.1.4.1.1.1.2.1",  # MG, for processing
    "1.2.840.10008.5.1.4.1.1.3.1",  # US, multi-frame
    "1.2.840.10008.5.1.4.1.1.6.1",  # US
}
_SEGMENTATIONS = {
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
}

_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_LABELS = _SEGMENTATIONS | {_STRUCTURE_SET}

_FINDING_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "BurnedInAnnotation",
    "ConversionType",
    "ImageType",
]
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

_PREAMBLE = 128
_MAGIC = b"DICM"


@dataclass(frozen=True)
class _Entry:
    """What one file says about its place. references: the series and images that a label was drawn on."""

    path: Path = field(repr=False)
    sop_class: str
    instance: str = field(repr=False)
    series: str = field(repr=False)
    patient: str = field(repr=False)
    frame_of_reference: str = field(repr=False)
    references: frozenset[str] = field(default=frozenset(), repr=False)
    pixel_text: DataError | None = None  # the image may show text, and that can name the patient


def is_dicom(path: Path) -> bool:
    """Whether a file starts as PS3.10 says: 128 bytes, then DICM."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def find(source: SourceConfig, folder: Path) -> Found:
    """The series of a source and the segmentations and structure sets that refer to them; reads headers only.

    The patient is the Patient ID, or what patient-pattern finds in the path of the series' first file.
    """
    return find_among(files_under(folder), folder, source)


def find_among(files: Iterable[Path], folder: Path, source: SourceConfig | None) -> Found:
    """See `find`; without a source (for prediction) labels and patients are left out."""
    entries, broken, ignored = _scan(files, folder)
    groups: dict[tuple[str, str], list[_Entry]] = {}
    labels: list[_Entry] = []
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.patient, entry.instance) in seen or entry.sop_class not in _SLICES | _SINGLES | _LABELS:
            ignored += 1  # a second copy of a file, or an object of another kind
        elif entry.sop_class in _LABELS:
            labels.append(entry)
        else:
            key = entry.series if entry.sop_class in _SLICES else entry.instance
            groups.setdefault((entry.patient, key), []).append(entry)
        seen.add((entry.patient, entry.instance))
    drawn = {key: [label for label in labels if _refers(label, group)] for key, group in groups.items()}
    ignored += len(labels) - len({label.path for matching in drawn.values() for label in matching})
    references = [_reference(key[1], group, drawn[key], folder, source) for key, group in groups.items()]
    return Found((*references, *broken), ignored)


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
    structure_sets = [path for path in reference.labels if _sop_class(path) == _STRUCTURE_SET]
    segmentations = [path for path in reference.labels if path not in structure_sets]
    label = dicom_seg.read_labels(segmentations, grid, data, reference.label_map)
    for path in structure_sets:
        np.maximum(label, rtstruct.read_labels(path, grid, data, reference.label_map), out=label)
    return label


def _sop_class(path: Path) -> str:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return str(header.get("SOPClassUID", ""))


def _scan(files: Iterable[Path], folder: Path) -> tuple[list[_Entry], list[Reference], int]:
    entries, broken, ignored = [], [], 0
    for path in files:
        if not is_dicom(path):
            ignored += 1
            continue
        try:
            with parsing("DICOM file"), quiet():
                entries.append(_entry(path))
        except DataError as error:
            key = path.relative_to(folder).as_posix()
            broken.append(Reference("dicom", "", key, (path,), problem=error))
    return entries, broken, ignored


def _entry(path: Path) -> _Entry:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_FINDING_TAGS))
    sop_class = str(header.get("SOPClassUID", ""))
    if not sop_class:
        raise DataError("this DICOM file does not say what it is. Export it again, or take it out.")
    references, frame = _drawn_on(header) if sop_class in _LABELS else (frozenset(), "")
    return _Entry(
        path,
        sop_class,
        str(header.get("SOPInstanceUID", "")) or path.as_posix(),
        str(header.get("SeriesInstanceUID", "")),
        str(header.get("PatientID") or "").strip(),
        str(header.get("FrameOfReferenceUID", "")) or frame,
        references,
        None if sop_class in _LABELS else _pixel_text(header),
    )


def _pixel_text(header: Dataset) -> DataError | None:
    try:
        check_pixels(header)
    except DataError as error:
        return error
    return None


def _drawn_on(header: Dataset) -> tuple[frozenset[str], str]:
    """The series and images a label names, and the frame of reference that a structure set names."""
    frames = header.get("ReferencedFrameOfReferenceSequence") or []
    named = [
        (series, "ContourImageSequence")
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    ]
    named += [(series, "ReferencedInstanceSequence") for series in header.get("ReferencedSeriesSequence") or []]
    uids = {str(series.get("SeriesInstanceUID", "")) for series, _ in named}
    uids |= {
        str(image.get("ReferencedSOPInstanceUID", "")) for series, images in named for image in series.get(images) or []
    }
    return frozenset(uids - {""}), str(frames[0].get("FrameOfReferenceUID", "")) if frames else ""


def _refers(label: _Entry, group: list[_Entry]) -> bool:
    """Whether a label was drawn on a series: it names it or its images, else shares its frame of reference."""
    if label.references:
        return any(entry.instance in label.references or entry.series in label.references for entry in group)
    return bool(label.frame_of_reference) and label.frame_of_reference == group[0].frame_of_reference


def _reference(
    key: str, group: list[_Entry], labels: list[_Entry], folder: Path, source: SourceConfig | None
) -> Reference:
    images = tuple(entry.path for entry in group)
    if source is None:
        return Reference("dicom", "", key, images)
    patient, problem = group[0].patient, None
    if source.patient_pattern is not None:
        patient, problem = patient_of(images[0].relative_to(folder).as_posix(), source.patient_pattern)
    elif not patient:
        problem = DataError(
            "the series has no Patient ID, so its patient is not known. Fill it in, or set patient-pattern in "
            "site.toml to find the patient in the path.",
            ErrorCode.UNSUPPORTED,
        )
    if problem is None and not source.pixel_text_checked:
        problem = next((entry.pixel_text for entry in group if entry.pixel_text is not None), None)
    return Reference("dicom", patient, key, images, tuple(label.path for label in labels), source.label_map, problem)


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
