"""The Basic Application Level Confidentiality Profile: a DICOM file that may be handed on, pseudonymised.

Driven by Table E.1-1, which lies beside this file in a form of our own (ps315.json, edition recorded in it, made by
deploy/ps315.py). X removes, Z empties, D puts a dummy, U a surrogate UID, K keeps, C cleans. Of a choice such as X/Z/D
the one is taken that the object's IOD needs, where that is known, else the first, which keeps least. Cleaning never
trusts a value: of a text only words of a closed list stay, dates move, sequences are cleaned inside.
Beyond the table go: attributes the standard does not know or whose VR is not its own, overlay groups as a whole, the
overlays hidden in unused pixel bits, preamble and file meta. Source: DICOM PS3.15 Annex E, types from PS3.3.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

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
from client.data.study.study import parsing, quiet
from common.errors import ConfigError, DataError, ErrorCode

TABLE = Path(__file__).with_name("ps315.json")

_CODES = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "clean_graphics": ("113103", "Clean Graphics Option"),
    "clean_structured_content": ("113104", "Clean Structured Content Option"),
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "retain_long_full_dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "retain_long_modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "retain_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "retain_device_identity": ("113109", "Retain Device Identity Option"),
    "retain_uids": ("113110", "Retain UIDs Option"),
    "safe_private": ("113111", "Retain Safe Private Option"),
    "retain_institution_identity": ("113112", "Retain Institution Identity Option"),
}

# What the IODs that hold our images need of the attributes with a choice: type 1 a dummy, type 2 an empty value.
_ENHANCED = {
    "AcquisitionContextSequence": "Z",
    "AcquisitionDateTime": "D",
    "ContentDate": "D",
    "ContentTime": "D",
    "DeviceSerialNumber": "D",
    "ReferencedImageSequence": "U*",
    "ReferencedPerformedProcedureStepSequence": "Z",
    "SourceImageSequence": "U*",
}
_PROJECTION = {"AcquisitionContextSequence": "Z"}
_SEGMENTATION = {
    "ContentDate": "D",
    "ContentTime": "D",
    "DeviceSerialNumber": "D",
    "SourceImageSequence": "U*",  # a frame without its image could not be laid over it
}
_RT = {"OperatorsName": "Z", "ReviewerName": "Z"}
_NEEDED: Mapping[str, Mapping[str, str]] = {
    "1.2.840.10008.5.1.4.1.1.1.1": _PROJECTION,  # DX, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1": _PROJECTION,
    "1.2.840.10008.5.1.4.1.1.1.2": _PROJECTION,  # MG, for presentation
    "1.2.840.10008.5.1.4.1.1.1.2.1": _PROJECTION,
    "1.2.840.10008.5.1.4.1.1.2.1": _ENHANCED,  # CT
    "1.2.840.10008.5.1.4.1.1.4.1": _ENHANCED,  # MR
    "1.2.840.10008.5.1.4.1.1.66.4": _SEGMENTATION,
    "1.2.840.10008.5.1.4.1.1.66.7": _SEGMENTATION,  # label map
    "1.2.840.10008.5.1.4.1.1.481.3": _RT,  # structure set
    "1.2.840.10008.5.1.4.1.1.481.5": _RT | {"RTPlanDate": "D", "RTPlanTime": "D", "TreatmentMachineName": "Z"},
}

_DUMMIES: Mapping[str, Any] = {
    "AE": "REMOVED",
    "AS": "000Y",
    "CS": "REMOVED",
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "IS": "0",
    "LO": "REMOVED",
    "LT": "REMOVED",
    "PN": "REMOVED",
    "SH": "REMOVED",
    "ST": "REMOVED",
    "TM": "000000",
    "UC": "REMOVED",
    "UR": "urn:removed",
    "UT": "REMOVED",
    **dict.fromkeys(("FD", "FL"), 0.0),
    **dict.fromkeys(("SL", "SS", "SV", "UL", "US", "UV"), 0),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), bytes(8)),
}
_TEXTS = frozenset(("CS", "LO", "LT", "SH", "ST", "UC", "UT"))
_FREE = _TEXTS - {"CS"}
_TIMES = ("DA", "DT", "TM")
_NO_INSTANCE = re.compile(r"SOPClass|TransferSyntax|CodingScheme|Context|MappingResource")  # UIDs of kinds of things

# All that may stay of a free text: terms of imaging, and no number without its unit.
_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        abdomen abdominal adc anatomic angio ankle aorta arterial axial bilateral bladder brain breast cardiac cc
        cerebral cervical chest colon contrast cor coronal cranial cranium ct cta cxr delayed diffusion dixon dwi
        dynamic elbow enhanced fat femur fetal flair foot for gadolinium gre hand haste heart hip humerus image
        iodine kidney knee lateral left liver localizer lumbar lung lungs mammography mediastinum mip mlo mpr mr mra
        mri native neck neuro oblique operation orbit original ovary pancreas pelvis perfusion pet phase portal post
        pre processing prostate pulmonary radius renal right sagittal sat scan scout sequence series shoulder sinus
        skull soft source space spine spleen stir stomach study supine survey swi t1 t1w t2 t2w tfe thoracic thorax
        thyroid tissue tof topogram tse turbo ultrasound uterus venous vessel vessels with without wrist
        """,
    )
)
_WORD = re.compile(r"(?<![\w.])(?:[A-Za-z][A-Za-z0-9]*|\d{1,2}(?:\.\d{1,2})?\s?mm)\b")
_OVERLAY_FACTS = (0x0010, 0x0011, 0x0015, 0x0040, 0x0050, 0x0051, 0x0100, 0x0102, 0x3000)


