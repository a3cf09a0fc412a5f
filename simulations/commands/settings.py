"""Every key of every document, from the settings tables: type in words, default, range, and since which format.

What a key means is the comment above it in the source of its table, which is the one place where that is written; where
there is none its name says it, and docs/run.md, docs/operations.md, docs/pacs.md and docs/scenarios.md have
the prose.
"""

import difflib
import inspect
import io
import json
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from client.pacs.settings import PACS_NAME, PacsConfig
from common.config import PolicyConfig, RunConfig, SiteConfig
from common.document.choice import OneOf, choice_of
from common.document.formats import FIRST, Since
from common.document.table import Document, Table
from common.text import NAME_PATTERN
from simulations.scenarios.scenario import ScenarioConfig

_DOCUMENTS: Mapping[str, type[BaseModel]] = {
    "run.toml": RunConfig,
    "site.toml": SiteConfig,
    "policy.toml": PolicyConfig,
    PACS_NAME: PacsConfig,
    "scenario file": ScenarioConfig,
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_PATTERNS = {NAME_PATTERN: "small letters, digits and hyphens", r"^[0-9a-f]{64}$": "64 hexadecimal digits"}
# A table that is not there has the defaults of its keys.
OWN = "its own"
_SCALARS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key. place: dotted, with the table before it. kind: of a table of several kinds, the one that has it."""

    document: str
    place: str
    kind: str | None
    type: str
    default: str | None  # as TOML; None: needed
    since: int
    meaning: str

    @property
    def table(self) -> str:
        """The table that it stands in; empty at the top of the file."""
        return self.place.rpartition(".")[0]


def all_keys(beginning: str = "") -> list[Key]:
    """All keys, or those whose place is or begins with this, or those of a kind of this name, such as `clahe`."""
    found = [key for name, model in _DOCUMENTS.items() for key in _of_table(name, model, "", None)]
    if there := [key for key in found if not beginning or f"{key.place}.".startswith(f"{beginning}.")]:
        return there
    return [key for key in found if key.kind in (beginning, beginning.removeprefix(f"{key.table}."))]


def nearest(place: str) -> str:
    """What was probably meant, as the end of a sentence."""
    near = difflib.get_close_matches(place, [key.place for key in all_keys()], n=1)
    return f". Did you mean {near[0]!r}?" if near else "."


def page() -> str:
    """docs/reference.md."""
    parts = [
        "# Every key of every document\n",
        "Made from the settings tables by `wardround-sim reference --page docs/reference.md`. `-` is no value,\n"
        "`needed` a key without default, a key without a format is of every one. The prose is in [run.md](run.md),\n"
        "[operations.md](operations.md#sitetoml), [pacs.md](pacs.md) and [scenarios.md](scenarios.md). An unknown key\n"
        "is refused with the nearest known one.\n",
    ]
    for document in _DOCUMENTS:
        parts.append(f"## {document}\n")
        of_document = [key for key in all_keys() if key.document == document]
        for table, kind in dict.fromkeys((key.table, key.kind) for key in of_document):
            heading = f"[{table}]" if table else "Top of the file"
            parts.append(f"### {document}: {heading}{f', {kind}' if kind else ''}\n")
            rows = [key for key in of_document if (key.table, key.kind) == (table, kind)]
            parts.append(
                "| key | type | default | format | meaning |\n|---|---|---|---|---|\n" + "".join(map(_row, rows))
            )
    return "\n".join(parts)


def _row(key: Key) -> str:
    default = "needed" if key.default is None else key.default if key.default == OWN else f"`{key.default}`"
    since = "" if key.since == FIRST else str(key.since)
    cells = (f"`{key.place.rpartition('.')[2]}`", key.type, default, since, key.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _of_table(document: str, model: type[BaseModel], place: str, kind: str | None) -> Iterator[Key]:
    """The keys of a table, then of the tables in it."""
    below: list[tuple[str, type[BaseModel], str | None]] = []
    for name, field in model.model_fields.items():
        path = f"{place}.{field.alias or name}" if place else field.alias or name
        choice, inner = choice_of(field.annotation, field.metadata), _table_in(field.annotation)
        if choice is not None:
            below += [(path, member, kind_) for kind_, member in choice.by_name.items()]
        elif inner is RunConfig and document != "run.toml":
            pass  # [run] of a scenario: the tables of run.toml
        elif inner is not None:
            below.append((path, inner, None))
        since = max((mark.format for mark in field.metadata if isinstance(mark, Since)), default=FIRST)
        words = _words(field.annotation, field.metadata) if choice is None else _of_choice(choice, field.annotation)
        if inner is not None and choice is None:
            many = get_origin(_bare(field.annotation)) is tuple
            words = f"{'tables' if many else 'table'} `{'[[' if many else '['}{path}{']]' if many else ']'}`"
        yield Key(document, path, kind, words, _default(field), since, _comment(model, name))
    for path, table, kind_ in below:
        yield from _of_table(document, table, path, kind_)


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "-"
    if isinstance(value, Table):
        return "-" if isinstance(value, Document) else OWN
    return _toml(value)


def _toml(value: Any) -> str:
    match value:
        case tuple() | list():
            return f"[{', '.join(map(_toml, value))}]"
        case float() if value == int(value) and abs(value) < 1e6:
            return f"{value:.1f}"
        case dict():
            return "{}" if not value else json.dumps(value)
    return json.dumps(value, default=str)


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, with its range."""
    bare, marks = _opened(annotation, metadata)
    origin, arguments = get_origin(bare), get_args(bare)
    if origin is Literal:
        return f"{'one of ' * (len(arguments) > 1)}{', '.join(f'`{json.dumps(one)}`' for one in arguments)}"
    if origin is tuple:
        many = len(arguments) == 2 and arguments[1] is Ellipsis
        count = "" if many else f"{len(arguments)} "
        return f"list of {count}{_plural(_words(arguments[0]))}{_ranges(marks, 'entries')}"
    if origin in (dict, Mapping):
        return f"table of {_words(arguments[1])} by name"
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in arguments if one is not NoneType)
    words = _SCALARS.get(bare, "table" if isinstance(bare, type) and issubclass(bare, BaseModel) else str(bare))
    pattern = next((found for mark in marks if (found := getattr(mark, "pattern", None))), None)
    if pattern is not None:
        return _PATTERNS.get(str(pattern), f"text of the form `{pattern}`")
    return words + _ranges(marks, "signs")


