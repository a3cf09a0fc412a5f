"""What an evaluation found, whatever the task: numbers for programs, tables and plots for people.

Rows are worst first. Patients are pseudonyms. In `summary` a figure is {"value", "low", "high"} with its interval, None
where there is none; it is plain JSON.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.measures.histogram import Bounded
from common.measures.intervals import Interval
from common.pages.html import Markup

LEVEL = 0.95
SEED = 0  # of the bootstrap: the same patients give the same interval


@dataclass(frozen=True)
class Table:
    """Rows under a title, and what is to be known to read them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    about: str = ""


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture with what stands below it."""

    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class Findings:
    """Of one site, or of several taken together.

    headline: the figure that stands for all, and what it is. patients: a row for each. tables: the rest, in order.
    """

    summary: dict[str, Any]
    headline: tuple[str, Interval]
    patients: Table
    tables: tuple[Table, ...]
    plots: tuple[Markup, ...]
    pictures: tuple[Shown, ...] = ()


def figure(one: Interval | None) -> dict[str, float | None] | None:
    """As the summary holds it."""
    return None if one is None else {"value": number(one.value), "low": number(one.low), "high": number(one.high)}


def bounded(one: Bounded | None, interval: Interval | None) -> dict[str, Any] | None:
    """A measure by bins: with the interval over patients, and apart from it what the bins leave open."""
    if one is None:
        return None
    return {**(figure(interval) or {}), "value": one.value, "bins": {"low": one.low, "high": one.high}}


def number(value: float | None) -> float | None:
    """JSON has neither infinity nor NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def told(one: Interval | None, digits: int = 3) -> str | None:
    """A figure with its interval, for a person."""
    if one is None or math.isnan(one.value):
        return None
    if one.low is None or one.high is None:
        return f"{one.value:.{digits}f}"
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def matrix_table(title: str, names: Sequence[str], counts: Sequence[Sequence[int]], about: str) -> Table:
    """A confusion matrix: a row for each truth, a column for each answer."""
    rows = tuple((f"truly {name}", *map(int, row)) for name, row in zip(names, counts, strict=True))
    return Table(title, ("", *(f"called {name}" for name in names)), rows, about)


__all__ = [
    "LEVEL",
    "SEED",
    "Findings",
    "Shown",
    "Table",
    "bounded",
    "figure",
    "matrix_table",
    "number",
    "told",
]
