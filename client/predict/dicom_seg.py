"""Label maps as DICOM SEG objects: the one place that wraps highdicom.

Convention: a label map holds 0 for background and k for the k-th class; its first axis runs over the source images in
the order given, or over the frames of one multi-frame image. Every class becomes one segment of a BINARY segmentation
that keeps the patient, the study and the frame of reference of its source; dates, codes and numbers of the
source that break their form are left out, so that the object is valid though its source is not.
Source: DICOM PS3.3 A.51 and C.8.20, PS3.5 6.2; codes from SNOMED CT by way of PS3.16 CID 7150.
"""

import datetime
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import highdicom
import numpy as np
import numpy.typing as npt
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import Dataset, config
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import validate_value

from client.data.dicom.text import in_utf_8
from client.data.dicom.values import name_of, with_identity
from client.data.study.study import quiet
from common.errors import DataError, ErrorCode

# Class name -> (category, type). A name that is not here is coded as tissue; its label still says what it is.
PROPERTIES: dict[str, tuple[Code, Code]] = {
    "lesion": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion),
    "tumor": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Tumor),
    "tumour": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Tumor),
    "nodule": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Nodule),
    "mass": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Mass),
    "edema": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Edema),
    "necrosis": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Necrosis),
    "cyst": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Cyst),
    "hemorrhage": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Hemorrhage),
    "distortion": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.ArchitecturalDistortionOfBreast),
    "vessel": (codes.SCT.AnatomicalStructure, codes.SCT.BloodVessel),
    "liver": (codes.SCT.AnatomicalStructure, codes.SCT.Liver),
    "spleen": (codes.SCT.AnatomicalStructure, codes.SCT.Spleen),
    "kidney": (codes.SCT.AnatomicalStructure, codes.SCT.Kidney),
    "pancreas": (codes.SCT.AnatomicalStructure, codes.SCT.Pancreas),
    "prostate": (codes.SCT.AnatomicalStructure, codes.SCT.Prostate),
    "lung": (codes.SCT.AnatomicalStructure, codes.SCT.Lung),
    "heart": (codes.SCT.AnatomicalStructure, codes.SCT.Heart),
    "aorta": (codes.SCT.AnatomicalStructure, codes.SCT.Aorta),
    "stomach": (codes.SCT.AnatomicalStructure, codes.SCT.Stomach),
    "bladder": (codes.SCT.AnatomicalStructure, codes.SCT.Bladder),
    "brain": (codes.SCT.AnatomicalStructure, codes.SCT.Brain),
    "hippocampus": (codes.SCT.AnatomicalStructure, codes.SCT.Hippocampus),
}

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


@dataclass(frozen=True)
class Author:
    """Who drew the segments."""

    name: str
    # DICOM's segment algorithm type.
    kind: str = "AUTOMATIC"  # or "MANUAL", "SEMIAUTOMATIC"
    # SHA-256 of the model, hex; 64 characters, which is all that the value may have.
    version: str = ""
    software: str = "1"


