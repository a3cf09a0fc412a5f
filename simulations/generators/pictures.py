"""Pictures with their labels on disk, as a site reads them: one of each for every patient."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.uint8]


def write_pictures(
    folder: Path,
    draw: Callable[[np.random.Generator], tuple[Picture, Picture]],
    *,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `images/0001.png` and `labels/0001.png` and so on, one picture a patient.

    Patient n is the same whatever the count.

    Args:
        folder: receives the two folders.
        draw: gives picture and label.
        count: how many patients.
        seed: all follows from it.
        progress: called with (patients done, count).
    """
    for number in range(1, count + 1):
        drawn = draw(np.random.default_rng([seed, number]))
        for kind, pixels in zip(("images", "labels"), drawn, strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            # Noise hardly compresses; a higher level only takes longer.
            Image.fromarray(pixels).save(folder / kind / f"{number:04}.png", compress_level=1)
        if progress is not None:
            progress(number, count)


__all__ = ["write_pictures"]
