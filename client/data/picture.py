"""A small picture of a study: one slice, upright, with the contours of its label.

Up, as radiologists hang images: the front of a body in slices across it, the head in slices along it; the body's right
is on the left. Photographs stay as they are. Windowed by percentiles, because nobody sets a window for 1000 pictures.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.study import Study

# Of the classes in order, again from the first when there are more. They differ for colour-blind people too (Okabe and
# Ito, https://jfly.uni-koeln.de/color/), and from grey.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))
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
        image, label, flips = image[:, index], label[index], _upside_down(study)
    spacing = (study.spacing_mm or (1.0, 1.0))[-2:]
    size = _size(label.shape, spacing)
    grey = Image.fromarray(_grey(np.flip(image.mean(axis=0), flips))).resize(size, Image.Resampling.BOX)
    drawn = np.asarray(Image.fromarray(np.flip(label, flips)).resize(size, Image.Resampling.NEAREST))
    border = _contours(drawn)
    places = _GREYS + (drawn.astype(int) - 1) % len(COLOURS)
    picture = Image.fromarray(np.where(border, places, np.asarray(grey)).astype(np.uint8), "L")
    picture.putpalette([*np.repeat(np.linspace(0, 255, _GREYS).round().astype(int), 3), *np.ravel(COLOURS)])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _grey(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(Y, X) to 0.._GREYS - 1."""
    inside = plane[plane > plane.min()]  # without the padding around many images, which would take most of the window
    low, high = np.percentile(inside if inside.size else plane, _PERCENTILES)
    share = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1)
    return np.asarray(share * (_GREYS - 1)).astype(np.uint8)


def _upside_down(study: Study) -> tuple[int, ...]:
    """In-plane axes (0 rows, 1 columns) to flip so that left, back and feet lie right, down and down."""
    if study.affine is None:
        return ()
    directions = study.affine[:3, 1:3].T  # of a row step and a column step, in LPS
    main = [int(np.abs(direction).argmax()) for direction in directions]
    return tuple(axis for axis in (0, 1) if (directions[axis, main[axis]] < 0) != (main[axis] == 2))


def _size(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int]:
    """Width and height in pixels for rows x columns of the given spacing, with square pixels."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = EDGE_PIXELS / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _contours(drawn: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The labelled pixels with another label above, below, left or right."""
    padded = np.pad(drawn, 1)
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border: NDArray[np.bool_] = (drawn > 0) & np.logical_or.reduce([near != drawn for near in around])
    return border
