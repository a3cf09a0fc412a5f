"""De-identified copies of DICOM files: the minimal copy, the gate for pixels, and the export of a folder.

A minimal copy is default-deny: only what training needs survives, the attributes listed here, at any depth, each with
its own VR. Nothing private, no overlay, no free text; UIDs, patient and dates are keyed
(client/data/deidentify/surrogates.py). The other way to copy, the Basic Profile of PS3.15 with its options, is in
client/data/deidentify/ps315.py. Either names nobody, but the picture is still a person's and the key links it:
pseudonymised, not anonymised. Faces stay.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from client.data.deidentify.ps315 import Options, PrivateAttribute, basic_profile, clear_hidden_overlays
from client.data.deidentify.pseudonym import pseudonym
from client.data.deidentify.surrogates import (
    as_file,
    check_numbers,
    shift_days,
    shifted,
    subject_of,
    surrogate_patient,
    surrogate_uid,
    values_of,
)
from client.data.dicom.values import check_present, with_identity
from client.data.study.listing import Listing, list_folder
from client.data.study.study import parsing, quiet
from common.errors import ConfigError, DataError, ErrorCode
from common.system.files import write_atomically

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")

# What survives, by what it is for. UI is made a surrogate, DA is moved, the rest stays as it is.
_ALLOWED = """
    SpecificCharacterSet Modality ImageType
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID PatientID
    StudyDate SeriesDate AcquisitionDate ContentDate SeriesNumber AcquisitionNumber InstanceNumber

    Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    SmallestImagePixelValue LargestImagePixelValue LossyImageCompression BurnedInAnnotation
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence LUTDescriptor LUTData
    WindowCenter WindowWidth VOILUTFunction VOILUTSequence PresentationLUTShape PixelIntensityRelationship
    PixelIntensityRelationshipSign

    ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing
    SliceThickness SpacingBetweenSlices SliceLocation PatientPosition PositionReferenceIndicator
    PatientOrientation ImageLaterality Laterality ViewPosition EstimatedRadiographicMagnificationFactor

    KVP MagneticFieldStrength RepetitionTime EchoTime InversionTime FlipAngle ScanningSequence SequenceVariant
    MRAcquisitionType

    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence
    PlaneOrientationSequence PixelValueTransformationSequence FrameVOILUTSequence FrameContentSequence
    DimensionIndexValues DimensionOrganizationSequence DimensionOrganizationUID DimensionIndexSequence
    DimensionIndexPointer FunctionalGroupPointer InStackPositionNumber TemporalPositionIndex
    DerivationImageSequence SourceImageSequence ReferencedImageSequence ReferencedSOPClassUID
    ReferencedSOPInstanceUID ReferencedFrameNumber ReferencedSeriesSequence ReferencedInstanceSequence

    SegmentationType SegmentationFractionalType MaximumFractionalValue SegmentsOverlap SegmentSequence SegmentNumber
    SegmentLabel SegmentAlgorithmType SegmentIdentificationSequence ReferencedSegmentNumber
    SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence CodeValue CodingSchemeDesignator

    ReferencedFrameOfReferenceSequence RTReferencedStudySequence RTReferencedSeriesSequence ContourImageSequence
    StructureSetROISequence ROINumber ROIName ReferencedFrameOfReferenceUID ROIContourSequence ReferencedROINumber
    ContourSequence ContourNumber ContourGeometricType NumberOfContourPoints ContourData
    RTROIObservationsSequence ObservationNumber RTROIInterpretedType
