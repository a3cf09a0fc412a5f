"""Structured reports: their content as a tree, and what they refer to.

Source: DICOM PS3.3 C.17.2 (evidence), C.17.3 (content), C.18 (references).
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset

from common.errors import DataError, ErrorCode

CONTENT_TAGS = ("CurrentRequestedProcedureEvidenceSequence", "ContentSequence")
_DEEPEST = 32


def walk(parent: Dataset, group: Dataset, depth: int = 0) -> Iterator[tuple[Dataset, Dataset]]:
    """Each content item below a parent, with the innermost container that it lies in.

    Raises:
        DataError: UNSUPPORTED, the content nests too deeply.
    """
    if depth > _DEEPEST:
        raise DataError(
            "a structured report nests its content too deeply. Export it again, or take it out.", ErrorCode.UNSUPPORTED
        )
    for item in parent.get("ContentSequence") or []:
        yield item, group
        yield from walk(item, item if item.get("ValueType") == "CONTAINER" else group, depth + 1)


def images_of(group: Dataset) -> frozenset[str]:
    """Instances and series that the items of a container, or of a whole report, refer to."""
    uids: set[str] = set()
    for item, _ in walk(group, group):
        uids |= {_text(image, "ReferencedSOPInstanceUID") for image in item.get("ReferencedSOPSequence") or []}
        if item.get("ValueType") == "UIDREF":
            uids.add(_text(item, "UID"))
    return frozenset(uids - {""})


def evidence_of(report: Dataset) -> frozenset[str]:
    """Series and instances that a report was made from."""
    series = [
        one
        for study in report.get("CurrentRequestedProcedureEvidenceSequence") or []
        for one in study.get("ReferencedSeriesSequence") or []
    ]
    uids = {_text(one, "SeriesInstanceUID") for one in series}
    uids |= {
        _text(image, "ReferencedSOPInstanceUID") for one in series for image in one.get("ReferencedSOPSequence") or []
    }
    return frozenset(uids - {""})


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip()


__all__ = ["CONTENT_TAGS", "evidence_of", "images_of", "walk"]
