"""A picture of a segmentation for a person: the slices with the largest findings, contours, a legend, a scale.

Left, back and feet of the patient lie right, down and down, as radiologists expect; pixels are square. One panel shows
one slice: first the largest finding of each class, then further findings, the largest first, where a finding is a run
of neighbouring slices with a class. Nothing is written on it but class names, slice numbers and lengths.
"""

import io
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from client.data.study.drawing import COLOURS, contours, upside_down, windowed
from client.data.study.study import Study
from common import labelmap

# Labels (Y, X), and the colours of 1, 2, ..., again from the first when there are more labels.
Layer: TypeAlias = tuple[NDArray[np.uint8], Sequence[tuple[int, int, int]]]

# A small image is enlarged until its longer side has about this many pixels.
PANEL_PIXELS = 512
MOST_PANELS = 4

_TEXT_PIXELS = 14
_LINE = 22
_MARGIN = 8
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
# The window of display where the run has none.
_PERCENTILES = (0.5, 99.5)
# The scale is at most this share of the panel's width.
_SCALE_SHARE = 1 / 3


def draw_overlay(
    study: Study,
    labels: NDArray[np.uint8],
    classes: Sequence[str],
    window: tuple[float, float] | None,
    *,
    overlap: bool = False,
) -> bytes:
    """Draw the contours of a segmentation on its image.

    Args:
        study: the image.
        labels: (*sp) on the study's grid.
        classes: K names; class k is classes[k - 1].
        window: intensities shown black and white; None for the slice's own percentiles.
        overlap: whether classes may overlap; then each has a contour of its own.

    Returns:
        A PNG: up to four panels side by side, and below them the slice of each, the scale and the legend.
    """
    if labels.ndim == 3:
        flips = upside_down(study)
        indices = shown_slices(labels, overlap=overlap)
        planes = [(np.flip(study.image[:, z], _in_image(flips)), np.flip(labels[z], flips)) for z in indices]
        titles = [f"slice {z + 1} of {len(labels)}" for z in indices] if len(labels) > 1 else [""]
    else:
        planes, titles = [(study.image, labels)], [""]
    spacing = study.spacing_mm[-2:] if study.spacing_mm else (1.0, 1.0)
    size = display_size(labels.shape[-2:], spacing)
    panels = [panel(image, _layers(label, overlap=overlap), window, size) for image, label in planes]
    pixel_mm = labels.shape[-1] * spacing[1] / size[0] if study.spacing_mm and min(spacing) > 0 else None
    return png(_with_captions(panels, titles, classes, pixel_mm))


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    # The default of 6 takes more than twice as long for a tenth less.
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _layers(labels: NDArray[np.uint8], *, overlap: bool) -> list[Layer]:
    if not overlap:
        return [(labels, COLOURS)]
    masks = [labelmap.marks(labels, number, overlap=True) for number in range(1, 1 + labelmap.MOST_OVERLAPPING)]
    return [(mask.astype(np.uint8), COLOURS[place % len(COLOURS) :][:1]) for place, mask in enumerate(masks)]


