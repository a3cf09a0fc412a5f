"""A line chart as inline SVG: enough for curves per site, without a plotting library at the coordinator.

Convention: data units in, pixels out; y grows upwards. Colours are Okabe and Ito's, which people with any colour vision
can tell apart (https://jfly.uni-koeln.de/color/).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from common.text import in_html

Points: TypeAlias = Sequence[tuple[float, float]]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#555555")

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 130, 30, 34
_TICKS = 5


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
) -> str:
    """An SVG element; "" where there is nothing to draw.

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
        return ""
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    ticks = _ticks(min(0.0, y_low) if y_from_zero else y_low, y_high)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text x="{_LEFT}" y="16" class="title">{in_html(title)}</text>']
    for tick in ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="tick end">{tick:g}</text>')
    for tick in dict.fromkeys((x_low, x_high)):
        x, _ = place(tick, ticks[0])
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 14}" class="tick middle">{tick:g}</text>')
    for index, (name, line) in enumerate(sorted(series.items())):
        colour = "currentColor" if name == emphasis else colours[name]
        width = 3 if name == emphasis else 1.8
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"/>' for x, y in (place(*p) for p in line)]
        y = _TOP + 8 + 18 * index
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 14}" y="{y - 8}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 32}" y="{y - 2}" class="tick">{in_html(name)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, at least two."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]
