"""Curves and clouds over two axes of numbers, as inline SVG: ROC, calibration, differences against means.

Convention: data units in, pixels out; y grows upwards. Axes begin and end on round numbers. A rule is a thin line right
across, such as a limit; the diagonal goes from one corner to the other, where both axes have the same range.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.pages.chart import Points, colours_of, ticks_of
from common.pages.html import Markup, fragment

_WIDTH, _HEIGHT = 420, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 30, 46
_KEY = 18  # pixels from one name to the next


@dataclass(frozen=True)
class Rule:
    """A horizontal line at a value, with its name."""

    at: float
    name: str


@dataclass(frozen=True)
class _Series:
    name: str
    colour: str
    points: tuple[tuple[float, float], ...]  # pixels
    key: int  # where its name stands, pixels from above


def plot(
    title: str,
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    lines: bool = True,
    rules: Sequence[Rule] = (),
    square: bool = False,
    diagonal: bool = True,
) -> Markup:
    """An SVG element; empty where there is nothing to draw.

    Args:
        title: above the plot.
        series: name -> points, in the order in which they are joined.
        x: what the axis to the right says.
        y: what the axis up says.
        lines: join the points of a series; False: a mark for each.
        rules: values of y to draw lines at.
        square: both axes from 0 to 1.
        diagonal: of a square, draw it.
    """
    points = [point for one in series.values() for point in one if all(map(math.isfinite, point))]
    if not points:
        return Markup("")
    across = [0.0, 1.0] if square else [value for value, _ in points]
    up = [0.0, 1.0] if square else [*(value for _, value in points), *(rule.at for rule in rules)]
    columns, rows = ticks_of(min(across), max(across)), ticks_of(min(up), max(up))

    def place(at_x: float, at_y: float) -> tuple[float, float]:
        right = (at_x - columns[0]) / (columns[-1] - columns[0])
        above = (at_y - rows[0]) / (rows[-1] - rows[0])
        return (
            round(_LEFT + right * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - above * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    colours = colours_of(series)
    drawn = [
        _Series(
            name,
            colours[name],
            tuple(place(*point) for point in one if all(map(math.isfinite, point))),
            _TOP + 14 + _KEY * number,
        )
        for number, (name, one) in enumerate(series.items())
    ]
    return fragment(
        "common/pages/plot.svg",
        title=title,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        columns=[(place(tick, rows[0])[0], f"{tick:g}") for tick in columns],
        rows=[(place(columns[0], tick)[1], f"{tick:g}") for tick in rows],
        rules=[(place(columns[0], rule.at)[1], rule.name) for rule in rules],
        diagonal=[place(0, 0), place(1, 1)] if square and diagonal else None,
        series=drawn,
        named=len(drawn) > 1,
        lines=lines,
        x=x,
        y=y,
    )


__all__ = ["Rule", "plot"]