@dataclass(frozen=True)
class PrivateAttribute:
    """A private attribute that a site has found free of identity: (group, creator, low byte of the element)."""

    group: int
    creator: str
    element: int


@dataclass(frozen=True)
class Options:
    """The options of the profile (PS3.15 E.3); all off keeps least.

    Clean graphics keeps overlays of type R (regions) and the drawn shapes of presentation states. Safe private
    attributes are those the site names.
    """

    retain_uids: bool = False
    retain_device_identity: bool = False
    retain_institution_identity: bool = False
    retain_patient_characteristics: bool = False
    retain_long_full_dates: bool = False
    retain_long_modified_dates: bool = False
    clean_descriptors: bool = False
    clean_graphics: bool = False
    clean_structured_content: bool = False
    safe_private: frozenset[PrivateAttribute] = frozenset()

    def __post_init__(self) -> None:
        if self.retain_long_full_dates and self.retain_long_modified_dates:
            raise ConfigError(
                "dates can be kept in full or moved, not both. Choose retain-long-full-dates or "
                "retain-long-modified-dates."
            )

    @property
    def active(self) -> tuple[str, ...]:
        """The names of the options that are on."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))


@dataclass(frozen=True)
class _Job:
    """What holds for one file, however deep in its sequences."""

    key: bytes
    options: Options
    days: int
    sop_class: str
    cleaning: bool = False  # inside a sequence that is cleaned: what the table does not list is cleaned too

    def clean(self) -> "_Job":
        return _Job(self.key, self.options, self.days, self.sop_class, cleaning=True)


def basic_profile(dataset: Dataset, key: bytes, options: Options | None = None) -> Dataset:
    """A de-identified copy, with its own preamble and file meta; pixels are bit-equal.

    Args:
        dataset: a DICOM file as read; it is not changed.
        key: the site key; the same key gives the same pseudonyms, UIDs and dates in every file.
        options: what may stay beyond the basic profile.

    Raises:
        DataError: UNREADABLE, UNSUPPORTED.
    """
    options = options or Options()
    with parsing("DICOM file"), quiet():
        days = shift_days(key, subject_of(dataset))
        job = _Job(key, options, days, str(dataset.get("SOPClassUID", "")))
        result = _copy(dataset, job)
        clear_hidden_overlays(dataset, result)
        _declare(result, options)
        return as_file(result, dataset)


@cache
def edition() -> str:
    """The edition of the standard that the table is of."""
    return str(json.loads(TABLE.read_text(encoding="utf-8"))["edition"])


def clear_hidden_overlays(original: Dataset, result: Dataset) -> None:
    """Zero the pixel bits that hold an overlay of the retired kind, above the stored ones.

    Raises:
        DataError: UNSUPPORTED, the pixels are encoded such that this cannot be done.
    """
    positions = [original.get(Tag(group, 0x0102)) for group in range(0x6000, 0x6020, 2)]
    if not any(position is not None and position.value for position in positions) or "PixelData" not in result:
        return
    allocated, stored = int(original.BitsAllocated), int(original.BitsStored)
    syntax = getattr(original, "file_meta", Dataset()).get("TransferSyntaxUID")
    if allocated != 16 or (syntax is not None and syntax.is_encapsulated) or int(original.HighBit) != stored - 1:
        raise DataError(
            "an overlay lies in the image's unused bits, where it cannot be cleared. Export it without overlays.",
            ErrorCode.UNSUPPORTED,
        )
    order = ">u2" if syntax is not None and not syntax.is_little_endian else "<u2"
    pixels = np.frombuffer(result.PixelData, order)
    result.PixelData = (pixels & np.array((1 << stored) - 1, order)).tobytes()


@cache
def _table() -> Mapping[str, Mapping[str, str]]:
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["attributes"]
    return {tag: {name.replace("-", "_"): action for name, action in row.items()} for tag, row in rows.items()}


def _copy(original: Dataset, job: _Job) -> Dataset:
    result = Dataset()
    for tag in original.keys():  # noqa: SIM118 - iterating over a dataset decodes every value
        kept = _private(original, tag, job) if tag.is_private else _public(original, tag, job)
        if kept is not None:
            result.add(kept)
    return result


def _private(original: Dataset, tag: BaseTag, job: _Job) -> DataElement | None:
    def is_safe(block: int, element: int | None) -> bool:
        creator = original.get(Tag(tag.group, block))
        name = "" if creator is None else str(creator.value).strip()
        return any(
            (one.group, one.creator) == (tag.group, name) and element in (None, one.element)
            for one in job.options.safe_private
        )

    if not job.options.safe_private:
        return None
    if tag.is_private_creator:
        return original[tag] if is_safe(tag.element, None) else None
    if not is_safe(tag.element >> 8, tag.element & 0xFF):
        return None
    element = original[tag]
    return _sequence(element, job) if element.VR == "SQ" else element


def _public(original: Dataset, tag: BaseTag, job: _Job) -> DataElement | None:
    if tag.group & 0xFF00 == 0x6000:
        return _overlay(original, tag, job)
    if tag.group <= 0x0002 or tag.element == 0 or not dictionary_has_tag(tag) or tag.group & 0xFF00 == 0x5000:
        return None  # commands, file meta, group lengths, the unknown, curves
    row = _table().get(f"{tag:08x}")
    if row is None:
        return _unlisted(original[tag], job)
    asked = {row[name] for name in job.options.active if name in row}
    action = "K" if "K" in asked else "C" if "C" in asked else _chosen(row["basic"], tag, job.sop_class)
    if action == "C":
        cleaned = _cleaned(original[tag], job)
        if cleaned is not None:
            return cleaned
        action = _chosen(row["basic"], tag, job.sop_class)
    return _acted(action, original, tag, job)


def _chosen(action: str, tag: BaseTag, sop_class: str) -> str:
    """One of the actions of a choice."""
    choices = action.split("/")
    needed = _NEEDED.get(sop_class, {}).get(keyword_for_tag(tag), choices[0])
    return needed if needed in choices else choices[0]


def _acted(action: str, original: Dataset, tag: BaseTag, job: _Job) -> DataElement | None:
    vr = dictionary_VR(tag)
    if keyword_for_tag(tag) in ("PatientID", "PatientName"):
        return DataElement(tag, vr, surrogate_patient(job.key, original.get("PatientID")))
    match action:
        case "Z":
            return DataElement(tag, vr, Sequence() if vr == "SQ" else None)
        case "D":
            return _dummy(original[tag], job)
        case "U":
            return _surrogates(original[tag], job)
        case "K" | "U*":
            return _kept(original[tag], job if action == "K" else job.clean())
    return None  # X


def _unlisted(element: DataElement, job: _Job) -> DataElement | None:
    """What the table is silent about stays, but for names, dates and references: it may be older than the attribute."""
    vr, options = dictionary_VR(element.tag), job.options
    if vr == "PN" or (job.cleaning and vr in _FREE):
        return _cleaned(element, job)
    if vr in _TIMES and not options.retain_long_full_dates:
        return _cleaned(element, job) if options.retain_long_modified_dates else None
    if vr == "UI" and not options.retain_uids and not _NO_INSTANCE.search(keyword_for_tag(element.tag)):
        return _surrogates(element, job)
    return _kept(element, job)


def _kept(element: DataElement, job: _Job) -> DataElement | None:
    """An element with the standard's own VR; sequences are gone through."""
    vr = dictionary_VR(element.tag)
    if element.VR not in (vr, *vr.split(" or ")):
        return None
    check_numbers(element)
    return _sequence(element, job) if vr == "SQ" else element