"""

# Texts have to be of a form, or a name that the site gave.
_TEXT_FORMS: Mapping[str, str] = {
    "CodeValue": r"[A-Z]{0,2}-?[0-9A-F]{1,14}",
    "CodingSchemeDesignator": "SCT|SRT|DCM|FMA|RADLEX|UMLS|NCIt",
    "PositionReferenceIndicator": "SN|XY|IC|OM",
    "RescaleType": "HU|HU_MOD|US|OD|MGML|PCT|Z_EFF|ED|EDW",
}
_NAMES = ("ROIName", "SegmentLabel")

# Code strings have to be terms of the standard (PS3.3, and PS3.16 for views): whatever else fits sixteen capitals, such
# as a name, is emptied.
_TERMS = """
    AR BI BMD CR CT DG DX ES GM IO IVOCT IVUS LS MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OT PT PX RF RG RTSTRUCT SC
    SEG SM TG US VA XA XC
    ORIGINAL DERIVED PRIMARY SECONDARY MIXED NONE AXIAL LOCALIZER MOSAIC REFORMATTED MPR PROJECTION MIN_IP MAX_IP MEAN
    VOLUME
    RESAMPLED FILTERED SUBTRACTION ADDITION MULTIPLICATION DIVISION QUANTITY ENERGY_PROP_WT OTHER
    MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_PARTIAL_420 YBR_ICT YBR_RCT
    YES NO 00 01 LINEAR LINEAR_EXACT SIGMOID IDENTITY INVERSE LIN LOG DISP
    HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL
    R L U B A P H F AL AR PL PR HL HR FL FR LA LP RA RP HA HP FA FP
    AP PA LL RL RLD LLD RLO LLO CC MLO ML LM LMO SIO XCCL XCCM FB CV
    SE IR GR EP RM SK MTC SS TRSS SP MP OSP 2D 3D
    BINARY FRACTIONAL LABELMAP PROBABILITY OCCUPANCY UNDEFINED AUTOMATIC SEMIAUTOMATIC MANUAL
    POINT OPEN_PLANAR OPEN_NONPLANAR CLOSED_PLANAR CLOSEDPLANAR_XOR
    EXTERNAL PTV CTV GTV TREATED_VOLUME IRRAD_VOLUME BOLUS AVOIDANCE ORGAN MARKER REGISTRATION ISOCENTER
    CONTRAST_AGENT CAVITY BRACHY_CHANNEL SUPPORT FIXATION DOSE_REGION CONTROL DOSE_MEASUREMENT
