"""A picture of one step: a slice as it was, and as it is then, with the contours of its label.

The slice with the most label, or the middle one. A step that keeps the image's units is shown through one window on
both sides, so that what changes is the image and not the window. Values that are no numbers are marked.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.study.drawing import COLOURS, colour_places, outlines, windowed
from common.preparation import Geometry, Voxels

EDGE_PIXELS = 280

_GAP = 6
_PERCENTILES = (0.5, 99.5)
_MISSING = COLOURS[4]


def before_and_after(
    given: Voxels,
    before: Geometry,
    made: Voxels,
    after: Geometry,
    *,
    same_units: bool,
    window: tuple[float, float] | None = None,
    edge: int = EDGE_PIXELS,
) -> Image.Image:
    """Two pictures side by side, each `edge` pixels high or wide.

    Args:
        given: the voxels before the step.
        before: where they lie.
        made: the voxels after it.
        after: where those lie.
        same_units: whether both have one unit, and one window.
        window: what is shown black and white after the step; None: as its units say.
        edge: the longer side of each, in pixels.
    """
    usual = window_of(given)
    later = window or (usual if same_units else window_of(made))
    sides = [side(given, before, usual, edge), side(made, after, later, edge)]
    width, height = sum(one.width for one in sides) + _GAP, max(one.height for one in sides)
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    sheet.paste(sides[0], (0, 0))
    sheet.paste(sides[1], (sides[0].width + _GAP, 0))
    return sheet


def side(voxels: Voxels, geometry: Geometry, window: tuple[float, float], edge: int) -> Image.Image:
    """One slice with its contours, upright where the axes are those of the body."""
    plane, label = shown_slice(voxels)
    spacing = (geometry.spacing_mm or (1.0, 1.0))[-2:]
    size = _size(plane.shape[1:], spacing, edge)
    missing = ~np.isfinite(plane).all(axis=0)
    colours = windowed(np.where(missing, window[0], plane), *window) * 255
    if len(colours) != 3:
        colours = np.broadcast_to(colours.mean(axis=0), (3, *plane.shape[1:]))
    pixels = colours.transpose(1, 2, 0).astype(np.uint8)
    pixels[missing] = _MISSING
    shrinks = size[1] < plane.shape[1]
    drawn = Image.fromarray(pixels).resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)
    if label is None:
        return drawn
    marked = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    lines, canvas = outlines(marked, overlap=voxels.overlap), np.array(drawn)
    canvas[lines > 0] = np.array(COLOURS, np.uint8)[colour_places(lines[lines > 0])]
    return Image.fromarray(canvas)


def shown_slice(voxels: Voxels) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """(C, Y, X) and its label (Y, X)."""
    image, label = voxels.image, voxels.label
    if image.ndim == 3:
        return image, label
    areas = np.zeros(image.shape[1], np.intp) if label is None else np.count_nonzero(label, axis=(1, 2))
    index = int(areas.argmax()) if areas.any() else image.shape[1] // 2
    return image[:, index], None if label is None else label[index]


def window_of(voxels: Voxels) -> tuple[float, float]:
    """What is shown black and white: percentiles of the slice's numbers, without the darkest value of all."""
    plane, _ = shown_slice(voxels)
    numbers = plane[np.isfinite(plane)]
    inside = numbers[numbers > numbers.min()] if numbers.size else numbers
    if not inside.size:
        return (0.0, 1.0) if not numbers.size else (float(numbers[0]), float(numbers[0]) + 1)
    low, high = np.percentile(inside, _PERCENTILES)
    return float(low), float(high)


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _size(shape: tuple[int, ...], spacing: tuple[float, ...], edge: int) -> tuple[int, int]:
    """Width and height in pixels, square ones, for rows x columns of a spacing."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = edge / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


__all__ = ["EDGE_PIXELS", "before_and_after", "png", "shown_slice", "side", "window_of"]
