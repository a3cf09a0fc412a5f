"""Values of a DICOM header that must be there, or be numbers; where they are not, the refusal names the attribute.

A parser says "could not convert string to float" of a decimal comma; a person needs to know which of 200 attributes it
stands in. The value itself stays out of the sentence.
"""

from collections.abc import Iterable
from typing import Any

from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from common.errors import DataError, ErrorCode

# Names of an instance that a de-identifier may have emptied, and where the file meta information repeats them.
IDENTITY = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}


def with_identity(ds: Dataset) -> Dataset:
    """The same object, with class and instance from its file meta information where they are empty."""
    for keyword, repeated in IDENTITY.items():
        if not ds.get(keyword) and ds.file_meta.get(repeated):
            setattr(ds, keyword, ds.file_meta.get(repeated))
    return ds


def numbers_of(ds: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...]:
    """The numbers of an attribute; none where it is absent or empty.

    Args:
        ds: the object, or an item of a sequence.
        keyword: of the attribute.
        count: how many there must be, if any; None: any number.

    Raises:
        DataError: UNREADABLE, one of them is no number, or they are too many or too few.
    """
    try:
        values: Any = ds.get(keyword)
        several = isinstance(values, Iterable) and not isinstance(values, str | bytes)
        found = tuple(float(value) for value in (values if several else [values] if values not in (None, "") else []))
    except (ValueError, TypeError, ArithmeticError):
        raise DataError(
            f"{name_of(keyword)} holds something that is no number in one of the files. Numbers are written with a "
            "decimal point, and parted by a backslash: does it have decimal commas? Export the study again.",
            ErrorCode.UNREADABLE,
        ) from None
    if found and count not in (None, len(found)):
        raise DataError(
            f"{name_of(keyword)} has {len(found)} numbers in one of the files; expected {count}. Export the study "
            "again.",
            ErrorCode.UNREADABLE,
        )
    return found


def number_of(ds: Dataset, keyword: str) -> float | None:
    """The first number of an attribute, see `numbers_of`; None where there is none."""
    found = numbers_of(ds, keyword)
    return found[0] if found else None


def check_present(ds: Dataset, keywords: Iterable[str]) -> None:
    """Refuse an object that lacks one of these attributes, or has it without a value.

    Raises:
        DataError: UNREADABLE.
    """
    missing = [name_of(keyword) for keyword in keywords if ds.get(keyword) in (None, "")]
    if missing:
        raise DataError(
            f"the header lacks {', '.join(missing)}, without which its pixels mean nothing. Export it again.",
            ErrorCode.UNREADABLE,
        )


def name_of(keyword: str) -> str:
    """An attribute as the standard writes it: "Image Position (Patient) (0020,0032)"."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"{dictionary_description(tag)} ({tag.group:04X},{tag.element:04X})"


__all__ = ["IDENTITY", "check_present", "name_of", "number_of", "numbers_of", "with_identity"]
