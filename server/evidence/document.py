"""What a document is made of: text that we wrote, values with their places, and blanks that only people can fill.

No value is typed into a text: a number in a document is a `Fact`, which names where it stands. A sentence may depend on
facts, and then stands beside them. Each document exists twice, as a page for people and as JSON for programs, and both
show the same.
"""

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from common.pages.html import cell, render
from common.text import as_json
from server.views.facts import Fact, RunFacts, entered

FORMAT = 1


@dataclass(frozen=True)
class Blank:
    """What the program cannot know."""

    who: str  # has to fill it: "the controller"
    what: str

    @property
    def text(self) -> str:
        """As it stands in a document."""
        return f"to be completed by {self.who}: {self.what}"


Cell: TypeAlias = str | Fact | Blank


@dataclass(frozen=True)
class Part:
    """A heading with sentences and a table below it."""

    title: str
    text: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: Sequence[Sequence[Cell]] = ()
    none: str = ""  # said where the table has no rows


@dataclass(frozen=True)
class Document:
    """One document about a run."""

    name: str  # of its files
    title: str
    is_: str
    is_not: str
    parts: Sequence[Part]
    about: Sequence[tuple[str, Fact]] = field(default=())

    @property
    def blanks(self) -> tuple[Blank, ...]:
        """All that is left to people, in its order."""
        return tuple(one for part in self.parts for row in part.rows for one in row if isinstance(one, Blank))


def heading(facts: RunFacts) -> tuple[tuple[str, Fact], ...]:
    """Which run a document is about, how it stands, and when the document was made."""
    proposed = [entered(entry, "run") for entry in facts.audited("proposed")][-1:]
    return (
        ("run", facts.setting("name")),
        *(("document", one) for one in proposed),
        ("state", facts.state),
        ("made", facts.now),
    )


def as_data(document: Document) -> str:
    """The document as JSON."""
    return f"{as_json(_plain(document))}\n"


def page(document: Document) -> str:
    """The document as a page."""
    return render(
        "server/evidence/document.html",
        title=document.title,
        document=document,
        blanks=len(document.blanks),
        about=[(label, _shown(fact)) for label, fact in document.about],
        parts=[(part, [[_shown(one) for one in row] for row in part.rows]) for part in document.parts],
    )


def two_columns(title: str, rows: Iterable[tuple[str, Cell]], *text: str) -> Part:
    """A part that says one thing a row."""
    return Part(title, text, ("what", "value"), [list(row) for row in rows])


@dataclass(frozen=True)
class _Shown:
    """A cell as the page has it."""

    kind: str  # text, fact, blank
    text: str
    source: str = ""


def _shown(one: Cell) -> _Shown:
    match one:
        case Blank():
            return _Shown("blank", one.text)
        case Fact():
            return _Shown("fact", value_shown(one), source_of(one))
        case str():
            return _Shown("text", one)


def value_shown(fact: Fact) -> str:
    """A value as people read it: moments in UTC, truth as yes or no, what is not known as "not stated"."""
    value = fact.value
    if value is None:
        return "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if fact.moment and isinstance(value, int | float):
        return f"{datetime.datetime.fromtimestamp(value, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
    return repr(value) if isinstance(value, float) else cell(value)  # as it stands there: nothing is rounded


def source_of(fact: Fact) -> str:
    """Where a value stands, and how it follows from there."""
    places = ", ".join(fact.sources) or "nothing"
    return places if fact.how == "is" else f"{fact.how} of {places}"


def _plain(document: Document) -> dict[str, Any]:
    return {
        "wardround-evidence": FORMAT,
        "document": document.name,
        "title": document.title,
        "is": document.is_,
        "is-not": document.is_not,
        "blanks": len(document.blanks),
        "about": [[label, _cell(fact)] for label, fact in document.about],
        "parts": list(_parts(document.parts)),
    }


def _parts(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    for part in parts:
        rows = [[_cell(one) for one in row] for row in part.rows]
        yield {"title": part.title, "text": part.text, "columns": part.columns, "rows": rows}


def _cell(one: Cell) -> Any:
    match one:
        case Blank():
            return {"blank": one.what, "by": one.who}
        case Fact():
            return {"value": one.value, "how": one.how, "sources": list(one.sources)}
        case str():
            return one


__all__ = ["Blank", "Cell", "Document", "Part", "as_data", "heading", "page", "source_of", "two_columns", "value_shown"]