"""
_TWO_WORDS = ("", "PALETTE COLOR", "SCREEN SAVE")

_SECONDARY_CAPTURES = (
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.1",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
    "1.2.840.10008.5.1.4.1.1.7.4",
)
_SYNTHETIC = "SYN"  # the one conversion that is no photograph of a screen, a film or a paper
_SCREEN = re.compile(r"SCREEN ?(SAVE|SHOT|CAPTURE|GRAB|DUMP)|SECONDARY CAPTURE|DOSE (INFO|REPORT)")


@dataclass(frozen=True)
class Exported:
    """What an export did: files written, patients among them, files that are no DICOM, the rest by code.

    unseen: names that could not be followed, listed or opened, by reason.
    """

    files: int
    patients: int
    ignored: int
    skipped: Mapping[ErrorCode, int]
    unseen: Mapping[str, int] = field(default_factory=dict)


def minimal_copy(dataset: Dataset, key: bytes, *, names: Collection[str] = ()) -> Dataset:
    """A copy that holds what training needs and nothing else; pixels are bit-equal.

    Args:
        dataset: a DICOM file as read; it is not changed.
        key: the site key.
        names: of segments and regions that may stay, such as the keys of a label map; in any case.

    Raises:
        DataError: UNREADABLE, UNSUPPORTED.
    """
    with parsing("DICOM file"), quiet():
        known = frozenset(name.strip().casefold() for name in names)
        result = _allowed_part(dataset, key, shift_days(key, subject_of(dataset)), known)
        for keyword in _PIXELS:
            if keyword in dataset:
                result.add(dataset[keyword])
        clear_hidden_overlays(dataset, result)
        result.PatientIdentityRemoved = "YES"
        result.DeidentificationMethod = "Wardround: minimal copy for training, keyed pseudonyms, dates moved"
        result.LongitudinalTemporalInformationModified = "MODIFIED"
        return as_file(result, dataset)


def check_pixels(dataset: Dataset, *, allow_burned_in: bool = False, allow_captures: bool = False) -> None:
    """Refuse images that may carry text: declared so, or taken from a screen, a film or paper.

    Args:
        dataset: a DICOM file as read.
        allow_burned_in: the site has looked at its burned-in annotations.
        allow_captures: the site has looked at its secondary captures and screenshots.

    Raises:
        DataError: BURNED_IN; UNREADABLE.
    """
    with parsing("DICOM file"), quiet():
        burned_in = str(dataset.get("BurnedInAnnotation") or "").strip().upper() not in ("", "NO")
        conversion = str(dataset.get("ConversionType") or "").strip()
        kinds = [str(kind).upper().replace("_", " ") for kind in values_of(dataset.get("ImageType"))]
        is_capture = (
            dataset.get("SOPClassUID") in _SECONDARY_CAPTURES
            or conversion not in ("", _SYNTHETIC)
            or any(_SCREEN.search(kind) for kind in kinds)
        )
    if burned_in and not allow_burned_in:
        raise DataError(
            "the image says that text is burned into its pixels, and that can name the patient. Look at it, then "
            "set pixel-text-checked in site.toml (export: --allow-burned-in), or take it out.",
            ErrorCode.BURNED_IN,
        )
    if is_capture and not allow_captures:
        raise DataError(
            "the image is a secondary capture or a screenshot, and these often show the patient's name. Look at it, "
            "then set pixel-text-checked in site.toml (export: --allow-captures), or take it out.",
            ErrorCode.BURNED_IN,
        )


def options_of(profile: Collection[str], safe_private: Collection[str] = ()) -> Options:
    """Options by their names, such as "retain-uids", and private attributes as GGGG,CREATOR,EE in hex.

    Raises:
        ConfigError: no such option, or not of that form.
    """
    known = [field.name.replace("_", "-") for field in fields(Options) if field.name != "safe_private"]
    if unknown := [name for name in profile if name not in known]:
        raise ConfigError(f"{unknown[0]!r} is no option of the profile. Choose from: {', '.join(known)}.")
    private = []
    for text in safe_private:
        found = re.fullmatch(r"([0-9a-fA-F]{4}),(.+),([0-9a-fA-F]{2})", text)
        if found is None or int(found[1], 16) % 2 == 0:
            raise ConfigError(f"{text!r} is no private attribute. Write GGGG,CREATOR,EE with an odd group, all in hex.")
        private.append(PrivateAttribute(int(found[1], 16), found[2].strip(), int(found[3], 16)))
    return Options(**{name.replace("-", "_"): True for name in profile}, safe_private=frozenset(private))


def export(
    study: Path,
    out: Path,
    deidentify: Callable[[Dataset], Dataset],
    key: bytes,
    *,
    allow_burned_in: bool = False,
    allow_captures: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write de-identified copies as OUT/PATIENT/INSTANCE.dcm, named by pseudonyms.

    A file that cannot be de-identified is skipped and counted; it never stops the others.

    Args:
        study: a DICOM file, or a folder with any other files among them.
        out: a folder that does not exist or is empty.
        deidentify: makes the copy of a file: `minimal_copy` or `basic_profile`, under the same key.
        key: the site key, for the names.
        allow_burned_in: see `check_pixels`.
        allow_captures: see `check_pixels`.
        progress: called with files done and in total.

    Raises:
        ConfigError: the study is not there, or the folder is not empty.
    """
    if not study.exists():
        raise ConfigError(f"{study} does not exist. Name a DICOM file or a folder.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} is not an empty folder, and its files would mix with the new. Name another with --out."
        )
    listing = list_folder(study) if study.is_dir() else Listing((study,), ())
    files = listing.files
    patients, skipped, ignored, written = set(), Counter[ErrorCode](), 0, 0
    for number, path in enumerate(files, start=1):
        try:
            if not _is_dicom(path):
                ignored += 1
            else:
                with parsing("DICOM file"), quiet():
                    dataset = with_identity(pydicom.dcmread(path))
                check_pixels(dataset, allow_burned_in=allow_burned_in, allow_captures=allow_captures)
                patients.add(_write(dataset, deidentify(dataset), out, key))
                written += 1
        except DataError as error:
            skipped[error.code] += 1
        if progress is not None:
            progress(number, len(files))
    return Exported(written, len(patients), ignored, dict(skipped), listing.unseen)


