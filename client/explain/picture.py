"""A map as a picture for a person: the image in grey, the map in colour over it, the answer's contour in white.

Up to four slices as in `client.predict.overlay`: those with the largest answer, or the largest values where there is no
answer. The colour has the strength of the value, of the map's 99.5th percentile at the most: from vermilion to yellow
for positive values, from blue to light blue for negative ones. Below stand method, map and that it is for no diagnosis.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from client.data.study.drawing import contours, upside_down
from client.explain.explanation import Explained, Explanation, MapResult
from client.predict.overlay import MOST_PANELS, display_size, panel

CAUTION = "Explanation of a model's answer. Not for diagnosis."

_PERCENTILE = 99.5
_STRONGEST = 0.75  # share of the colour where the value is largest: the image stays visible
_POSITIVE = ((213, 94, 0), (255, 245, 140))
_NEGATIVE = ((0, 114, 178), (170, 225, 255))
_TEXT_PIXELS = 14
_LINE = 20
_MARGIN = 8
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def draw_map(explanation: Explanation, explained: Explained, result: MapResult) -> Image.Image:
    """One map on up to four slices, side by side."""
    indices = shown_slices(explanation, result)
    panels = [one_panel(explanation, result, index) for index in indices]
    depth = explanation.study.image.shape[1] if explanation.study.image.ndim == 4 else 1
    titles = [f"slice {index + 1} of {depth}" if depth > 1 else "" for index in indices]
    return captioned(panels, titles, captions(explained, result))


def shown_slices(explanation: Explanation, result: MapResult) -> list[int]:
    """The slices of a picture, in order; of a study that is a picture, its only one."""
    values = _with_slices(result.values)
    told = [index for index, plane in enumerate(values) if np.isfinite(plane).any()]
    labels = None if explanation.labels is None else _with_slices(explanation.labels)
    drawn = labels is not None and labels.any()
    ranked = labels if drawn and labels is not None else np.abs(values)
    weights = {index: float(np.count_nonzero(ranked[index]) if drawn else np.nanmax(ranked[index])) for index in told}
    return sorted(sorted(told, key=lambda index: -weights[index])[:MOST_PANELS])


def one_panel(explanation: Explanation, result: MapResult, index: int) -> Image.Image:
    """One slice with its map, without a word."""
    study = explanation.study
    flips = upside_down(study) if study.image.ndim == 4 else ()
    image = study.image[:, index] if study.image.ndim == 4 else study.image
    values = np.flip(_with_slices(result.values)[index], flips)
    spacing = study.spacing_mm[-2:] if study.spacing_mm else (1.0, 1.0)
    size = display_size(values.shape, spacing)
    grey = panel(np.flip(image, tuple(axis + 1 for axis in flips)), [], explanation.run.preprocessing.window, size)
    coloured = _coloured(np.asarray(grey, np.float32), values / _scale(result.values), size)
    if explanation.labels is not None:
        label = np.flip(_with_slices(explanation.labels)[index], flips)
        drawn = np.asarray(Image.fromarray(np.ascontiguousarray(label)).resize(size, Image.Resampling.NEAREST))
        coloured[contours(drawn)] = _WHITE
    return Image.fromarray(coloured)


def captions(explained: Explained, result: MapResult) -> list[str]:
    """What stands below the panels."""
    return [f"{explained.method.name}: {result.name}", explained.method.means, CAUTION]


def captioned(panels: Sequence[Image.Image], titles: Sequence[str], lines: Sequence[str]) -> Image.Image:
    """The panels from left to right, below each its title, and below all some lines."""
    font = ImageFont.load_default(_TEXT_PIXELS)
    width, height = panels[0].size
    total = max(len(panels) * width, *(2 * _MARGIN + round(font.getlength(line)) for line in lines))
    rows = [*([""] if any(titles) else []), *lines]
    sheet = Image.new("RGB", (total, height + _LINE * len(rows) + _MARGIN), _BLACK)
    draw = ImageDraw.Draw(sheet)
    for number, (one, title) in enumerate(zip(panels, titles, strict=True)):
        sheet.paste(one, (number * width, 0))
        draw.text((number * width + _MARGIN, height + 3), title, _WHITE, font)
    for row, line in enumerate(rows):
        draw.text((_MARGIN, height + 3 + row * _LINE), line, _WHITE, font)
    return sheet


def _coloured(grey: NDArray[np.float32], values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Grey (Y, X, 3) under values of -1 to 1, resized linearly."""
    resized = Image.fromarray(np.nan_to_num(values).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(resized), -1, 1)[..., None]
    ramp = np.where(strength >= 0, _between(_POSITIVE, strength), _between(_NEGATIVE, -strength))
    share = _STRONGEST * np.abs(strength)
    return np.asarray((1 - share) * grey + share * ramp).round().astype(np.uint8)


def _between(
    ends: tuple[tuple[int, int, int], tuple[int, int, int]], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    low, high = (np.array(end, np.float32) for end in ends)
    return np.asarray(low + share * (high - low))


def _scale(values: NDArray[np.float32]) -> float:
    return float(np.nanpercentile(np.abs(values), _PERCENTILE)) or float(np.nanmax(np.abs(values))) or 1.0


def _with_slices(values: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(values if values.ndim == 3 else values[None])


__all__ = ["CAUTION", "captioned", "captions", "draw_map", "one_panel", "shown_slices"]
