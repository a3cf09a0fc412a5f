"""A small picture of a study with the label's contour and the model's: the slice where the two differ most."""

import numpy as np
from numpy.typing import NDArray

from client.data.study.drawing import upside_down
from client.data.study.study import Study
from client.predict.overlay import display_size, panel, png

LABEL_COLOUR, MODEL_COLOUR = (0, 158, 115), (213, 60, 40)  # green, red
PIXELS = 280  # of the longer edge, at most


def draw(study: Study, found: NDArray[np.uint8] | None) -> bytes:
    """A PNG of one slice. Label green, model red; classes are not told apart, but their borders are drawn.

    Args:
        study: with its label, where that is a map.
        found: (*sp) labels on the study's grid; None: an answer of the image as a whole.
    """
    nothing = np.zeros(study.image.shape[1:], np.uint8)
    truth = nothing if study.label is None else study.label
    found = truth if found is None else found
    image = study.image
    if truth.ndim == 3:
        at, flips = _slice(found, truth), upside_down(study)
        image = np.flip(image[:, at], tuple(axis + 1 for axis in flips))
        found, truth = np.flip(found[at], flips), np.flip(truth[at], flips)
    spacing = study.spacing_mm[-2:] if study.spacing_mm else (1.0, 1.0)
    width, height = display_size(truth.shape, spacing)
    scale = min(1.0, PIXELS / max(width, height))
    layers = [(truth, (LABEL_COLOUR,)), (found, (MODEL_COLOUR,))]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return png(panel(image, layers, None, size))


def _slice(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> int:
    """Where most voxels differ; where none does, with the most label; where there is none, in the middle."""
    for wrong in (found != truth, truth > 0):
        counts = np.count_nonzero(wrong, axis=(1, 2))
        if counts.any():
            return int(counts.argmax())
    return len(truth) // 2


__all__ = ["LABEL_COLOUR", "MODEL_COLOUR", "draw"]
