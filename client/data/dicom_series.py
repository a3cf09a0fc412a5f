"""DICOM series: from a tree of files to references, by their headers alone.

Of a header only the attributes listed here are decoded; of the patient that is the Patient ID, which groups studies
and stays in this package. Files that are no image and no label (reports, plans, PDFs) are ignored and counted.
Source: DICOM PS3.3 C.7.3 (series), C.7.6.16 (multi-frame), A.51 and A.86 (segmentation), A.19 (structure set).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from client.data.deidentify import check_pixels
from client.data.pairs import files_under, patient_of
from client.data.study import Found, Reference, parsing, quiet
from common.config import SourceConfig
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

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_LABELS = _SEGMENTATIONS | {STRUCTURE_SET}

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