def _ranges(marks: Sequence[Any], counted: str) -> str:
    said = [
        f"{words} {_figure(getattr(mark, name))}"
        for name, words in _BOUNDS.items()
        for mark in marks
        if hasattr(mark, name)
    ]
    said += [f"{mark.min_length} {counted} or more" for mark in marks if getattr(mark, "min_length", None)]
    said += [f"at most {mark.max_length} {counted}" for mark in marks if getattr(mark, "max_length", None)]
    return f", {', '.join(said)}" if said else ""


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _plural(words: str) -> str:
    return {"number": "numbers", "whole number": "whole numbers", "text": "texts"}.get(
        words,
        words.replace("whole number,", "whole numbers,").replace("number,", "numbers,", 1)
        if words.startswith(("number", "whole"))
        else words,
    )


def _of_choice(choice: OneOf, annotation: Any) -> str:
    many = get_origin(_bare(annotation)) is tuple
    kinds = ", ".join(f"`{name}`" for name in choice.by_name)
    return f"{'list of tables' if many else 'table'} of one of the kinds {kinds}"


def _opened(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, list[Any]]:
    """A type without None and annotations, and all the marks on the way."""
    marks = list(metadata)
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            marks += more
        elif get_origin(annotation) in (Union, UnionType):
            some = [one for one in get_args(annotation) if one is not NoneType]
            if len(some) > 1:
                return annotation, _unfolded(marks)
            (annotation,) = some
        else:
            return annotation, _unfolded(marks)


def _unfolded(marks: Sequence[Any]) -> list[Any]:
    """What pydantic's Field keeps inside, beside what it has put out already."""
    return [one for mark in marks for one in ([*mark.metadata] if isinstance(mark, FieldInfo) else [mark])]


def _bare(annotation: Any) -> Any:
    return _opened(annotation, ())[0]


def _table_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _table_in(part)) is not None), None)


def _comment(model: type[BaseModel], name: str) -> str:
    """What stands above a field in its source, of the class that declares it."""
    for owner in model.__mro__:
        if name in getattr(owner, "__annotations__", {}) and owner.__module__ != BaseModel.__module__:
            return _comments(owner).get(name, "")
    return ""


@cache
def _comments(model: type) -> Mapping[str, str]:
    """Field -> the whole comment lines right above it."""
    found: dict[str, str] = {}
    lines: list[str] = []
    source = inspect.cleandoc(inspect.getsource(model)) + "\n"
    previous = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row = token.start[0]
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            lines = (
                [*lines, token.string.lstrip("# ")] if row == previous + 1 or not lines else [token.string.lstrip("# ")]
            )
            previous = row
        elif token.type == tokenize.NAME and token.line[: token.start[1]].strip() == "" and lines:
            if row == previous + 1:
                found[token.string] = (
                    " ".join(lines).replace("; None: ", "; without it: ").replace("None: ", "Without it: ")
                )
            lines = []
    return found


__all__ = ["OWN", "Key", "all_keys", "nearest", "page"]
