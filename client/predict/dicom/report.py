"""What a model measured or said of a study, as a DICOM Structured Report: a measurement report that viewers can show.

Of a segmentation, each class has a group: its volume, or its area in a single image, and the segment that it was
measured on. A class that was not found has a group too, with 0 and no segment. Of a classification, each class has its
probability and whether it is the answer. Nobody has verified the report, and it says so; the device that observed is
the model, by its SHA-256.
Source: DICOM PS3.16 TID 1500 (Measurement Report), TID 1410 and 1411 (planar and volumetric regions), TID 1501 (group
without a region), TID 4019 (algorithm); PS3.3 A.35.3 (Comprehensive SR).
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from highdicom.sr import (
    AlgorithmIdentification,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    ReferencedSegmentationFrame,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.data.study.study import Study, quiet
from client.predict.dicom.segmentation import PROPERTIES, Author
from client.predict.dicom.source import completed, known_class, referable

# Of a code for what the standard has none: a class of ours, the answer of a model. "99" marks schemes of one's own.
_SCHEME = "99WARDROUND"
_LONGEST_MEANING = 64
_ANSWER = Code("answer", _SCHEME, "Answer of the model")
_NONE = Code("none-of-the-classes", _SCHEME, "None of the classes")
_PIXELS = Code("{pixels}", "UCUM", "pixels")
_MM3_PER_ML = 1000.0

_Group: TypeAlias = (
    MeasurementsAndQualitativeEvaluations
    | PlanarROIMeasurementsAndQualitativeEvaluations
    | VolumetricROIMeasurementsAndQualitativeEvaluations
)

# Modality -> the procedure that is reported; others are an imaging procedure.
_PROCEDURES: Mapping[str, Code] = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "CR": codes.cid100.XRUnspecifiedBodyRegion,
    "DX": codes.cid100.XRUnspecifiedBodyRegion,
}


@dataclass(frozen=True)
class Extent:
    """How much of a class there is. unit: "ml" of a volume, "mm2" or "pixels" of a single image."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Said:
    """What is said of an image as a whole. name: a class, or None for none of them. chance: in [0, 1]."""

    name: str | None
    chance: float
    is_answer: bool


def extents(study: Study, voxels: Mapping[str, int]) -> list[Extent]:
    """The extent of each class.

    Args:
        study: the study, whose grid the voxels lie on.
        voxels: by class.

    Returns:
        Millilitres of a series with a geometry, square millimetres of a single image with pixel spacing, and pixels of
        one without.
    """
    if study.spacing_mm is None or min(study.spacing_mm[-2:]) <= 0:
        size, unit = 1.0, "pixels"
    elif study.image.ndim == 4 and study.image.shape[1] > 1:
        depth, height, width = study.spacing_mm
        size, unit = depth * height * width / _MM3_PER_ML, "ml"
    else:
        size, unit = study.spacing_mm[-2] * study.spacing_mm[-1], "mm2"
    return [Extent(name, count * size, unit) for name, count in voxels.items()]


def write_measured(
    sources: Sequence[Dataset],
    segmentation: Dataset,
    measured: Sequence[Extent],
    author: Author,
    *,
    created: datetime.datetime,
    series_number: int,
) -> Dataset:
    """Make the report of a segmentation.

    Args:
        sources: headers of the images, as for the segmentation.
        segmentation: as `write_segmentation` made it.
        measured: of each class, in the order of its segments.
        author: who drew the segments.
        created: date and time written into the report.
        series_number: of the new series.

    Raises:
        DataError: as `write_segmentation`.
    """
    groups: list[_Group] = []
    framed = _by_frame(segmentation)
    for number, (segment, extent) in enumerate(zip(segmentation.SegmentSequence, measured, strict=True), start=1):
        about: dict[str, Any] = {
            "tracking_identifier": TrackingIdentifier(str(segment.TrackingUID), str(segment.TrackingID)),
            "finding_category": PROPERTIES[extent.name][0] if extent.name in PROPERTIES else None,
            "finding_type": PROPERTIES[extent.name][1] if extent.name in PROPERTIES else _own(extent.name),
            "algorithm_id": _algorithm(author),
            "measurements": [_measurement(extent)],
        }
        if not extent.value:
            groups.append(MeasurementsAndQualitativeEvaluations(**about))
        elif extent.unit == "ml":
            region = ReferencedSegment.from_segmentation(framed, number)
            groups.append(VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=region, **about))
        else:
            plane = _plane(framed, number, of_frames="NumberOfFrames" in sources[0])
            groups.append(PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=plane, **about))
    return _report(sources, [segmentation], groups, author, created=created, series_number=series_number)