def shown_slices(labels: NDArray[np.uint8], *, overlap: bool) -> list[int]:
    """The slices (Z, Y, X) that a picture of these labels shows, in order; the middle one when nothing was found."""
    largest: list[tuple[int, int]] = []  # (voxels, slice) of each class
    further: list[tuple[int, int]] = []
    for number in (np.flatnonzero(labelmap.counts(labels, overlap=overlap)[1:]) + 1).tolist():
        areas = np.count_nonzero(labelmap.marks(labels, number, overlap=overlap), axis=(1, 2))
        edges = np.flatnonzero(np.diff(np.pad(areas > 0, 1).astype(np.int8)))
        findings = sorted((int(areas[a:b].max()), a + int(areas[a:b].argmax())) for a, b in edges.reshape(-1, 2))
        largest.append(findings.pop())
        further += findings
    ranked = [index for _, index in (*sorted(largest, reverse=True), *sorted(further, reverse=True))]
    return sorted(list(dict.fromkeys(ranked))[:MOST_PANELS]) or [len(labels) // 2]


def _in_image(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis + 1 for axis in axes)


def display_size(shape: Sequence[int], spacing: Sequence[float] = (1.0, 1.0)) -> tuple[int, int]:
    """Width and height in pixels for an image of rows x columns, square pixels, large enough to look at."""
    # Some scanners write a spacing of zero.
    finest = min(spacing)
    stretch_y, stretch_x = (spacing[0] / finest, spacing[1] / finest) if finest > 0 else (1.0, 1.0)
    height, width = shape[0] * stretch_y, shape[1] * stretch_x
    factor = max(1, round(PANEL_PIXELS / max(height, width)))
    return max(1, round(width * factor)), max(1, round(height * factor))


def panel(
    image: NDArray[np.float32], layers: Sequence[Layer], window: tuple[float, float] | None, size: tuple[int, int]
) -> Image.Image:
    """One slice with the contours of what is labelled on it.

    Args:
        image: (C, Y, X), C is 1 or 3.
        layers: a later one is drawn over an earlier one.
        window: intensities shown black and white; None for the slice's own percentiles.
        size: width and height in pixels, see `display_size`.
    """
    low, high = window or np.percentile(image, _PERCENTILES)
    grey = (windowed(image, low, high) * 255).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(grey, (3, *image.shape[1:])).transpose(1, 2, 0).copy())
    canvas = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).copy()
    for labels, colours in layers:
        drawn = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        border = contours(drawn)
        canvas[border] = np.array(colours, np.uint8)[(drawn[border].astype(np.intp) - 1) % len(colours)]
    return Image.fromarray(canvas)


def _with_captions(
    panels: Sequence[Image.Image], titles: Sequence[str], classes: Sequence[str], pixel_mm: float | None
) -> Image.Image:
    """The panels from left to right, and below them their titles, the scale and the legend."""
    font = ImageFont.load_default(_TEXT_PIXELS)
    width, height = panels[0].size
    entries = [(COLOURS[k % len(COLOURS)], name, _LINE + round(font.getlength(name))) for k, name in enumerate(classes)]
    total = max(len(panels) * width, *(2 * _MARGIN + length for *_, length in entries))
    legend = _flow([length for *_, length in entries], total)
    captions = (_LINE if any(titles) else 0) + (_LINE if pixel_mm else 0)
    sheet = Image.new("RGB", (total, height + captions + _LINE * (1 + max(row for _, row in legend)) + _MARGIN), _BLACK)
    draw = ImageDraw.Draw(sheet)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        sheet.paste(panel, (number * width, 0))
        draw.text((number * width + _MARGIN, height + 3), title, _WHITE, font)
    if pixel_mm:
        _scale(draw, (_MARGIN, height + captions - _LINE // 2), pixel_mm, width * _SCALE_SHARE, font)
    for (colour, name, _), (x, row) in zip(entries, legend, strict=True):
        y = height + captions + row * _LINE + 4
        draw.rectangle((x, y, x + _TEXT_PIXELS, y + _TEXT_PIXELS), colour)
        draw.text((x + _TEXT_PIXELS + 5, y - 2), name, _WHITE, font)
    return sheet


def _flow(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Left edge and row of each entry, as words flow in a paragraph."""
    places, x, row = [], _MARGIN, 0
    for length in lengths:
        if x > _MARGIN and x + length > width - _MARGIN:
            x, row = _MARGIN, row + 1
        places.append((x, row))
        x += length + _MARGIN
    return places


def _scale(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    pixel_mm: float,
    longest: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A bar of 1, 2 or 5 times a power of ten millimetres, and how long it is."""
    most_mm = longest * pixel_mm
    power = 10.0 ** np.floor(np.log10(most_mm))
    length_mm = next(step * power for step in (5, 2, 1) if step * power <= most_mm)
    x, y = place
    end = x + round(length_mm / pixel_mm)
    draw.line((x, y, end, y), _WHITE, 2)
    for edge in (x, end):
        draw.line((edge, y - 4, edge, y + 4), _WHITE, 1)
    draw.text((end + _MARGIN, y - _TEXT_PIXELS // 2 - 2), f"{length_mm:g} mm", _WHITE, font)


__all__ = ["MOST_PANELS", "Layer", "display_size", "draw_overlay", "panel", "png", "shown_slices"]
