"""Text that came from elsewhere, made fit to be shown: one line, that no terminal, log, page or reader obeys.

Whatever another side, a file or a header wrote goes through `shown` before a person sees it. What has no glyph of its
own is written as its escape, as in a Python literal: controls (C0, C1, DEL), line ends, bidirectional and zero-width
signs, surrogates, signs that are not assigned or that show as nothing (Unicode 16, chapter 23; UTS 55). So are box
drawings, of which our tables are made, and more marks on one letter than any script has. What is shown is for reading:
two texts may be shown alike, and none is read back. JSON is data, and keeps its text: `as_json`.
"""

import datetime
import difflib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePath

# Names that we give: of sites, runs, classes, operators.
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

_MOST_MARKS = 4
# Printable by its category, and yet nothing is seen: fillers, joiners, variation selectors, the blank Braille pattern.
_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, range(0xFE00, 0xFE10)))
    + "".join(map(chr, range(0xE0100, 0xE01F0)))
)
_BOXES = range(0x2500, 0x2580)


def shown(value: object) -> str:
    """A value's text as one line of signs that can be seen."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    made = []
    marks = 0
    for sign in text:
        marks = marks + 1 if unicodedata.category(sign) in ("Mn", "Me") else 0
        seen = sign.isprintable() and sign not in _BLANK and ord(sign) not in _BOXES and marks <= _MOST_MARKS
        made.append(sign if seen else sign.encode("unicode_escape").decode("ascii"))
    return "".join(made)


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 study, 2 studies."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def sized(count: int) -> str:
    """So many bytes, three digits of them, in the unit that shows some: 640 B, 13.2 kB, 30 MB (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def meant(wrong: str, known: Iterable[str]) -> str:
    """A question for who mistyped a name, with a space before it; empty where none that is known is near."""
    near = difflib.get_close_matches(wrong.lower(), sorted(set(known)), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def as_name(text: str) -> str:
    """Words of others as a name (NAME_PATTERN, but for its length); empty where nothing of them fits."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def as_json(value: object) -> str:
    """JSON in printable ASCII; the text in it is exact.

    Args:
        value: of numbers, text, truth values, None, lists, tuples, mappings, moments (ISO 8601), paths. A number
            that JSON does not have (infinite, not a number) becomes null.

    Raises:
        TypeError: anything else is in it.
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False).replace("\x7f", "\\u007f")


def _plain(value: object) -> object:
    match value:
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case float():
            return value if math.isfinite(value) else None
        case datetime.date():
            return value.isoformat()
        case PurePath():
            return str(value)
    return value


__all__ = ["NAME_PATTERN", "as_json", "as_name", "counted", "meant", "shown", "sized"]