def write_said(
    sources: Sequence[Dataset],
    said: Sequence[Said],
    author: Author,
    *,
    created: datetime.datetime,
    series_number: int,
) -> Dataset:
    """Make the report of a classification; arguments as for `write_measured`.

    Raises:
        DataError: as `write_segmentation`.
    """
    groups = []
    for one in said:
        kind = _NONE if one.name is None else _own(one.name)
        groups.append(
            MeasurementsAndQualitativeEvaluations(
                tracking_identifier=TrackingIdentifier(generate_uid(), f"{author.name} {kind.meaning}"),
                finding_type=kind,
                algorithm_id=_algorithm(author),
                measurements=[Measurement(codes.DCM.Probability, one.chance, codes.UCUM.NoUnits)],
                qualitative_evaluations=[
                    QualitativeEvaluation(_ANSWER, codes.SCT.Yes if one.is_answer else codes.SCT.No)
                ],
            )
        )
    return _report(sources, [], groups, author, created=created, series_number=series_number)


def _report(
    sources: Sequence[Dataset],
    others: Sequence[Dataset],
    groups: Sequence[_Group],
    author: Author,
    *,
    created: datetime.datetime,
    series_number: int,
) -> Dataset:
    """The document around the groups; `others` are objects beside the images that it refers to."""
    with quiet(), known_class():
        evidence = completed(referable(sources))
        device = DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=["observer", author.name, author.version]),
            name=author.name,
            manufacturer_name="Wardround",
            model_name=author.name,
            serial_number=author.version[:16] or "0",
        )
        content = MeasurementReport(
            observation_context=ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device)),
            procedure_reported=_PROCEDURES.get(str(evidence[0].get("Modality", "")), codes.cid100.ImagingProcedure),
            imaging_measurements=groups,
        )
        report: Dataset = ComprehensiveSR(
            evidence=[*evidence, *others],
            content=content[0],
            series_instance_uid=generate_uid(),
            series_number=series_number,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="Wardround",
            is_complete=True,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            series_description="Wardround measurements, not verified",
        )
    report.ContentDate = report.InstanceCreationDate = report.SeriesDate = created.strftime("%Y%m%d")
    report.ContentTime = report.InstanceCreationTime = report.SeriesTime = created.strftime("%H%M%S")
    return report


def _by_frame(segmentation: Dataset) -> Dataset:
    """The same, with the segment of each frame at the frame, where alone highdicom's reports look for it.

    Of a single class it stands once for all frames (PS3.3 C.7.6.16.1.1), and highdicom writes it so.
    """
    (shared,) = segmentation.SharedFunctionalGroupsSequence
    if "SegmentIdentificationSequence" not in shared:
        return segmentation
    frames = []
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        frame = Dataset()
        frame.update(group)
        frame.SegmentIdentificationSequence = shared.SegmentIdentificationSequence
        frames.append(frame)
    found = Dataset()
    found.update(segmentation)
    found.PerFrameFunctionalGroupsSequence = frames
    return found


def _plane(segmentation: Dataset, number: int, *, of_frames: bool) -> ReferencedSegmentationFrame:
    """The one frame of a segment, without what highdicom adds and PS3.3 C.18.4 and 10.3 have not.

    That is a segment's number beside a frame's, and the number of a frame where the source is a single one.
    """
    plane = ReferencedSegmentationFrame.from_segmentation(segmentation, segment_number=number)
    frame, source = (item.ReferencedSOPSequence[0] for item in plane)
    del frame.ReferencedSegmentNumber
    if not of_frames:
        source.pop("ReferencedFrameNumber", None)
    return plane


def _measurement(extent: Extent) -> Measurement:
    match extent.unit:
        case "ml":
            return Measurement(codes.SCT.Volume, extent.value, Code("ml", "UCUM", "Milliliter"))
        case "mm2":
            return Measurement(codes.SCT.Area, extent.value, codes.UCUM.SquareMillimeter)
        case _:
            return Measurement(codes.SCT.Area, extent.value, _PIXELS)


def _algorithm(author: Author) -> AlgorithmIdentification:
    return AlgorithmIdentification(author.name, author.version, family=codes.DCM.ArtificialIntelligence)


def _own(name: str) -> Code:
    """A class for which the standard's tables are not asked."""
    return Code(name[:_LONGEST_MEANING], _SCHEME, name[:_LONGEST_MEANING])


__all__ = ["Extent", "Said", "extents", "write_measured", "write_said"]