def write_segmentation(
    sources: Sequence[Dataset],
    labels: npt.NDArray[np.uint8],
    classes: Sequence[str],
    author: Author,
    *,
    created: datetime.datetime,
    series_number: int,
    description: str,
    entropy: Sequence[str] | None = None,
) -> Dataset:
    """Make a DICOM SEG that lies on the given images.

    Args:
        sources: headers of single-frame images of one series, or of one multi-frame image; pixels are not needed.
        labels: (S, R, C), slice s on sources[s]; or on frame s + 1.
        classes: K names; label k is classes[k - 1].
        author: the person or program that made the labels.
        created: date and time written into the object.
        series_number: of the new series.
        description: of the new series; must not identify the patient.
        entropy: text that new UIDs follow from; None draws fresh ones.

    Returns:
        The object, ready for `save_as`. Slices without any label are left out, unless all are empty: DICOM SEG
        cannot have zero frames, so an empty result keeps a frame per slice.

    Raises:
        DataError: GEOMETRY_MISMATCH, the images belong to different studies or frames of reference; UNSUPPORTED,
            several images or frames that have no place in the patient, images whose UIDs are none, or a class of
            images that is retired or private.
    """
    with quiet():
        sources = [with_identity(_own(source)) for source in sources]
        _check_names(sources)
    _check_one_series(sources)
    _check_places(sources)
    uids = _uids(entropy)
    series_uid, instance_uid = next(uids), next(uids)
    with quiet(), _known_class():
        segmentation = Segmentation(
            source_images=_completed(sources),
            pixel_array=labels,
            segmentation_type="BINARY",
            segment_descriptions=[_describe(k, name, author, next(uids)) for k, name in enumerate(classes, start=1)],
            series_instance_uid=series_uid,
            series_number=series_number,
            sop_instance_uid=instance_uid,
            instance_number=1,
            manufacturer="Wardround",
            manufacturer_model_name=author.name,
            software_versions=author.software,
            device_serial_number=author.version[:16] or "0",
            content_description=description,
            content_label="SEGMENTATION",
            content_creator_name="Wardround^",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=bool(labels.any()),
            series_description=description,
            content_date=created.date(),
            content_time=created.time(),
            series_date=created.date(),
            series_time=created.time(),
        )
        if not _is_placed(sources[0]):
            segmentation.PatientOrientation = sources[0].get("PatientOrientation", "")
    _fix_time_and_identity(segmentation, created, next(uids))
    return segmentation


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


def _check_places(sources: Sequence[Dataset]) -> None:
    frames = int(sources[0].get("NumberOfFrames") or 1)
    if not _is_placed(sources[0]) and (len(sources) > 1 or frames > 1):
        raise DataError(
            f"the {max(len(sources), frames)} images have no place in the patient, so a segmentation cannot say which "
            "of them it is of. Give single-frame images, one at a time.",
            ErrorCode.UNSUPPORTED,
        )


def _is_placed(source: Dataset) -> bool:
    """Whether an image says where in the patient it lies."""
    groups = [
        *(source.get("SharedFunctionalGroupsSequence") or []),
        *(source.get("PerFrameFunctionalGroupsSequence") or []),
    ]
    return bool(source.get("ImagePositionPatient")) or any("PlanePositionSequence" in group for group in groups)


def _describe(number: int, name: str, author: Author, tracking_uid: str) -> SegmentDescription:
    category, kind = PROPERTIES.get(name, (codes.SCT.Tissue, codes.SCT.Tissue))
    algorithm = None
    if author.kind != "MANUAL":
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=author.name,
            family=codes.DCM.ArtificialIntelligence,
            version=author.version,
        )
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=author.kind,
        algorithm_identification=algorithm,
        tracking_uid=tracking_uid,
        tracking_id=f"{author.name} {name}",
    )


def _completed(sources: Sequence[Dataset]) -> list[Dataset]:
    """The sources with what highdicom insists on, and without what would make its object invalid."""
    completed = []
    thickness_mm = _distance_mm(sources)
    for source in sources:
        copy = _own(source)
        if not copy.get("FrameOfReferenceUID") or not _is_placed(copy):
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
        completed.append(copy)
    first = completed[0]  # the only one that patient and study are copied from
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
    return completed


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


def _fix_time_and_identity(segmentation: Dataset, created: datetime.datetime, organization_uid: str) -> None:
    """Set what highdicom takes from the clock and at random: the same input must give the same bytes."""
    segmentation.InstanceCreationDate = created.strftime("%Y%m%d")
    segmentation.InstanceCreationTime = created.strftime("%H%M%S")
    for item in segmentation.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in item:
            item.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization_uid


@contextmanager
def _known_class() -> Iterator[None]:
    try:
        yield
    except KeyError:  # highdicom looks the class up in the standard's table of today
        raise DataError(
            "the image is of a class that is private or retired from DICOM, and a segmentation cannot be made of it. "
            "Convert it to the class of today, such as Ultrasound Image Storage.",
            ErrorCode.UNSUPPORTED,
        ) from None


def _uids(entropy: Sequence[str] | None) -> Iterator[str]:
    for count in itertools.count():
        yield generate_uid(entropy_srcs=None if entropy is None else [*entropy, "segmentation", str(count)])
