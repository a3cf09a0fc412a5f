"""Structured reports: their content as a tree, and what they refer to.

Source: DICOM PS3.3 C.17.2 (evidence), C.17.3 (content), C.18 (references).
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset

from common.errors import DataError, ErrorCode

CONTENT_TAGS = ("CurrentRequestedProcedureEvidenceSequence", "ContentSequence")
_DEEPEST = 32


def walk(
    parent: Dataset, containers: tuple[Dataset, ...] = (), depth: int = 0
) -> Iterator[tuple[Dataset, tuple[Dataset, ...]]]:
    """Each content item below a parent, with the containers below it that the item lies in, the innermost first.

    Raises:
        DataError: UNSUPPORTED, the content nests too deeply.
    """
    if depth > _DEEPEST:
        raise DataError(
            "a structured report nests its content too deeply. Export it again, or take it out.", ErrorCode.UNSUPPORTED
        )
    for item in parent.get("ContentSequence") or []:
        yield item, containers
        within = (item, *containers) if item.get("ValueType") == "CONTAINER" else containers
        yield from walk(item, within, depth + 1)


def images_of(parent: Dataset) -> frozenset[str]:
    """Instances and series that the items below an item, or of a whole report, refer to."""
    uids: set[str] = set()
    for item, _ in walk(parent):
        uids |= {_text(image, "ReferencedSOPInstanceUID") for image in item.get("ReferencedSOPSequence") or []}
        if item.get("ValueType") == "UIDREF":
            uids.add(_text(item, "UID"))
    return frozenset(uids - {""})


def evidence_of(report: Dataset) -> frozenset[str]:
    """Instances that a report was made from; a series where it lists none of its instances."""
    uids: set[str] = set()
    for study in report.get("CurrentRequestedProcedureEvidenceSequence") or []:
        for series in study.get("ReferencedSeriesSequence") or []:
            instances = {_text(one, "ReferencedSOPInstanceUID") for one in series.get("ReferencedSOPSequence") or []}
            uids |= instances - {""} or {_text(series, "SeriesInstanceUID")}
    return frozenset(uids - {""})


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip()


__all__ = ["CONTENT_TAGS", "evidence_of", "images_of", "walk"]
