"""Regions that a label marks, each cut out as an image of its own, for runs that classify regions.

A region is what hangs together of one class: side by side, one below the other, or from slice to slice. It gives one
window, centred on its bounding box; for a 2D model in the slice that shows most of it. Beyond the image is 0. A
held-out region is exactly what the network sees, the patch of the run; one for training is twice as large along each
axis, so that crops around its centre can be moved, turned and scaled. A study whose windows would fill the memory, as
of a mask full of specks, is set aside before one is cut.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from common.config import RunConfig
from common.errors import DataError, ErrorCode

# Values that the windows of a study may hold together, at 4 bytes each: 128 regions of a patch of 64 x 64 x 64.
_MOST_VALUES = 2**28


def cut_regions(images: Tensor, labels: Tensor, run: RunConfig, *, held_out: bool) -> tuple[Tensor, Tensor]:
    """The windows of a study.

    Args:
        images: (S, C, *sp) float32.
        labels: (S, *sp) uint8, with a region at least.
        run: the size of its patch, which is the window's or half of it.
        held_out: whether the windows are for evaluation.

    Returns:
        (R, C, *window) float32, and (R, *window) uint8 with the class of the region at every voxel.
    """
    window = [edge if held_out else 2 * edge for edge in run.training.patch_size]
    found = list(_regions(labels))
    cuts = [_cut(images[item], [middle - edge // 2 for middle, edge in zip(centre, window, strict=True)], window)
            for _, item, centre in found]  # fmt: skip
    classes = torch.tensor([number for number, _, _ in found], dtype=torch.uint8)
    return torch.stack(cuts), classes.view(-1, *[1] * len(window)).expand(-1, *window)


def too_many(images: Tensor, labels: Tensor, run: RunConfig) -> DataError | None:
    """Why a study's regions cannot be cut out; None: they can. The same for training and evaluation.

    Args:
        images: (S, C, *sp).
        labels: (S, *sp) uint8.
        run: the size of its patch.
    """
    from scipy import ndimage  # noqa: PLC0415 - heavy

    voxels = labels.numpy()
    numbers = np.unique(voxels[voxels > 0])
    count = sum(ndimage.label(voxels == number, np.ones((3,) * voxels.ndim))[1] for number in numbers)
    most = _MOST_VALUES // (images.shape[1] * math.prod(2 * edge for edge in run.training.patch_size))
    if count <= most:
        return None
    return DataError(
        f"the label marks {count} regions, and of this run's patch-size {most} fit into memory. Take specks out of the "
        "label, or ask for a run with a smaller patch.",
        ErrorCode.UNSUPPORTED,
    )


def centres(labels: Tensor) -> Tensor:
    """Flat indices of the middle voxel of each window (R, *window)."""
    size = math.prod(labels.shape[1:])
    middle = np.ravel_multi_index([edge // 2 for edge in labels.shape[1:]], labels.shape[1:])
    return torch.arange(len(labels)) * size + int(middle)


def _regions(labels: Tensor) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Class, index into S and centre of each region, by class and place."""
    from scipy import ndimage  # noqa: PLC0415 - heavy

    voxels = labels.numpy()
    for number in np.unique(voxels[voxels > 0]).tolist():
        marked, count = ndimage.label(voxels == number, np.ones((3,) * voxels.ndim))
        for region, box in enumerate(ndimage.find_objects(marked, count), start=1):
            slices = (marked[box] == region).reshape(box[0].stop - box[0].start, -1).sum(1)
            item = box[0].start + int(slices.argmax())
            if len(slices) > 1:  # of several slices the box within that one
                box = (box[0], *ndimage.find_objects((marked[item] == region).astype(np.uint8))[0])  # noqa: PLW2901
            yield int(number), item, tuple((part.start + part.stop) // 2 for part in box[1:])


def _cut(image: Tensor, starts: Sequence[int], window: Sequence[int]) -> Tensor:
    """(C, *sp) to (C, *window); 0 beyond the image."""
    padding: list[int] = []
    for axis, (start, edge) in enumerate(zip(starts, window, strict=True), start=1):
        low, high = max(start, 0), min(start + edge, image.shape[axis])
        image = image.narrow(axis, low, high - low)
        padding = [low - start, start + edge - high, *padding]
    return functional.pad(image, padding)


__all__ = ["centres", "cut_regions", "too_many"]
