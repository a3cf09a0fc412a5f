"""Numbers and truth values are written as TOML has them: "4" is a text and not 4, "yes" is none of true and false.

Pydantic takes one for the other. What it took is held against what was written; how a text was taken by an earlier
version stays as it was where a document is only compared (common/config/rundocument.py).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_LONGEST = 80


def mistaken(written: Any, taken: Any, place: str = "") -> Iterator[str]:
    """A sentence for each value that was taken for one of another type.

    Args:
        written: as the TOML parser gave it.
        taken: the same as the table holds it, its keys as they are written.
        place: dotted name.
    """
    match written, taken:
        case Mapping(), Mapping():
            for key, value in written.items():
                if key in taken:
                    yield from mistaken(value, taken[key], f"{place}.{key}" if place else str(key))
        case list(), list() | tuple() if len(written) == len(taken):
            for index, (value, other) in enumerate(zip(written, taken, strict=True)):
                yield from mistaken(value, other, f"{place}.{index}")
        case (str() | int() | float(), bool()) if not isinstance(written, bool):
            yield f"{place} is {_said(written)}, must be true or false, without quotes"
        case (str() | bool(), int() | float()) if not isinstance(taken, bool):
            kind = "a whole number" if isinstance(taken, int) else "a number"
            yield f"{place} is {_said(written)}, must be {kind}, without quotes"
        case (float(), int()) if not isinstance(taken, bool):
            yield f"{place} is {_said(written)}, must be a whole number, without a point"


def _said(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


__all__ = ["mistaken"]
