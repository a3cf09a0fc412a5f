"""A small picture of a study: one slice, upright, with the contours of its label.

Windowed by percentiles, because nobody sets a window for 1000 pictures.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.study.drawing import COLOURS, colour_places, outlines, upside_down, windowed
from client.data.study.study import Study

EDGE_PIXELS = 160

_PERCENTILES = (1.0, 99.0)
_GREYS = 250  # of 256 places in the palette; the classes take the others


def thumbnail(study: Study) -> bytes:
    """A PNG whose longer side has EDGE_PIXELS: the slice with the most label, or the middle one when there is none."""
    label = np.zeros(study.image.shape[1:], np.uint8) if study.label is None else study.label
    image, flips = study.image, tuple[int, ...]()
    if label.ndim == 3:
        areas = np.count_nonzero(label, axis=(1, 2))
        index = int(areas.argmax()) if areas.any() else len(areas) // 2
        image, label, flips = image[:, index], label[index], upside_down(study)
    spacing = (study.spacing_mm or (1.0, 1.0))[-2:]
    size = _size(label.shape, spacing)
    grey = Image.fromarray(_grey(np.flip(image.mean(axis=0), flips))).resize(size, Image.Resampling.BOX)
    drawn = np.asarray(Image.fromarray(np.flip(label, flips)).resize(size, Image.Resampling.NEAREST))
    lines = outlines(drawn, overlap=study.overlap)
    pixels = np.where(lines > 0, _GREYS + colour_places(lines), np.asarray(grey))
    picture = Image.fromarray(pixels.astype(np.uint8), "L")
    picture.putpalette([*np.repeat(np.linspace(0, 255, _GREYS).round().astype(int), 3), *np.ravel(COLOURS)])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _grey(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(Y, X) to 0.._GREYS - 1."""
    plane = np.where(np.isfinite(plane), plane, np.min(plane, where=np.isfinite(plane), initial=np.inf))
    plane = np.where(np.isfinite(plane), plane, 0)  # a plane without any number
    inside = plane[plane > plane.min()]  # without the padding around many images, which would take most of the window
    low, high = np.percentile(inside if inside.size else plane, _PERCENTILES)
    return (windowed(plane, low, high) * (_GREYS - 1)).astype(np.uint8)


def _size(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int]:
    """Width and height in pixels for rows x columns of the given spacing, with square pixels."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = EDGE_PIXELS / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


__all__ = ["EDGE_PIXELS", "thumbnail"]
