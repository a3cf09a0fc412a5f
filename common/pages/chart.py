"""A line chart as inline SVG: enough for curves per site, without a plotting library.

Convention: data units in, pixels out; y grows upwards. Colours are Okabe and Ito's, which people with any colour vision
can tell apart (https://jfly.uni-koeln.de/color/).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from common.pages.html import Markup, fragment

Points: TypeAlias = Sequence[tuple[float, float]]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#555555")

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 130, 30, 34
_TICKS = 5
# What sites state may be as small as a number can be; in less than this no steps can be told apart.
_LEAST_RANGE = 1e-300


@dataclass(frozen=True)
class _Line:
    name: str
    colour: str
    width: float
    points: tuple[tuple[float, float], ...]  # pixels
    key: int  # where its name stands, pixels from above


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, the same in every chart that is drawn with them."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(sorted(set(names)))}


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    colours: Mapping[str, str] | None = None,
    y_from_zero: bool = True,
    emphasis: str = "",
) -> Markup:
    """An SVG element; empty where there is nothing to draw.

    Args:
        title: above the chart.
        series: name -> points, ascending in x.
        colours: of the names; None: their own, by `colours_of`.
        y_from_zero: start the axis at 0, so that heights can be compared.
        emphasis: the series to draw thick and black.
    """
    points = [point for line in series.values() for point in line]
    colours = colours_of(series) if colours is None else colours
    if not points:
        return Markup("")
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    ticks = ticks_of(min(0.0, y_low) if y_from_zero else y_low, y_high)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - ticks[0]) / (ticks[-1] - ticks[0])
        x_px = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
        y_px = _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)
        return round(x_px, 1), round(y_px, 1)

    lines = [
        _Line(
            name=name,
            colour="currentColor" if name == emphasis else colours[name],
            width=3.0 if name == emphasis else 1.8,
            points=tuple(place(*point) for point in line),
            key=_TOP + 8 + 18 * index,
        )
        for index, (name, line) in enumerate(sorted(series.items()))
    ]
    return fragment(
        "common/pages/chart.svg",
        title=title,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        rules=[(place(x_low, tick)[1], f"{tick:g}") for tick in ticks],
        ends=[(place(tick, ticks[0])[0], f"{tick:g}") for tick in dict.fromkeys((x_low, x_high))],
        lines=lines,
    )


def ticks_of(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, at least two."""
    if high - low < _LEAST_RANGE:
        high = low + max(abs(low), 1.0)
    rough = (high - low) / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    decimals = max(12, 3 - math.floor(math.log10(step)))
    return [round(index * step, decimals) for index in range(first, last + 1)]


__all__ = ["COLOURS", "Points", "colours_of", "line_chart", "ticks_of"]