def _write(original: Dataset, copy: Dataset, out: Path, key: bytes) -> str:
    """Returns the patient's pseudonym."""
    with parsing("DICOM file"), quiet():
        check_present(original, ["SOPInstanceUID"])
        if not subject_of(original):
            raise DataError(
                "Patient ID (0010,0020) and Study Instance UID (0020,000D) are both empty, so whose image this is, "
                "nobody knows. Fill one in.",
                ErrorCode.UNSUPPORTED,
            )
        folder = pseudonym(key, subject_of(original))
        target = out / folder / f"{pseudonym(key, str(original.get('SOPInstanceUID', '')))}.dcm"
        if target.exists():
            raise DataError("a second file has the same SOP Instance UID. Take it out.", ErrorCode.DUPLICATE)
        encoded = BytesIO()
        copy.save_as(encoded, enforce_file_format=True)
        try:
            write_atomically(target, encoded.getvalue())
        except OSError as error:
            raise ConfigError(f"{out} cannot be written ({error.strerror}). Free space, or name another.") from error
    return folder


def _is_dicom(path: Path) -> bool:
    with parsing("file"):
        return pydicom.misc.is_dicom(path)


@cache
def _allowed() -> Mapping[BaseTag, str]:
    """Tag -> keyword of what survives."""
    return {Tag(tag): keyword for keyword in _ALLOWED.split() if (tag := tag_for_keyword(keyword)) is not None}


def _allowed_part(original: Dataset, key: bytes, days: int, names: frozenset[str]) -> Dataset:
    result = Dataset()
    for tag, keyword in _allowed().items():
        if tag not in original:
            continue
        element = original[tag]
        vr = dictionary_VR(tag)
        if element.VR not in (vr, *vr.split(" or ")):
            continue
        if vr == "SQ":
            items = [_allowed_part(item, key, days, names) for item in element.value]
            result.add(DataElement(tag, vr, Sequence(items)))
        else:
            values = _allowed_values(keyword, element, key, days, names)
            result.add(element if values is None else DataElement(tag, element.VR, values))
    return result


def _allowed_values(
    keyword: str, element: DataElement, key: bytes, days: int, names: frozenset[str]
) -> list[str] | None:
    """The values that stay of a text; None for numbers, which stay as they are."""
    check_numbers(element)
    if element.VR not in ("CS", "DA", "LO", "SH", "UI"):
        return None
    values = [str(value) for value in values_of(element.value)]
    if keyword == "PatientID":
        return [surrogate_patient(key, element.value)]
    if element.VR == "UI":
        return [surrogate_uid(key, value) for value in values]
    if element.VR == "DA":
        return [moved for value in values if (moved := shifted(value, days))]
    if keyword == "SpecificCharacterSet":
        return values if all(value in python_encoding for value in values) else []
    return [value if _stays(keyword, value, names) else "" for value in values]


def _stays(keyword: str, value: str, names: frozenset[str]) -> bool:
    if keyword in _NAMES:
        return value.strip().casefold() in names
    if keyword in _TEXT_FORMS:
        return re.fullmatch(_TEXT_FORMS[keyword], value) is not None
    return value.strip() in (*_TERMS.split(), *_TWO_WORDS)


__all__ = [
    "Exported",
    "Options",
    "PrivateAttribute",
    "basic_profile",
    "check_pixels",
    "export",
    "minimal_copy",
    "options_of",
]
