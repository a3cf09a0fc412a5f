"""The report of a check: report.json for programs, report.html for people.

The page holds pictures of patients, so both files are for their owner only. Names, paths and free text from the studies
are not in them: `client.data.check.tables`.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from client.data.check.checkup import Checkup, Outcome
from client.data.check.tables import Table, counts, document, shown_names, tables
from client.data.quality.quality import Facts
from client.data.study.drawing import COLOURS
from client.data.study.labels import BACKGROUND
from common.pages.html import render
from common.system.files import write_private

JSON_NAME = "report.json"
HTML_NAME = "report.html"

# More pictures than this make a page that no browser likes.
MOST_PICTURES = 500

Marked: TypeAlias = tuple[tuple[int, int, int], str]  # a class: its colour and what it is called

_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?( %)?")
_PROSE = 60  # characters


@dataclass(frozen=True)
class _TableOfPage:
    title: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]  # of the columns
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class _Figure:
    """A study's picture and what stands below it."""

    number: int
    name: str
    data: str  # PNG, base64
    split: str | None
    modality: str
    size: tuple[int, ...]
    spacing: tuple[str, ...]  # in mm
    marked: tuple[Marked, ...]
    unmarked: str  # what is said where nothing is marked


def page(checkup: Checkup) -> str:
    """The whole HTML document."""
    shown, found, usable = shown_names(checkup), counts(checkup), checkup.usable[:MOST_PICTURES]
    return render(
        "client/data/check/report.html",
        title=f"Data of {checkup.site}",
        when=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        about="labels as found" if checkup.run is None else f"as the run {checkup.run.name} reads them",
        version=version("wardround"),
        tiles=[
            ("usable studies", found["usable"], "good"),
            ("set aside", found["quarantined"], "bad" if found["quarantined"] else ""),
            ("ignored", found["ignored"], ""),
            ("patients", found["patients"], ""),
        ],
        tables=[_of_page(table) for table in tables(checkup)],
        usable=len(checkup.usable),
        legend=_legend(usable, shown),
        figures=list(_figures(usable, shown)),
    )


def write_reports(folder: Path, checkup: Checkup) -> Path:
    """Write report.json and report.html, for their owner only.

    Returns:
        The page.
    """
    write_private(folder / JSON_NAME, f"{json.dumps(document(checkup), indent=1)}\n".encode())
    write_private(folder / HTML_NAME, page(checkup).encode())
    return folder / HTML_NAME


def _of_page(table: Table) -> _TableOfPage:
    kinds = tuple(_kind(column) for column in zip(*table.rows, strict=True))
    return _TableOfPage(table.title, table.columns, kinds, table.rows)


def _kind(column: Iterable[object]) -> str:
    """Numbers stand right, sentences wrap."""
    texts = [str(value) for value in column if value is not None]
    if all(_NUMBER.fullmatch(text) for text in texts):
        return "number"
    return "prose" if any(len(text) > _PROSE for text in texts) else ""


def _legend(studies: Iterable[Outcome], shown: Mapping[str, str]) -> tuple[Marked, ...]:
    """Which colour is which class, where it is the same in all studies; else their captions say it."""
    orders = {tuple(study.facts.voxels)[1:] for study in studies if study.facts is not None}
    if len(orders) != 1:
        return ()
    return tuple((_colour(place), shown[name]) for place, name in enumerate(orders.pop()))


def _colour(place: int) -> tuple[int, int, int]:
    return COLOURS[place % len(COLOURS)]


def _figures(studies: Sequence[Outcome], shown: Mapping[str, str]) -> Iterator[_Figure]:
    for study in studies:
        if study.checked is None:
            continue
        facts = study.checked.facts
        classes = [(name, count) for name, count in facts.voxels.items() if name != BACKGROUND]
        yield _Figure(
            number=study.number,
            name=study.name,
            data=base64.b64encode(study.checked.thumbnail).decode(),
            split=study.split,
            modality=facts.modality,
            size=facts.shape,
            spacing=tuple(f"{edge:.3g}" for edge in facts.spacing_mm or ()),
            marked=tuple((_colour(place), shown[name]) for place, (name, count) in enumerate(classes) if count),
            unmarked=_as_a_whole(facts, shown),
        )


def _as_a_whole(facts: Facts, shown: Mapping[str, str]) -> str:
    """What is said of a study whose map marks nothing, or that has none."""
    if facts.findings is not None:
        return ", ".join(shown[name] for name in facts.findings) or "none of the classes"
    return "no foreground" if facts.voxels else "label not looked at"


__all__ = ["page", "write_reports"]
