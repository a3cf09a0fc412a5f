"""The images of a study as the source of a DICOM object made from them: checked, completed, freed of what breaks form.

highdicom copies patient and study from its source image and insists on what the standard requires; archives hold images
that lack it, or state text in characters that it is not. The copies here are what its objects can be made of, so that
these are valid though their source is not. Nothing is written to the images that are given.
Source: DICOM PS3.3 C.7 (patient and study), PS3.5 6.2 (forms of values).
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from pydicom import Dataset, config
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.tag import BaseTag
from pydicom.uid import generate_uid
from pydicom.valuerep import validate_value

from client.data.dicom.text import in_utf_8
from client.data.dicom.values import name_of, with_identity
from client.data.study.study import quiet
from common.errors import DataError, ErrorCode

# Type 2 attributes that highdicom copies from the source; a source that lacks one means "unknown".
_COPIED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)

# Whose it is; other text that cannot be read is left out.
_WHOSE = ("PatientName", "PatientID")
# By these a segmentation refers to its source.
_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_UID = re.compile(r"[012](\.(0|[1-9]\d*))+", re.ASCII)
_LONGEST_UID = 64
# What is copied from a source lies in these groups.
_PERSON_AND_STUDY = (0x0008, 0x0010, 0x0032)
# Value representations whose text has a form: age, code, date, number, time.
_FORMED = ("AS", "CS", "DA", "DS", "DT", "IS", "TM")


def referable(sources: Sequence[Dataset]) -> list[Dataset]:
    """Copies of the images, which can be referred to.

    Raises:
        DataError: GEOMETRY_MISMATCH, they belong to different studies or frames of reference; UNSUPPORTED, a UID is
            none.
    """
    with quiet():
        copies = [with_identity(_own(source)) for source in sources]
        _check_names(copies)
    _check_one_series(copies)
    return copies


def _own(source: Dataset) -> Dataset:
    """A copy whose attributes can be set and removed; the values are shared."""
    copy = Dataset()
    copy.update(source)
    copy.file_meta = source.file_meta
    return copy


def _check_names(sources: Sequence[Dataset]) -> None:
    for keyword in (*_NAMES, "FrameOfReferenceUID"):
        values = {str(source.get(keyword) or "") for source in sources}
        if keyword not in _NAMES:
            values.discard("")  # only an image with a place has to have one, and then `_completed` makes it
        if not all(len(value) <= _LONGEST_UID and _UID.fullmatch(value) for value in values):
            found = "is empty or missing" if "" in values else "is no UID"
            raise DataError(
                f"{name_of(keyword)} {found} in an image of the study, and a segmentation must refer to it. Expected "
                "numbers with dots, the first of them 0, 1 or 2. Where a de-identifier removed it, segment the study "
                "as it is in the archive, or have the de-identifier write a new one.",
                ErrorCode.UNSUPPORTED,
            )


def _check_one_series(sources: Sequence[Dataset]) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        count = len({str(source.get(keyword, "")) for source in sources})
        if count > 1:
            raise DataError(
                f"the images of the series name {count} different values of {keyword}; expected one. "
                "A segmentation cannot refer to them: export the series again.",
                ErrorCode.GEOMETRY_MISMATCH,
            )


def is_placed(source: Dataset) -> bool:
    """Whether an image says where in the patient it lies."""
    groups = [
        *(source.get("SharedFunctionalGroupsSequence") or []),
        *(source.get("PerFrameFunctionalGroupsSequence") or []),
    ]
    return bool(source.get("ImagePositionPatient")) or any("PlanePositionSequence" in group for group in groups)


def completed(sources: Sequence[Dataset]) -> list[Dataset]:
    """Copies of the images with what highdicom insists on, and without what would make its object invalid."""
    copies = []
    thickness_mm = _distance_mm(sources)
    for source in sources:
        copy = _own(source)
        if not copy.get("FrameOfReferenceUID") or not is_placed(copy):
            copy.pop("FrameOfReferenceUID", None)  # it says nothing of an image without a place in it
            if copy.get("ImagePositionPatient"):
                # The frame of reference is required, and the same one must come again for the same series.
                copy.FrameOfReferenceUID = generate_uid(
                    entropy_srcs=[str(copy.SeriesInstanceUID), "frame of reference"]
                )
        if copy.get("PixelSpacing") and not min(copy.PixelSpacing) > 0:
            del copy.PixelSpacing
        if copy.get("ImagePositionPatient") and not copy.get("SliceThickness"):
            copy.SliceThickness = thickness_mm
        copies.append(copy)
    first = copies[0]  # the only one that patient and study are copied from
    _tell_text(first)
    for tag in [tag for tag in list(first.keys()) if tag.group in _PERSON_AND_STUDY and not _is_legal(first, tag)]:
        del first[tag]
    for keyword in _COPIED:
        if keyword not in first:
            setattr(first, keyword, None)
    if first.get("PatientIdentityRemoved") == "YES" and not (
        first.get("DeidentificationMethod") or first.get("DeidentificationMethodCodeSequence")
    ):
        first.DeidentificationMethod = "not stated by the source"  # required with YES
    if first.PatientSex not in ("M", "F", "O"):
        first.PatientSex = ""
    return copies


def _tell_text(first: Dataset) -> None:
    """Bring all text that is copied to UTF-8: what the source says of its characters is often not true."""
    for tag in in_utf_8(first, _PERSON_AND_STUDY):
        if tag in map(tag_for_keyword, _WHOSE):
            raise DataError(
                f"the characters of {name_of(keyword_for_tag(tag))} are not those that Specific Character Set "
                "(0008,0005) of the images states, and the segmentation must not carry another name. Correct the "
                "character set in the archive.",
                ErrorCode.UNSUPPORTED,
            )
        del first[tag]


def _distance_mm(sources: Sequence[Dataset]) -> str:
    """The distance from one image to the next, for images that do not say how thick they are; 1 mm for one image."""
    positions = np.array([[float(x) for x in source.get("ImagePositionPatient") or (0, 0, 0)] for source in sources])
    distances = np.linalg.norm(positions[1:] - positions[0], axis=1)
    return f"{distances.min():.6f}" if len(distances) and distances.min() > 0 else "1"


def _is_legal(source: Dataset, tag: BaseTag) -> bool:
    """Whether a value is one that its representation allows, where that has a form. Names and identifiers stay."""
    try:
        element = source[tag]
        values = element.value if element.VM > 1 else [element.value]
        if element.VR in _FORMED:
            for value in values:
                validate_value(element.VR, str(value or ""), config.RAISE)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


@contextmanager
def known_class() -> Iterator[None]:
    """Say so of a class of images that highdicom does not find in the standard's table of today."""
    try:
        yield
    except KeyError:  # highdicom looks the class up in the standard's table of today
        raise DataError(
            "the image is of a class that is private or retired from DICOM, and a segmentation cannot be made of it. "
            "Convert it to the class of today, such as Ultrasound Image Storage.",
            ErrorCode.UNSUPPORTED,
        ) from None


__all__ = ["completed", "is_placed", "known_class", "referable"]
