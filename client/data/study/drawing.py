"""What every picture of a study shares: the way up, the window, the colours of the classes and their contours.

Up, as radiologists hang images: the front of a body in slices across it, the head in slices along it; the body's right
is on the left. Photographs stay as they are. No torch here: the processes that parse files draw too.
"""

import numpy as np
from numpy.typing import NDArray

from client.data.study.study import Study
from common import labelmap

# Of the classes in order, again from the first when there are more. They differ for colour-blind people too (Okabe and
# Ito, https://jfly.uni-koeln.de/color/), and from grey.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))


def upside_down(study: Study) -> tuple[int, ...]:
    """In-plane axes (0 rows, 1 columns) to flip so that left, back and feet lie right, down and down."""
    if study.affine is None:
        return ()
    directions = study.affine[:3, 1:3].T  # of a row step and a column step, in LPS
    main = [int(np.abs(direction).argmax()) for direction in directions]
    return tuple(axis for axis in (0, 1) if (directions[axis, main[axis]] < 0) != (main[axis] == 2))


def windowed(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Intensities from black (0) at `low` to white (1) at `high`."""
    return np.asarray(np.clip((image - low) / max(float(high - low), 1e-6), 0, 1))


def contours(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The labelled pixels of (Y, X) with another label, or the edge of the picture, above, below, left or right."""
    padded = np.pad(labels, 1)
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border: NDArray[np.bool_] = (labels > 0) & np.logical_or.reduce([near != labels for near in around])
    return border


def outlines(labels: NDArray[np.uint8], *, overlap: bool) -> NDArray[np.uint8]:
    """(Y, X): the class whose contour a pixel is on, 0 for none. Of classes that overlap each has a contour of its own,
    and where contours meet the later class is drawn.
    """
    if not overlap:
        return labels * contours(labels)
    drawn = np.zeros_like(labels)
    for number in range(1, 1 + labelmap.MOST_OVERLAPPING):
        drawn[contours(labelmap.marks(labels, number, overlap=True).astype(np.uint8))] = number
    return drawn


def colour_places(labels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The place in COLOURS of each label from 1 on; of 0 it means nothing."""
    return (labels.astype(np.intp) - 1) % len(COLOURS)


__all__ = ["COLOURS", "colour_places", "contours", "outlines", "upside_down", "windowed"]
