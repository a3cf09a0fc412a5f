"""Images on the grid that a model was trained on, and its labels back, as in training; MONAI has no such transform.

Grids are aligned at their outer edges. Images are resampled linearly with anti-aliasing, in the plane and then along z;
labels on their way back by nearest neighbour. Convention: arrays are (C, x, y, z) or (C, x, y), as MONAI loads them.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from torch.nn import functional


class Resampled(MapTransform, InvertibleTransform):
    """To a spacing, or to a number of rows.

    Args:
        keys: of the images in an item.
        spacing_mm: wanted, of the axes (x, y, z), or of (x, y) alone; None: `rows` says it.
        rows: wanted along y, keeping the aspect ratio.
    """

    def __init__(self, keys: Sequence[str] | str, spacing_mm: Sequence[float] | None = None, rows: int | None = None):
        super().__init__(keys)
        self.spacing_mm, self.rows = spacing_mm, rows

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample the images of an item."""
        item = dict(data)
        for key in self.key_iterator(item):
            image: MetaTensor = item[key]
            old = list(image.shape[1:])
            new = self._size(old, image.pixdim)
            resized = _linear(image.as_tensor(), new)
            scaled = torch.diag(torch.tensor([*(o / n for o, n in zip(old, new, strict=True)), 1.0]))
            scaled[:-1, -1] = torch.tensor([(o / n - 1) / 2 for o, n in zip(old, new, strict=True)])
            affine = image.affine
            step = torch.eye(len(affine), dtype=affine.dtype)
            axes = [*range(len(old)), len(affine) - 1]
            step[torch.tensor(axes)[:, None], torch.tensor(axes)] = scaled.to(affine.dtype)
            out = MetaTensor(
                resized, affine=affine @ step, meta=image.meta, applied_operations=image.applied_operations
            )
            self.push_transform(out, orig_size=tuple(old), extra_info={"affine": affine})  # type: ignore[no-untyped-call]  # MONAI's
            item[key] = out
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Labels back on the grid that `__call__` found."""
        item = dict(data)
        for key in self.key_iterator(item):
            labels: MetaTensor = item[key]
            said = self.pop_transform(labels)
            back = labels.as_tensor()
            for axis, wanted in enumerate(said["orig_size"], start=1):
                size = back.shape[axis]
                if size != wanted:
                    # Voxel i of n takes the voxel that holds the centre (i + 1/2) / n.
                    back = back.index_select(axis, (2 * torch.arange(wanted) + 1) * size // (2 * wanted))
            item[key] = MetaTensor(
                back,
                affine=said["extra_info"]["affine"],
                meta=labels.meta,
                applied_operations=labels.applied_operations,
            )
        return item

    def _size(self, old: list[int], spacing_mm: Any) -> list[int]:
        new = list(old)
        if self.rows is not None:
            new[1], new[0] = self.rows, max(1, round(old[0] * self.rows / old[1]))
        for axis, wanted in enumerate(self.spacing_mm or ()):
            new[axis] = max(1, round(old[axis] * float(spacing_mm[axis]) / wanted))
        return new


def _linear(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(C, x, y) or (C, x, y, z) on another grid."""
    if list(image.shape[1:]) == list(size):
        return image
    # As in training: (C, z, y, x).
    turned = image.permute(0, *range(image.ndim - 1, 0, -1)).contiguous()
    wanted = list(reversed(size))
    planes = turned.reshape(1, -1, *turned.shape[-2:])
    if list(planes.shape[-2:]) != wanted[-2:]:
        planes = _interpolated(planes, wanted[-2:])
    turned = planes.reshape(*turned.shape[:-2], *wanted[-2:])
    if list(turned.shape[1:]) != wanted:
        columns = turned.reshape(1, turned.shape[0], turned.shape[1], -1)
        turned = _interpolated(columns, [wanted[0], columns.shape[-1]]).reshape(turned.shape[0], *wanted)
    return turned.permute(0, *range(turned.ndim - 1, 0, -1)).contiguous()


def _interpolated(planes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return functional.interpolate(planes, size=list(size), mode="bilinear", antialias=True, align_corners=False)


__all__ = ["Resampled"]
