"""The fold over the preparation steps: forward for training, back for a prediction, and over what they refuse.

Which steps there are, and in what order: `client.data.prepare`.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.data.prepare import STEPS, Geometry, Step
from client.data.study.study import MOST_VOXELS, Study
from common.config import RunConfig
from common.errors import DataError, ErrorCode

if TYPE_CHECKING:
    from torch import Tensor


def preprocess(study: Study, run: RunConfig) -> "tuple[Tensor, Tensor | None]":
    """Prepare a study as the run asks.

    Returns:
        Image (C, *sp) float32 and label (*sp) uint8 (None when the study has none). *sp are the axes of the
        STUDY, (z, y, x) or (y, x), whatever the model; `as_samples` turns them into what the network takes.

    Raises:
        DataError: `refusal`, the study does not fit the run; IMPLAUSIBLE, it holds NaN or infinity.
    """
    import torch  # noqa: PLC0415 - heavy

    image, label = study.image, study.label
    for step, before in list(_way(_geometry(study), run)):  # all refusals come before the first voxel
        image, label = step.apply(image, label, before, run)
    return torch.from_numpy(image), None if label is None else torch.from_numpy(label)


def as_samples(volume: "Tensor", dims: int) -> "Tensor":
    """Stack what the network takes, one sample per slice in 2D and one per study in 3D.

    Args:
        volume: image (C, *sp), as `preprocess` gives it.
        dims: axes of the model, 2 or 3.

    Returns:
        (S, C, *sp): with a 2D model S is the number of slices (1 for a photograph), with a 3D model 1.
    """
    if volume.ndim - 1 > dims:
        return volume.movedim(1, 0).contiguous()
    return volume[None]


def restore(labels: "Tensor | NDArray[np.uint8]", study: Study, run: RunConfig) -> NDArray[np.uint8]:
    """Bring labels from the preprocessed grid back to exactly the study's own grid.

    Args:
        labels: (*sp) of the preprocessed image; the samples of a 2D model on a series stacked along z.
        study: the study that was preprocessed.
        run: the run it was preprocessed for.

    Returns:
        (*sp) uint8 of `study.image`.

    Raises:
        ValueError: the labels do not have the shape that `preprocess` gave.
    """
    found = np.asarray(labels if isinstance(labels, np.ndarray) else labels.cpu()).astype(np.uint8)
    way = list(_way(_geometry(study), run))
    expected = way[-1][0].after(way[-1][1], run).shape
    if found.shape != expected:
        raise ValueError(f"labels have shape {found.shape}; preprocess gave {expected}. Stack the samples along z.")
    for step, before in reversed(way):
        found = step.invert(found, before, run)
    return found


def refusal(geometry: Geometry, run: RunConfig) -> DataError | None:
    """Why no study of this geometry can be prepared for the run; None: it can, as far as its geometry goes."""
    try:
        for _ in _way(geometry, run):
            pass
    except DataError as error:
        return error
    return None


def _way(geometry: Geometry, run: RunConfig) -> Iterator[tuple[Step, Geometry]]:
    """The steps that the run asks for, each with where the voxels lie before it.

    Raises:
        DataError: a step refuses; UNSUPPORTED, the run asks for one that this program does not have, or for more voxels
            than fit into memory.
    """
    if lacking := sorted(set(run.preprocessing.steps) - {step.name for step in STEPS}):
        raise DataError(
            f"the run asks for preparation steps that this program does not have: {', '.join(lacking)}. Update "
            "Wardround here, or take them out of run.toml.",
            ErrorCode.UNSUPPORTED,
        )
    for step in STEPS:
        if not (step.always or step.name in run.preprocessing.steps):
            continue
        if (problem := step.refuse(geometry, run)) is not None:
            raise problem
        after = step.after(geometry, run)
        if after.channels * math.prod(after.shape) > MOST_VOXELS:
            raise DataError(
                f"the run makes more than {MOST_VOXELS / 1e9:.1f} thousand million voxels of this study. Set a coarser "
                "spacing-mm or fewer rows in run.toml, or take the study out.",
                ErrorCode.UNSUPPORTED,
            )
        yield step, geometry
        geometry = after


def _geometry(study: Study) -> Geometry:
    return Geometry(study.image.shape[1:], study.image.shape[0], study.spacing_mm, study.affine)


__all__ = ["as_samples", "preprocess", "refusal", "restore"]
