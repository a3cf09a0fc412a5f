"""What the header of one DICOM file says about its place: class, names, references. No pixels.

Of a header only the attributes listed here are decoded; of the patient that is the Patient ID, which groups studies
and stays in this package. Where a de-identifier emptied class and instance, the file meta information, which every file
must have, still says both. Other names that are empty stay empty: nothing is joined by them.
Source: DICOM PS3.10 7.1 (file meta information), PS3.3 C.7.3 (series), C.12.1 (SOP common), A.51 and A.86
(segmentation), A.19 (structure set), C.7.6.1.1.2 (image type).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from client.data.deidentify.deidentify import check_pixels
from client.data.deidentify.surrogates import values_of
from client.data.dicom.report import CONTENT_TAGS, evidence_of, images_of
from client.data.dicom.text import text_of_tag
from client.data.dicom.values import IDENTITY, with_identity
from client.data.study.as_json import problem_from_json, problem_to_json, text_of
from client.data.study.study import parsing, quiet
from common.errors import DataError, ErrorCode

# SOP classes whose instances are slices of a series, and those whose every instance is a study of its own: a
# projection, or a whole stack of frames.
SLICES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
}
SINGLES = {
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
    "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture; the pixel gate refuses it until a person has looked
    "1.2.840.10008.5.1.4.1.1.7.1",  # and its multi-frame kinds: one bit,
    "1.2.840.10008.5.1.4.1.1.7.2",  # grey of a byte,
    "1.2.840.10008.5.1.4.1.1.7.3",  # grey of a word,
    "1.2.840.10008.5.1.4.1.1.7.4",  # colour
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # DX, for processing
    "1.2.840.10008.5.1.4.1.1.1.2",  # MG, for presentation
    "1.2.840.10008.5.1.4.1.1.1.2.1",  # MG, for processing
    "1.2.840.10008.5.1.4.1.1.3",  # US, multi-frame, as it was until 1995
    "1.2.840.10008.5.1.4.1.1.3.1",  # US, multi-frame
    "1.2.840.10008.5.1.4.1.1.6",  # US, as it was until 1995
    "1.2.840.10008.5.1.4.1.1.6.1",  # US
}
SEGMENTATIONS = {
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
}
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
LABELS = SEGMENTATIONS | {STRUCTURE_SET}
# Structured reports with coded content: see client/data/read/image_class.py.
REPORTS = {
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
}

_FINDING_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    *CONTENT_TAGS,
    "BurnedInAnnotation",
    "ConversionType",
    "ImageType",
    "Rows",
]
_PREAMBLE = 128
_MAGIC = b"DICM"


@dataclass(frozen=True)
class Entry:
    """What one file says about its place; a name that the file does not give is empty.

    references: the series and images that a label was drawn on. from_meta: whether its class or instance stands in the
    file meta information only. pixel_text: the image may show text, and that can name the patient. problem: why it
    cannot be a part of a study.
    """

    path: Path = field(repr=False)
    sop_class: str
    instance: str = field(repr=False)
    study: str = field(repr=False)
    series: str = field(repr=False)
    patient: str = field(repr=False)
    frame_of_reference: str = field(repr=False)
    references: frozenset[str] = field(default=frozenset(), repr=False)
    from_meta: bool = False
    pixel_text: DataError | None = None
    problem: DataError | None = None


def is_dicom(path: Path) -> bool:
    """Whether a file starts as PS3.10 says: 128 bytes, then DICM. A file that cannot be opened does not."""
    try:
        return _starts_as_dicom(path)
    except OSError:
        return False


def look(path: Path) -> Entry | None:
    """What the header of a file says; None where it is no DICOM.

    Raises:
        DataError: UNREADABLE; NOT_OPENED.
    """
    with parsing("file"):
        if not _starts_as_dicom(path):
            return None
    with parsing("DICOM file"), quiet():
        return _entry(path)


def look_at_all(paths: Iterable[Path]) -> Iterable[Entry | DataError | None]:
    """`look` at each, in this process."""
    for path in paths:
        try:
            yield look(path)
        except DataError as error:
            yield error


def references_of(header: Dataset) -> tuple[frozenset[str], str]:
    """The series and images a label names, and the frame of reference that a structure set names."""
    frames = header.get("ReferencedFrameOfReferenceSequence") or []
    named = [
        (series, "ContourImageSequence")
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    ]
    named += [(series, "ReferencedInstanceSequence") for series in header.get("ReferencedSeriesSequence") or []]
    uids = {_text(series, "SeriesInstanceUID") for series, _ in named}
    uids |= {_text(image, "ReferencedSOPInstanceUID") for series, images in named for image in series.get(images) or []}
    return frozenset(uids - {""}), _text(frames[0], "FrameOfReferenceUID") if frames else ""


def same_content(first: Path, second: Path) -> bool:
    """Whether two files hold the same object: the same bytes behind the file meta information, which tells of the way.

    Raises:
        OSError: one of them cannot be read.
    """
    starts = [_object_starts(path) for path in (first, second)]
    if len({path.stat().st_size - start for path, start in zip((first, second), starts, strict=True)}) > 1:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        one.seek(starts[0])
        other.seek(starts[1])
        while piece := one.read(1 << 20):
            if piece != other.read(len(piece)):
                return False
    return True


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """Plain values, all but the path."""
    return {
        "texts": [
            entry.sop_class,
            entry.instance,
            entry.study,
            entry.series,
            entry.patient,
            entry.frame_of_reference,
        ],
        "references": sorted(entry.references),
        "from-meta": entry.from_meta,
        "pixel-text": problem_to_json(entry.pixel_text),
        "problem-inside": problem_to_json(entry.problem),
    }


def entry_from_json(path: Path, values: Mapping[str, Any]) -> Entry:
    """Inverse of `entry_to_json`; TypeError, ValueError or KeyError where it is none."""
    sop_class, instance, study, series, patient, frame_of_reference = map(text_of, values["texts"])
    return Entry(
        path,
        sop_class,
        instance,
        study,
        series,
        patient,
        frame_of_reference,
        frozenset(map(text_of, values["references"])),
        bool(values["from-meta"]),
        problem_from_json(values["pixel-text"]),
        problem_from_json(values["problem-inside"]),
    )


def _starts_as_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC


def _entry(path: Path) -> Entry:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_FINDING_TAGS))
    from_meta = not all(header.get(keyword) for keyword in IDENTITY)
    with_identity(header)
    sop_class = _text(header, "SOPClassUID")
    if not sop_class:
        raise DataError(
            "this DICOM file does not say what it is: SOP Class UID (0008,0016) is empty, and so is Media Storage SOP "
            "Class UID (0002,0002). Export it again, or take it out."
        )
    if sop_class in SLICES | SINGLES and "Rows" not in header:
        raise DataError(
            "this DICOM file ends within its header: Rows (0028,0010), which every image has, is not there. Copy or "
            "export it again, or take it out."
        )
    is_label = sop_class in LABELS
    references, frame = references_of(header) if is_label else (frozenset[str](), "")
    if sop_class in REPORTS:
        references = _reported(header)
    return Entry(
        path,
        sop_class,
        _text(header, "SOPInstanceUID"),
        _text(header, "StudyInstanceUID"),
        _text(header, "SeriesInstanceUID"),
        (text_of_tag(header, "PatientID") or _text(header, "PatientID")).strip(),
        _text(header, "FrameOfReferenceUID") or frame,
        references,
        from_meta,
        None if is_label else _pixel_text(header),
        None if is_label else _tiled(header),
    )


def _reported(report: Dataset) -> frozenset[str]:
    """What a structured report refers to; nothing where it nests without end, so that it is nobody's."""
    try:
        return evidence_of(report) | images_of(report)
    except DataError:
        return frozenset()


