"""DICOM series: from a tree of files to references, by their headers alone.

Of a header only the attributes listed here are decoded; of the patient that is the Patient ID, which groups studies
and stays in this package. Files that are no image and no label (reports, plans, PDFs) are ignored and counted.
Source: DICOM PS3.3 C.7.3 (series), C.7.6.16 (multi-frame), A.51 and A.86 (segmentation), A.19 (structure set).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pydicom
from pydicom.dataset import Dataset

from client.data.deidentify import check_pixels
from client.data.frames import problem_from_json, problem_to_json, text_of
from client.data.pairs import files_under, patient_of
from client.data.study import (
    LONELY_LABEL,
    NO_IMAGE,
    NO_IMAGE_INSIDE,
    SECOND_COPY,
    Found,
    Reference,
    parsing,
    quiet,
)
from common.config import SourceConfig
from common.errors import DataError, ErrorCode

# SOP classes whose instances are slices of a series, and those whose every instance is a study of its own: a
# projection, or a whole stack of frames.
_SLICES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
}
_SINGLES = {
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
class Entry:
    """What one file says about its place. references: the series and images that a label was drawn on."""

    path: Path = field(repr=False)
    sop_class: str
    instance: str = field(repr=False)
    series: str = field(repr=False)
    patient: str = field(repr=False)
    frame_of_reference: str = field(repr=False)
    references: frozenset[str] = field(default=frozenset(), repr=False)
    pixel_text: DataError | None = None  # the image may show text, and that can name the patient


# Headers of files, in order: what `look` says of each.
Looker: TypeAlias = Callable[[Sequence[Path]], Iterable["Entry | DataError | None"]]


def is_dicom(path: Path) -> bool:
    """Whether a file starts as PS3.10 says: 128 bytes, then DICM."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def look(path: Path) -> Entry | None:
    """What the header of a file says; None where it is no DICOM.

    Raises:
        DataError: UNREADABLE.
    """
    if not is_dicom(path):
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


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """Plain values, all but the path."""
    return {
        "texts": [entry.sop_class, entry.instance, entry.series, entry.patient, entry.frame_of_reference],
        "references": sorted(entry.references),
        "pixel-text": problem_to_json(entry.pixel_text),
    }


def entry_from_json(path: Path, values: Mapping[str, Any]) -> Entry:
    """Inverse of `entry_to_json`; TypeError, ValueError or KeyError where it is none."""
    sop_class, instance, series, patient, frame_of_reference = map(text_of, values["texts"])
    references = frozenset(map(text_of, values["references"]))
    pixel_text = problem_from_json(values["pixel-text"])
    return Entry(path, sop_class, instance, series, patient, frame_of_reference, references, pixel_text)


def find(source: SourceConfig, folder: Path, looker: Looker = look_at_all) -> Found:
    """The series of a source and the segmentations and structure sets that refer to them; reads headers only.

    The patient is the Patient ID, or what patient-pattern finds in the path of the series' first file.
    """
    return find_among(files_under(folder), folder, source, looker)


def find_among(files: Sequence[Path], folder: Path, source: SourceConfig | None, looker: Looker = look_at_all) -> Found:
    """See `find`; without a source (for prediction) labels and patients are left out."""
    entries, broken, left_out = _scan(files, folder, looker)
    groups: dict[tuple[str, str], list[Entry]] = {}
    labels: list[Entry] = []
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.patient, entry.instance) in seen:
            left_out[SECOND_COPY] += 1
        elif entry.sop_class not in _SLICES | _SINGLES | _LABELS:
            left_out[NO_IMAGE_INSIDE] += 1
        elif entry.sop_class in _LABELS:
            labels.append(entry)
        else:
            key = entry.series if entry.sop_class in _SLICES else entry.instance
            groups.setdefault((entry.patient, key), []).append(entry)
        seen.add((entry.patient, entry.instance))
    drawn = {key: [label for label in labels if _refers(label, group)] for key, group in groups.items()}
    left_out[LONELY_LABEL] = len(labels) - len({label.path for matching in drawn.values() for label in matching})
    references = [_reference(key[1], group, drawn[key], folder, source) for key, group in groups.items()]
    return Found((*references, *broken), +left_out)


def _scan(files: Sequence[Path], folder: Path, looker: Looker) -> tuple[list[Entry], list[Reference], Counter[str]]:
    entries, broken, left_out = [], [], Counter[str]()
    for path, seen in zip(files, looker(files), strict=True):
        if seen is None:
            left_out[NO_IMAGE] += 1
        elif isinstance(seen, DataError):
            broken.append(Reference("dicom", "", path.relative_to(folder).as_posix(), (path,), problem=seen))
        else:
            entries.append(seen)
    return entries, broken, left_out


def _entry(path: Path) -> Entry:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_FINDING_TAGS))
    sop_class = str(header.get("SOPClassUID", ""))
    if not sop_class:
        raise DataError("this DICOM file does not say what it is. Export it again, or take it out.")
    references, frame = _drawn_on(header) if sop_class in _LABELS else (frozenset(), "")
    return Entry(
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


def _refers(label: Entry, group: list[Entry]) -> bool:
    """Whether a label was drawn on a series: it names it or its images, else shares its frame of reference."""
    if label.references:
        return any(entry.instance in label.references or entry.series in label.references for entry in group)
    return bool(label.frame_of_reference) and label.frame_of_reference == group[0].frame_of_reference


def _reference(
    key: str, group: list[Entry], labels: list[Entry], folder: Path, source: SourceConfig | None
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
    drawn = tuple(label.path for label in labels)
    return Reference(
        "dicom",
        patient,
        key,
        images,
        drawn,
        source.label_map,
        problem,
        fractional_threshold=source.fractional_threshold,
    )
