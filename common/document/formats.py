"""Formats: how documents gain keys and change defaults, and those written before mean what they meant.

A document says its format at the top; without that key it is 1. Whatever changes in what a document may say makes a new
format, and stands beside the key that changed:

    warmup-steps: Annotated[int, Since(2)] = 0              a key that is new with format 2
    dropout: Annotated[float, Was(0.0, until=1)] = 0.1      a default that was another one up to format 1

A document of format 1 then has no warmup-steps but 0, which must be what was done before there was such a key, and its
dropout is 0.0 where it says none. Its canonical text (common/document/table.py) is the one that it always had, because
a key of a later format is left out of it where it has its earliest value. A new value of an old key, such as another
network, needs no format: who does not know it says so by its name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

FIRST = 1

_read_as: ContextVar[int | None] = ContextVar("format whose defaults are filled in", default=None)


@dataclass(frozen=True)
class Since:
    """The format that a key is new with; its earliest value is what was done before."""

    format: int


@dataclass(frozen=True)
class Was:
    """The default of a key in documents of format `until` and earlier."""

    default: Any
    until: int


@contextmanager
def read_as(format_: int) -> Iterator[int]:
    """Fill in the defaults of a format, whatever is read inside; the outermost decides. Yields that format."""
    decided = _read_as.get() or format_
    token = _read_as.set(decided)
    try:
        yield decided
    finally:
        _read_as.reset(token)


def reading() -> int | None:
    """The format whose defaults are filled in just now; None: no document is being read."""
    return _read_as.get()


def with_defaults(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """A table as read, with the defaults of the format that it is read as, where those were others."""
    format_ = _read_as.get()
    if format_ is None:
        return values
    filled = dict(values)
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key in values or name in values:
            continue
        default = _default(field)
        old = [mark for mark in _marks(field, Was) if mark.until >= format_]
        if old:
            filled[key] = min(old, key=lambda mark: mark.until).default
        elif isinstance(default, BaseModel):  # a table that is not there at all: its keys have a history, too
            filled[key] = type(default).model_validate(default.model_dump(exclude_unset=True, by_alias=True))
    return filled


def later_keys(table: BaseModel, path: str = "") -> Iterator[tuple[str, int, bool]]:
    """Keys that are not of the first format: dotted name, its format, and whether it has its earliest value."""
    for name, field in type(table).model_fields.items():
        key = f"{path}{field.alias or name}"
        value = getattr(table, name)
        for mark in _marks(field, Since):
            yield key, mark.format, value == _earliest(field)
        for place, below in _tables(value):
            yield from later_keys(below, f"{key}.{place}")


def written(table: BaseModel) -> dict[str, Any]:
    """What the canonical text of a table holds: all its keys, but for later ones with their earliest value."""
    values = table.model_dump(mode="json", by_alias=True)
    for key, _, is_earliest in list(later_keys(table)):
        if is_earliest:
            _remove(values, key.split("."))
    return values


def _remove(values: Any, path: list[str]) -> None:
    for part in path[:-1]:
        values = values[int(part)] if isinstance(values, list) else values.get(part)
        if values is None:  # its whole table is left out
            return
    values.pop(path[-1], None)


def _tables(value: object) -> Iterator[tuple[str, BaseModel]]:
    """The tables in a value, with the rest of their name: a table itself, or the entries of a list of them."""
    if isinstance(value, BaseModel):
        yield "", value
    elif isinstance(value, tuple | list):
        yield from ((f"{number}.", one) for number, one in enumerate(value) if isinstance(one, BaseModel))


def _earliest(field: FieldInfo) -> object:
    """The value of a key in documents that know nothing of it."""
    old = sorted(_marks(field, Was), key=lambda mark: mark.until)
    return old[0].default if old else _default(field)


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True, validated_data={})


def _marks(field: FieldInfo, kind: type[Any]) -> list[Any]:
    return [mark for mark in field.metadata if isinstance(mark, kind)]


__all__ = ["FIRST", "Since", "Was", "later_keys", "read_as", "reading", "with_defaults", "written"]