def _text(header: Dataset, keyword: str) -> str:
    return str(header.get(keyword) or "").strip()


def _pixel_text(header: Dataset) -> DataError | None:
    try:
        check_pixels(header)
    except DataError as error:
        return error
    return None


def _tiled(header: Dataset) -> DataError | None:
    """A Siemens mosaic: a volume's slices as tiles of one picture, and a header that gives the place of the picture."""
    if "MOSAIC" not in [str(kind).strip().upper() for kind in values_of(header.get("ImageType"))]:
        return None
    return DataError(
        "the image is a mosaic (Image Type): its tiles are the slices of a volume, and it is no slice of a patient. "
        "Export the slices as single images, or as Enhanced MR.",
        ErrorCode.UNSUPPORTED,
    )


def _object_starts(path: Path) -> int:
    """Where the object begins: behind the file meta information, whose length is its first value (PS3.10 7.1)."""
    with path.open("rb") as file:
        start = file.read(_PREAMBLE + len(_MAGIC) + 12)
    place = _PREAMBLE + len(_MAGIC)
    if start[place : place + 6] != b"\x02\x00\x00\x00UL":
        return place
    return len(start) + int.from_bytes(start[place + 8 : place + 12], "little")


__all__ = [
    "LABELS",
    "REPORTS",
    "SEGMENTATIONS",
    "SINGLES",
    "SLICES",
    "STRUCTURE_SET",
    "Entry",
    "entry_from_json",
    "entry_to_json",
    "is_dicom",
    "look",
    "look_at_all",
    "references_of",
    "same_content",
]