def _sequence(element: DataElement, job: _Job) -> DataElement | None:
    if element.VR != "SQ":
        return None
    return DataElement(element.tag, "SQ", Sequence([_copy(item, job) for item in element.value]))


def _cleaned(element: DataElement, job: _Job) -> DataElement | None:
    """Action C; None where there is no safe way, so that the basic action holds."""
    vr = dictionary_VR(element.tag)
    if vr != element.VR:
        return None
    if vr in ("DA", "DT"):
        moved = [shifted(str(value), job.days) for value in values_of(element.value)]
        return DataElement(element.tag, vr, moved) if all(moved) else None
    if vr == "TM":
        return element  # days are moved as a whole
    if vr == "SQ":
        return _sequence(element, job.clean())
    if vr in _TEXTS:
        return DataElement(element.tag, vr, [_known_words(str(value)) for value in values_of(element.value)])
    return None


def _known_words(text: str) -> str:
    return " ".join(word for word in _WORD.findall(text) if word[0].isdigit() or word.lower() in _WORDS)


def _dummy(element: DataElement, job: _Job) -> DataElement:
    """The same attribute without its value; of a sequence the make of its items."""
    vr = dictionary_VR(element.tag).split(" or ")[0]
    if vr == "SQ":
        items = element.value if element.VR == "SQ" else []
        return DataElement(element.tag, vr, Sequence([_dummy_item(item, job) for item in items]))
    return _surrogates(element, job) if vr == "UI" else DataElement(element.tag, vr, _DUMMIES[vr])


