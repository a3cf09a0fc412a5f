"""How many crops a step may take at once, and how large they may be together: what no machine could hold is refused."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

# Of a step, or of one patient. Each is cut, changed and listed by itself before any memory of the network is taken.
Crops = Annotated[int, Field(ge=1, le=65536)]

# Values of a step's crops: 16 GiB in float32. The first level of the smallest network here holds several times as much.
_MOST_VALUES = 2**32
# Of a region's window: 64 MiB, as of a radiograph of 2048 x 2048 or a volume of 128 x 128 x 128 around it.
_MOST_WINDOW = 2**24


def too_large(key: str, crops: int, channels: int, patch_size: Sequence[int]) -> str | None:
    """Why crops of this size cannot be held together; None: they can.

    Args:
        key: that says how many there are, for the sentence.
        crops: how many.
        channels: of an image.
        patch_size: edges in voxels.
    """
    values = crops * channels * math.prod(patch_size)
    if values <= _MOST_VALUES:
        return None
    return (
        f"{key} = {crops} crops of training.patch-size {list(patch_size)} are {values / 2**28:,.0f} GiB before the "
        f"network sees them, at most {_MOST_VALUES >> 28} GiB are allowed: make either smaller"
    )


def window_too_large(channels: int, patch_size: Sequence[int]) -> str | None:
    """Why regions cannot be cut out for patches of this size, twice as large along each axis; None: they can.

    It follows from the run alone, and never from how many regions a site has.
    """
    values = channels * math.prod(2 * edge for edge in patch_size)
    if values <= _MOST_WINDOW:
        return None
    return (
        f"training.patch-size {list(patch_size)} makes of every region a window of {values >> 18:,} MiB, which a site "
        f"keeps for each in memory; at most {_MOST_WINDOW >> 18} MiB are allowed: make it smaller"
    )


__all__ = ["Crops", "too_large", "window_too_large"]
