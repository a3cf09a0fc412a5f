"""The class of a DICOM image as a whole: what an attribute says that the site names, or a structured report.

An attribute is a keyword or a tag at the top of the header; it may hold several values, or coded entries, of which code
("SCT:108369006") and meaning both count. All files of a series must say the same. A report (PS3.3 A.35) belongs to the
images that it refers to, nobody else's: a coded Finding (121071, DCM), at the top or in a measurement group (TID 1500),
counts for the images that it names itself (INFERRED FROM), else for those of the innermost container around it that
names some, else for those of the report's evidence. What somebody typed into a report as text is not read.
Source: DICOM PS3.3 8 (coded entries), C.17.2 and C.17.3 (SR document), PS3.16 TID 1500, TID 1411.
"""

import difflib
from collections.abc import Sequence

import pydicom
from pydicom.datadict import dictionary_VR, keyword_dict, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from client.data.dicom.report import CONTENT_TAGS, evidence_of, images_of, walk
from client.data.study.pulse import watched
from client.data.study.study import Reference, parsing, quiet
from common.errors import ConfigError, DataError, ErrorCode

# Names of one class, the best first.
Names = tuple[str, ...]

_VALUES = ("AE", "AS", "CS", "IS", "LO", "LT", "SH", "ST", "UC", "US", "UT")  # text, and whole numbers
_FINDING = ("121071", "DCM")
_ABSENT = ("2667000", "SCT")


def tag_of(attribute: str) -> BaseTag:
    """The tag of an attribute that site.toml names.

    Raises:
        ConfigError: there is none of that name, or none that can hold a class.
    """
    text = attribute.strip("() ").replace(",", "").replace(" ", "")
    is_tag = len(text) == 8 and all(digit in "0123456789abcdefABCDEF" for digit in text)
    tag = Tag(int(text, 16)) if is_tag else Tag((text and tag_for_keyword(text)) or 0)
    if tag == 0:
        near = difflib.get_close_matches(text, keyword_dict, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"class-attribute {attribute!r} is no DICOM attribute.{hint} Write a keyword or a tag, such as "
            'ImageLaterality or "0020,0062".'
        )
    kind = dictionary_VR(tag) if keyword_for_tag(tag) else "LO"
    if kind not in (*_VALUES, "SQ"):
        raise ConfigError(
            f"class-attribute {attribute!r} has values of type {kind}, which name no class. Name an attribute that "
            "holds words, codes or whole numbers."
        )
    return tag


def names_in_header(reference: Reference) -> tuple[Names, ...]:
    """What the attribute of a series says; nothing where it is absent or empty.

    Raises:
        DataError: UNSUPPORTED, its files say different things.
    """
    tag = tag_of(reference.class_attribute or "")
    with parsing("DICOM series"), quiet():
        told = {_names(pydicom.dcmread(path, specific_tags=[tag]), tag) for path in watched(reference.images)}
    if len(told) > 1:
        raise DataError(
            f"the files of this series say {len(told)} different things in the attribute that names their class. Split "
            "the series, or take it out.",
            ErrorCode.UNSUPPORTED,
        )
    return told.pop()


def names_in_reports(reference: Reference) -> tuple[Names, ...]:
    """The coded findings that reports name of a series.

    Raises:
        DataError: NO_LABEL, no report of it, or none with a coded finding; LABEL_DOUBTFUL, one says that something is
            absent, two reports differ, or one is not complete.
    """
    with parsing("DICOM series"), quiet():
        headers = [
            pydicom.dcmread(path, specific_tags=["SOPInstanceUID", "SeriesInstanceUID"])
            for path in watched(reference.images)
        ]
        own = {str(ds.get(keyword) or "") for ds in headers for keyword in ("SOPInstanceUID", "SeriesInstanceUID")}
    told = set()
    for path in reference.reports or ():
        with parsing("structured report"), quiet():
            report = pydicom.dcmread(path, specific_tags=["CompletionFlag", *CONTENT_TAGS])
            if found := _findings(report, own - {""}):
                told.add(tuple(sorted(found)))
    if len(told) > 1:
        raise _doubtful(f"{len(told)} structured reports name different findings of this image. Are they two versions?")
    if not told:
        raise DataError(
            "no structured report names a coded finding of this image. Add it, or take the image out.",
            ErrorCode.NO_LABEL,
        )
    return told.pop()


def _names(header: Dataset, tag: BaseTag) -> tuple[Names, ...]:
    element = header.get(tag)
    if element is None or element.value in (None, ""):
        return ()
    if element.VR == "SQ":
        return tuple(_coded(item) for item in element.value)
    return tuple(
        (text,) for value in (element.value if element.VM > 1 else [element.value]) if (text := str(value).strip())
    )


def _coded(item: Dataset) -> Names:
    """A coded entry: scheme and code, then its meaning."""
    value = next(
        (str(item.get(one)) for one in ("CodeValue", "LongCodeValue", "URNCodeValue") if item.get(one)), ""
    ).strip()
    scheme = str(item.get("CodingSchemeDesignator") or "").strip()
    meaning = str(item.get("CodeMeaning") or "").strip()
    return tuple(name for name in (f"{scheme}:{value}" if value else "", meaning) if name)


def _findings(report: Dataset, own: set[str]) -> list[Names]:
    """Of the images whose series and instances are `own`."""
    if str(report.get("CompletionFlag") or "COMPLETE").strip() != "COMPLETE":
        raise _doubtful("a structured report of this image is not complete.")
    found = []
    for item, containers in walk(report):
        if item.get("ValueType") != "CODE" or _code(item.get("ConceptNameCodeSequence")) != _FINDING:
            continue
        named = next((uids for one in (item, *containers) if (uids := images_of(one))), evidence_of(report))
        if not named & own:
            continue
        beside = containers[0].get("ContentSequence") or [] if containers else []
        if any(_code(one.get("ConceptCodeSequence")) == _ABSENT for one in (*beside, *item.get("ContentSequence", []))):
            raise _doubtful("a structured report says of a finding of this image that it is absent.")
        found += [_coded(code) for code in item.get("ConceptCodeSequence") or []]
    return found


def _code(sequence: Sequence[Dataset] | None) -> tuple[str, str] | None:
    if not sequence:
        return None
    return str(sequence[0].get("CodeValue") or ""), str(sequence[0].get("CodingSchemeDesignator") or "")


def _doubtful(what: str) -> DataError:
    return DataError(f"{what} Have a person look at it, or take the image out.", ErrorCode.LABEL_DOUBTFUL)


__all__ = ["Names", "names_in_header", "names_in_reports", "tag_of"]
