"""Label maps as DICOM SEG objects: the one place that wraps highdicom's segmentations.

Convention: a label map holds 0 for background and k for the k-th class, or the bits of classes that overlap (see
`common.labelmap`); its first axis runs over the source images in the order given, or over the frames of one multi-frame
image. Every class becomes one segment of a BINARY segmentation that keeps the patient, the study and the frame of
reference of its source; dates, codes and numbers of the source that break their form are left out, so that the object
is valid though its source is not.
Source: DICOM PS3.3 A.51 and C.8.20, PS3.5 6.2; codes from SNOMED CT by way of PS3.16 CID 7150.
"""

import datetime
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import highdicom
import numpy as np
import numpy.typing as npt
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.data.study.study import quiet
from client.predict.dicom.source import completed, is_placed, known_class, referable
from common.errors import DataError, ErrorCode
from common.labelmap import marks

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
    overlap: bool = False,
) -> Dataset:
    """Make a DICOM SEG that lies on the given images.

    Args:
        sources: headers of single-frame images of one series, or of one multi-frame image; pixels are not needed.
        labels: (S, R, C), slice s on sources[s]; or on frame s + 1.
        classes: K names; class k is classes[k - 1].
        author: the person or program that made the labels.
        created: date and time written into the object.
        series_number: of the new series.
        description: of the new series; must not identify the patient.
        entropy: text that new UIDs follow from; None draws fresh ones.
        overlap: whether classes, and so segments, may overlap.

    Returns:
        The object, ready for `save_as`. Slices without any label are left out, unless all are empty: DICOM SEG
        cannot have zero frames, so an empty result keeps a frame per slice.

    Raises:
        DataError: GEOMETRY_MISMATCH, the images belong to different studies or frames of reference; UNSUPPORTED,
            several images or frames that have no place in the patient, images whose UIDs are none, or a class of
            images that is retired or private.
    """
    sources = referable(sources)
    _check_places(sources)
    uids = _uids(entropy)
    series_uid, instance_uid = next(uids), next(uids)
    with quiet(), known_class():
        segmentation = Segmentation(
            source_images=completed(sources),
            pixel_array=_by_segment(labels, len(classes)) if overlap else labels,
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
        if not is_placed(sources[0]):
            segmentation.PatientOrientation = sources[0].get("PatientOrientation", "")
    _fix_time_and_identity(segmentation, created, next(uids))
    return segmentation


def _by_segment(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.uint8]:
    """(S, R, C) of bits to (S, R, C, K) of 0 and 1."""
    return np.stack([marks(labels, number, overlap=True) for number in range(1, 1 + classes)], -1).astype(np.uint8)


def _check_places(sources: Sequence[Dataset]) -> None:
    frames = int(sources[0].get("NumberOfFrames") or 1)
    if not is_placed(sources[0]) and (len(sources) > 1 or frames > 1):
        raise DataError(
            f"the {max(len(sources), frames)} images have no place in the patient, so a segmentation cannot say which "
            "of them it is of. Give single-frame images, one at a time.",
            ErrorCode.UNSUPPORTED,
        )


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


def _fix_time_and_identity(segmentation: Dataset, created: datetime.datetime, organization_uid: str) -> None:
    """Set what highdicom takes from the clock and at random: the same input must give the same bytes."""
    segmentation.InstanceCreationDate = created.strftime("%Y%m%d")
    segmentation.InstanceCreationTime = created.strftime("%H%M%S")
    for item in segmentation.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in item:
            item.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization_uid


def _uids(entropy: Sequence[str] | None) -> Iterator[str]:
    for count in itertools.count():
        yield generate_uid(entropy_srcs=None if entropy is None else [*entropy, "segmentation", str(count)])
