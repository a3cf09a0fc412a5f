"""Keyed stand-ins for what identifies a patient in DICOM: UIDs, patient ids and dates.

Everything is HMAC-SHA256 under the site key, so two files agree without a table of who is who, and nobody without the
key can confirm a guess. This is pseudonymisation, not anonymisation: whoever holds the key and the originals can link
them again. A UID becomes 2.25. and 128 bits (PS3.5 B.2); a date moves back by 1 to 3650 whole days, the same for all of
one patient, so intervals stay.
"""

import hashlib
import hmac
import re
from datetime import date, timedelta
from typing import Any

from pydicom._uid_dict import UID_dictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from client.data.deidentify.pseudonym import pseudonym
from common.errors import DataError, ErrorCode

_UID_BYTES = 16
_LONGEST_SHIFT_DAYS = 3650
_PREAMBLE_BYTES = 128


def surrogate_uid(key: bytes, uid: str) -> str:
    """The UID that stands for another at this site; UIDs that the standard itself defines stay."""
    if uid in UID_dictionary:
        return uid
    digest = hmac.new(key, f"uid {uid}".encode(), hashlib.sha256).digest()
    return f"2.25.{int.from_bytes(digest[:_UID_BYTES])}"


def surrogate_patient(key: bytes, patient: object) -> str:
    """The pseudonym of a Patient ID, the same as in the cohort; empty for an empty one."""
    raw = str(patient or "").strip()
    return pseudonym(key, raw) if raw else ""


def subject_of(dataset: Dataset) -> str:
    """Whose dates move together: the patient, or the study where the patient is not named."""
    return str(dataset.get("PatientID") or "").strip() or str(dataset.get("StudyInstanceUID") or "")


def shift_days(key: bytes, subject: str) -> int:
    """Days that a subject's dates move back: 1 to 3650."""
    digest = hmac.new(key, f"date {subject}".encode(), hashlib.sha256).digest()
    return 1 + int.from_bytes(digest) % _LONGEST_SHIFT_DAYS


def shifted(value: str, days: int) -> str:
    """A DA or DT moved back; the time of day stays. Empty where the value is no full date."""
    found = re.fullmatch(r"(\d{4})(\d{2})(\d{2})((?:\d{2}){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)", value.strip())
    if found is None:
        return ""
    try:
        moved = date(int(found[1]), int(found[2]), int(found[3])) - timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{moved.year:04}{moved.month:02}{moved.day:02}{found[4]}"


def values_of(value: Any) -> list[Any]:
    """The values of an element, whatever their number."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | bytes) or not hasattr(value, "__iter__") else list(value)


def check_numbers(element: DataElement) -> None:
    """Numbers are copied as they are; a text in their place could be a name.

    Raises:
        DataError: UNREADABLE.
    """
    if element.VR in ("DS", "IS") and any(isinstance(value, str | bytes) for value in values_of(element.value)):
        raise DataError("a numeric attribute of the file holds text. Export it again, or take it out.")


def as_file(result: Dataset, original: Dataset) -> Dataset:
    """Give a dataset a preamble of zeros and a file meta group of its own; of the original's only the encoding stays.

    Raises:
        DataError: UNSUPPORTED, a transfer syntax that is not the standard's, or no SOP class.
    """
    syntax = getattr(original, "file_meta", Dataset()).get("TransferSyntaxUID") or ExplicitVRLittleEndian
    if UID_dictionary.get(syntax, ("", ""))[1] != "Transfer Syntax" or not result.get("SOPClassUID"):
        raise DataError(
            "the file's kind or encoding is not one of the standard's. Export it again, or take it out.",
            ErrorCode.UNSUPPORTED,
        )
    result.file_meta = FileMetaDataset()
    result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID
    result.file_meta.MediaStorageSOPInstanceUID = result.get("SOPInstanceUID", "")
    result.file_meta.TransferSyntaxUID = syntax
    result.preamble = bytes(_PREAMBLE_BYTES)
    return result
