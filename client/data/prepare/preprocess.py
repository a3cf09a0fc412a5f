"""The fold over all changes of a study: forward for training, back for a prediction, and over what they refuse.

Which there are, and in what order: `client.data.prepare`. Some follow from what the voxels show, such as a crop; so the
way back is made on the way, and a prediction goes back over that one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.prepare import changes_of
from client.data.study.study import MOST_VOXELS, Study
from common.config import RunConfig
from common.errors import DataError, ErrorCode
from common.preparation import Change, Geometry, Voxels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stage:
    """One change of one study: what there was, and what there is then.

    asked: as the run asks for it. change: as it is on these voxels, see `Change.on`.
    """

    asked: Change
    change: Change
    before: Geometry
    given: Voxels
    after: Geometry
    made: Voxels


@dataclass(frozen=True, eq=False)
class Way:
    """The way back from the preprocessed grid to the study's own.

    changes: in the order in which they were made, each with where the voxels lay before it. shape: (*sp) at the end.
    """

    changes: tuple[tuple[Change, Geometry], ...]
    shape: tuple[int, ...]


class Preprocessed(NamedTuple):
    """Image (C, *sp) float32; label (*sp) uint8, None when the study has none; and the way back for labels."""

    image: "Tensor"
    label: "Tensor | None"
    way: Way


def preprocess(study: Study, run: RunConfig) -> Preprocessed:
    """Prepare a study as the run asks.

    Returns:
        Image, label and the way back. *sp are the axes of the STUDY, (z, y, x) or (y, x), whatever the model;
        `as_samples` turns them into what the network takes.

    Raises:
        DataError: `refusal`, the study does not fit the run; IMPLAUSIBLE, it holds NaN or infinity; LABEL_DOUBTFUL, a
            step would cut its label.
    """
    import torch  # noqa: PLC0415 - heavy

    done = []
    for stage in stages(study, run):
        made, shape = stage.made, stage.after.shape
        done.append((stage.change, stage.before))
    label = None if made.label is None else torch.from_numpy(made.label)
    return Preprocessed(torch.from_numpy(made.image), label, Way(tuple(done), shape))


def stages(study: Study, run: RunConfig) -> Iterator[Stage]:
    """What is made of a study, change by change; see `preprocess`. All that the geometry refuses comes before the first
    voxel is touched.
    """
    for _ in _way(_geometry(study), run):
        pass
    mends = run.preprocessing.missing_values
    inside = ~study.padding if study.padding is not None and mends is not None and mends.padding else None
    geometry, voxels = _geometry(study), Voxels(study.image, study.label, inside, study.overlap)
    for change in changes_of(run):
        exact = change.on(voxels, geometry)
        after = _checked(exact, geometry)
        made = replace(exact.apply(voxels, geometry), overlap=study.overlap)
        yield Stage(change, exact, geometry, voxels, after, made)
        geometry, voxels = after, made


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


def restore(labels: "Tensor | NDArray[np.uint8]", way: Way) -> NDArray[np.uint8]:
    """Bring labels from the preprocessed grid back to exactly the study's own grid.

    Args:
        labels: (*sp) of the preprocessed image; the samples of a 2D model on a series stacked along z.
        way: of the study, as `preprocess` gave it.

    Returns:
        (*sp) uint8 of the study's image.

    Raises:
        ValueError: the labels do not have the shape that `preprocess` gave.
    """
    found = np.asarray(labels if isinstance(labels, np.ndarray) else labels.cpu()).astype(np.uint8)
    if found.shape != way.shape:
        raise ValueError(f"labels have shape {found.shape}; preprocess gave {way.shape}. Stack the samples along z.")
    for change, before in reversed(way.changes):
        found = change.invert(found, before)
    return found


def refusal(geometry: Geometry, run: RunConfig) -> DataError | None:
    """Why no study of this geometry can be prepared for the run; None: it can, as far as its geometry goes."""
    try:
        for _ in _way(geometry, run):
            pass
    except DataError as error:
        return error
    return None


def _way(geometry: Geometry, run: RunConfig) -> Iterator[tuple[Change, Geometry]]:
    """All changes, each with where the voxels lie before it, as far as that is known without them.

    Raises:
        DataError: see `_checked`.
    """
    for change in changes_of(run):
        after = _checked(change, geometry)
        yield change, geometry
        geometry = after


def _checked(change: Change, geometry: Geometry) -> Geometry:
    """Where the voxels lie after a change.

    Raises:
        DataError: it refuses; UNSUPPORTED, it makes more voxels than fit into memory.
    """
    if (problem := change.refuse(geometry)) is not None:
        raise problem
    after = change.after(geometry)
    if after.channels * math.prod(after.shape) > MOST_VOXELS:
        raise DataError(
            f"the run makes more than {MOST_VOXELS / 1e9:.1f} thousand million voxels of this study. Take the study "
            "out, or train with a coarser spacing-mm or fewer rows.",
            ErrorCode.UNSUPPORTED,
        )
    return after


def _geometry(study: Study) -> Geometry:
    return Geometry(study.image.shape[1:], study.image.shape[0], study.spacing_mm, study.affine)


__all__ = ["Preprocessed", "Stage", "Way", "as_samples", "preprocess", "refusal", "restore", "stages"]
