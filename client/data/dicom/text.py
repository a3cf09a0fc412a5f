"""Text of a DICOM header, whatever its Specific Character Set is written like.

Archives hold the terms misspelt ("ISO IR 100"), doubled, empty in first place (the standard's own form for Japan), with
code extensions for one set only, or not at all with UTF-8 in the names. The bytes decide together with the term: what
cannot be decoded without doubt is no text, for a name that is nearly right is another person's.
Source: DICOM PS3.3 C.12.1.1.2 (terms), PS3.5 6.1.2 (character repertoires, code extensions).
"""

import copy
import re
from collections.abc import Sequence

from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from client.data.study.study import quiet

UTF_8 = "ISO_IR 192"

# Value representations whose repertoire the Specific Character Set replaces.
_TEXTS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
# What ends an escape sequence's effect (PS3.5 6.1.2.5.3): CR, LF, FF, TAB and between values; in names also ^ and =.
_DELIMITERS = {0x0D, 0x0A, 0x0C, 0x09, 0x5C}
_NAME_DELIMITERS = _DELIMITERS | {0x5E, 0x3D}
_ESCAPE = "\x1b"
_LOST = "\ufffd"


def _plain(term: str) -> str:
    return re.sub(r"[\s_-]+", " ", term.strip().upper())


_DEFAULT = ("", "ISO IR 6", "ISO 2022 IR 6")
_ENCODINGS = {_plain(term): encoding for term, encoding in python_encoding.items()}
_ENCODINGS |= {"UTF 8": "utf8", "UTF8": "utf8", **dict.fromkeys(_DEFAULT, "ascii")}


def encodings_of(ds: Dataset, inherited: Sequence[str] = ("ascii",)) -> tuple[str, ...]:
    """Python's names of the character sets that an object states, the first one first; "" for one that is not known.

    Args:
        ds: the object, or an item of a sequence.
        inherited: what an item takes from around it when it states none.
    """
    if "SpecificCharacterSet" not in ds:
        return tuple(inherited)
    stated = ds.SpecificCharacterSet
    terms = [stated] if isinstance(stated, str) or stated is None else list(stated)
    return tuple(dict.fromkeys(_ENCODINGS.get(_plain(term or ""), "") for term in terms)) or ("ascii",)


def decode(raw: bytes, encodings: Sequence[str], *, is_name: bool = False) -> str | None:
    """The text of a value; None where its bytes are not of the character sets that are stated.

    Args:
        raw: as in the file.
        encodings: see `encodings_of`.
        is_name: whether it is a person's name, in which escape sequences reach less far.
    """
    raw = raw.rstrip(b"\0 ")
    if raw.isascii() and _ESCAPE.encode() not in raw:
        return raw.decode()
    if "" in encodings:
        return None
    with quiet():
        try:
            text = decode_bytes(raw, list(encodings), _NAME_DELIMITERS if is_name else _DELIMITERS)
        except (UnicodeError, LookupError, ValueError):
            text = _LOST
    if _LOST not in text and _ESCAPE not in text:
        return text
    if encodings[0] != "ascii" or _ESCAPE.encode() in raw:
        return None
    try:  # who states nothing, and writes more than the default allows, writes UTF-8, or what nobody can tell
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def text_of_tag(ds: Dataset, keyword: str, encodings: Sequence[str] | None = None) -> str | None:
    """The text of an attribute, "" where there is none; None where its characters cannot be told."""
    if keyword not in ds:
        return ""
    element = ds.get_item(keyword)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        return decode(element.value, encodings or encodings_of(ds), is_name=_kind(element) == "PN")
    return str(ds.get(keyword) or "")


def in_utf_8(ds: Dataset, groups: Sequence[int], inherited: Sequence[str] = ("ascii",)) -> list[BaseTag]:
    """Decode the texts of some groups and state UTF-8, which holds all of them.

    Args:
        ds: changed in place; sequences in it are replaced, for other objects may share them.
        groups: whose texts are decoded; other texts must not be used any more.
        inherited: see `encodings_of`.

    Returns:
        Tags whose characters cannot be told; they are left as they were.
    """
    encodings = encodings_of(ds, inherited)
    unknown = []
    for tag in [tag for tag in ds.keys() if tag.group in groups]:  # noqa: SIM118 - iterating parses
        element = ds.get_item(tag)
        kind = _kind(element)
        if isinstance(element, RawDataElement) and kind in _TEXTS and isinstance(element.value, bytes):
            text = decode(element.value, encodings, is_name=kind == "PN")
            if text is None:
                unknown.append(tag)
            else:
                ds[tag] = DataElement(tag, kind, text)
        elif ds[tag].VR == "SQ":
            items = copy.deepcopy(ds[tag].value)
            for item in items:
                unknown += in_utf_8(item, groups, encodings) and [tag]
                item.pop("SpecificCharacterSet", None)
            ds[tag].value = items
    ds.SpecificCharacterSet = UTF_8
    return unknown


def _kind(element: DataElement | RawDataElement) -> str:
    """The value representation, which implicit VR leaves to the standard."""
    if element.VR not in (None, "UN"):
        return str(element.VR)
    return dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "UN"


__all__ = ["UTF_8", "decode", "encodings_of", "in_utf_8", "text_of_tag"]
