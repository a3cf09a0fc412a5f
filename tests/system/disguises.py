"""What identifies a patient, planted everywhere, and how to find it again in any dress.

A text is looked for in UTF-8, Latin-1 and UTF-16 of both orders, in base64 at each of its three alignments, in hex, in
capitals and small letters, backwards; a row of pixels as numbers of several types and ranges. What can be inflated is,
and is looked through as well.
"""

import base64
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDENTIFIERS = {
    "patient's name": "MUELLER^ANNA-LENA",
    "patient's id": "PAT-7731-0042",
    "other ids": "OTHER-5519-X",
    "birth date": "19530417",
    "address": "Lindengasse 17b",
    "phone": "+43155504711",
    "comments": "Krüger-Öztürk sister of",
    "accession number": "ACC99812345",
    "study uid": "1.2.840.99999.7.1234567.1",
    "series uid": "1.2.840.99999.7.1234567.2",
    "frame uid": "1.2.840.99999.7.1234567.3",
    "study date": "20190823",
    "study time": "134501.987654",
    "study description": "CT STAGING HCC",
    "series description": "VENOUS AXIAL 2MM",
    "institution": "Sankt Rochus Spital",
    "physician": "HOLLERITH^GRETE",
    "station": "CTROOM4711",
    "segment label": "LESION-OF-ANNA",
    "structure name": "GTV_HOLLERITH",
    "folder": "anna_lena_mueller_folder",
    "file": "mueller-scan-0001",
    "csv cell": "CSV-CELL-4242",
    "nifti description": "NIFTI-OF-ANNA",
    "picture text": "PNGTEXT-OF-ANNA",
    "site comment": "ask Dr. Hollerith first",
    "policy comment": "agreed with the board of Rochus",
    "exception": "cannot read the scan of Anna",
    "worker's word": "worker speaks of Anna",
}
# All of them at once, for a message, a path or a name.
TEXT = " | ".join(IDENTIFIERS.values())
SIDE = 16
# The whole window of the run, so that nothing is clipped: HU.
WINDOW = (-100, 250)
PATTERN: NDArray[np.int16] = np.random.default_rng(42).integers(*WINDOW, (SIDE, SIDE)).astype(np.int16)

_SHORTEST = 4  # numbers to either side of a row's middle
_SHORTEST_DRESS = 6  # bytes; fewer occur by chance
_MOST_INFLATED = 1 << 22
# The beginnings of zlib (RFC 1950: deflate, any window) and of gzip.
_PACKED = re.compile(rb"(?=([\x08\x18\x28\x38\x48\x58\x68\x78][\x01\x5e\x9c\xda]|\x1f\x8b\x08))")


def found_in(content: bytes) -> set[str]:
    """Names of the planted things that occur in these bytes, in whatever dress."""
    found: set[str] = set()
    for part in (content, *_inflated(content)):
        found |= _TEXTS.found_in(part.lower()) | _ENCODED.found_in(part)
    return found


class Search:
    """Looks for thousands of texts at once: each place is looked up by its first three bytes, then compared."""

    def __init__(self, forms: Mapping[str, Collection[bytes]]) -> None:
        """Nothing is looked at yet.

        Args:
            forms: what is looked for by name, of three bytes and more.
        """
        self._begins = np.zeros(1 << 24, bool)
        self._forms = defaultdict[bytes, list[tuple[bytes, str]]](list)
        for name, dressed in forms.items():
            for form in dressed:
                self._forms[form[:3]].append((form, name))
                self._begins[int.from_bytes(form[:3], "little")] = True

    def found_in(self, content: bytes) -> set[str]:
        """The names of which a form occurs."""
        if len(content) < 3:
            return set()
        values = np.frombuffer(content, np.uint8).astype(np.uint32)
        places = np.flatnonzero(self._begins[values[:-2] | values[1:-1] << 8 | values[2:] << 16])
        return {
            name
            for place in places.tolist()
            for form, name in self._forms[content[place : place + 3]]
            if content.startswith(form, place)
        }


def dresses(content: bytes) -> Iterator[bytes]:
    """Bytes as somebody might hide them."""
    yield content
    yield content[::-1]
    yield content.hex().encode()
    yield content.hex().upper().encode()
    for skip in range(3):
        # Without the first and last characters, which depend on the neighbours.
        yield base64.b64encode(bytes(skip) + content)[4 if skip else 0 : -4]
        yield base64.urlsafe_b64encode(bytes(skip) + content)[4 if skip else 0 : -4]


def pixel_rows() -> Iterator[bytes]:
    """The middle of each row of the pattern, as it is stored and as a network may see it."""
    low, high = WINDOW
    share = (PATTERN - low) / (high - low)
    forms: list[NDArray[Any]] = [(PATTERN + 1024).astype(np.uint16), PATTERN]
    forms += [(share * 255).astype(np.uint8), (share * 255).round().astype(np.uint8)]
    for scaled in (PATTERN.astype(np.float64), PATTERN + 1024.0, share, 2 * share - 1):
        forms += [scaled.astype(kind) for kind in (np.float16, np.float32, np.float64)]
    for form in forms:
        for row in form:
            yield row[SIDE // 2 - _SHORTEST : SIDE // 2 + _SHORTEST].tobytes()


def _encodings(text: str) -> set[bytes]:
    return {text.encode(encoding) for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be")}


def _inflated(content: bytes) -> Iterator[bytes]:
    for match in _PACKED.finditer(content):
        try:
            yield zlib.decompressobj(47).decompress(memoryview(content)[match.start() :], _MOST_INFLATED)
        except zlib.error:
            continue


# Small letters are compared with small letters; what base64 makes of each is compared as it is.
_TEXTS = Search(
    {
        name: {dress.lower() for form in _encodings(text.lower()) for dress in (form, form[::-1], form.hex().encode())}
        for name, text in IDENTIFIERS.items()
    }
)
_ENCODED = Search(
    {
        name: {
            dress
            for case in (text, text.lower(), text.upper())
            for form in _encodings(case.replace("ß", "s"))
            for dress in dresses(form)
        }
        for name, text in IDENTIFIERS.items()
    }
    | {"pixels": {dress for row in pixel_rows() for dress in dresses(row) if len(dress) >= _SHORTEST_DRESS}}
)