def _dummy_item(item: Dataset, job: _Job) -> Dataset:
    result = Dataset()
    for tag in item.keys():  # noqa: SIM118 - see _copy
        if not tag.is_private and tag.element and dictionary_has_tag(tag):
            result.add(_dummy(item[tag], job))
    return result


def _surrogates(element: DataElement, job: _Job) -> DataElement:
    return DataElement(element.tag, "UI", [surrogate_uid(job.key, str(uid)) for uid in values_of(element.value)])


def _overlay(original: Dataset, tag: BaseTag, job: _Job) -> DataElement | None:
    """A whole plane goes or stays: without its data its size would mean nothing."""
    kind, data = (original.get(Tag(tag.group, element)) for element in (0x0040, 0x3000))
    is_region = kind is not None and kind.value == "R" and data is not None
    return original[tag] if job.options.clean_graphics and is_region and tag.element in _OVERLAY_FACTS else None


def _declare(result: Dataset, options: Options) -> None:
    """Say what was done, as E.1.1 asks."""
    result.PatientIdentityRemoved = "YES"
    result.DeidentificationMethod = f"Wardround: PS3.15 {edition()} Table E.1-1, keyed pseudonyms"
    result.LongitudinalTemporalInformationModified = (
        "UNMODIFIED"
        if options.retain_long_full_dates
        else "MODIFIED"
        if options.retain_long_modified_dates
        else "REMOVED"
    )
    items = []
    for name in ("basic", *options.active):
        item = Dataset()
        item.CodeValue, item.CodeMeaning = _CODES[name]
        item.CodingSchemeDesignator = "DCM"
        items.append(item)
    result.DeidentificationMethodCodeSequence = Sequence(items)
