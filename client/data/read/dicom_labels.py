"""All labels of a DICOM series to one volume: any number of segmentations and structure sets, or a NIfTI label map.

One that cannot be used sets the whole study aside, with its reason, though another one is good: nobody can tell what it
would have drawn, and a lesion taken for background teaches the wrong thing. One that holds nothing at all says nothing,
and is passed over beside one that does. What a run does not want is dropped by name ("background" in label-map) before
it can be in the way.

Two files that draw the same thing, by its local name, at the same place and differently are two versions of one label,
or two people's. Their union is nobody's, so the study is set aside until a person has chosen, or said that the union is
meant (`labels-checked`). What lies side by side, or is the same but for its edges, is drawn together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from client.data.dicom.values import with_identity
from client.data.read import dicom_seg, nifti, rtstruct
from client.data.read.dicom_header import STRUCTURE_SET, references_of
from client.data.read.dicom_seg import Grid
from client.data.read.pairs import has_suffix
from client.data.study.label_checks import doubtful
from client.data.study.labels import Naming, check_hidden
from client.data.study.pulse import watched
from client.data.study.study import parsing
from common.errors import DataError, ErrorCode
from common.labelmap import marks

_TAGS = ["SOPClassUID", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"]
# Two drawings of one name are about the same thing from this share of the smaller one on that they have in common,
_IN_COMMON = 0.1
# and are the same from this Dice on.
_SAME_DICE = 0.95


@dataclass(frozen=True, eq=False)
class _Drawing:
    """What one file drew. heard: its local names, with classes; part: (z, y, x), all of it that is no background."""

    heard: frozenset[tuple[str, int]]
    start: tuple[int, ...]
    part: NDArray[np.uint8]


def read_labels(
    paths: Sequence[Path], grid: Grid, naming: Naming, fractional_threshold: float, *, checked: bool = False
) -> NDArray[np.uint8]:
    """Draw every label of a series; where they overlap, the class with the higher number wins, or each stays where the
    run's classes may overlap.

    Args:
        paths: segmentations and structure sets, at least one.
        grid: the series.
        naming: local names -> classes.
        fractional_threshold: see `dicom_seg.read_labels`.
        checked: whether a person has said that versions of one label are to be drawn together.

    Returns:
        (Z, Y, X) uint8, 0 background, else what `Naming.value` says.

    Raises:
        DataError: NO_LABEL, LABEL_UNKNOWN, LABEL_DOUBTFUL, GEOMETRY_MISMATCH, UNREADABLE or UNSUPPORTED.
    """
    labels = np.zeros(grid.shape, np.uint8)
    empty: DataError | None = None
    drawings: list[_Drawing] = []
    for number, path in enumerate(watched(paths), start=1):
        try:
            with parsing("segmentation or structure set"):
                naming.heard.clear()
                volume = _read(path, grid, naming, fractional_threshold)
                naming.draw(labels, volume)
                drawings.append(_drawing(volume, naming))
        except DataError as error:
            if error.code is ErrorCode.NO_LABEL:
                empty = error
            elif len(paths) == 1:
                raise
            else:
                raise DataError(
                    f"of the {len(paths)} labels of this series, number {number}: {error}", error.code
                ) from error
    if empty is not None and not drawings:
        raise empty
    naming.labelling = replace(naming.labelling, files=len(drawings))
    if not checked:
        for first, second in combinations(drawings, 2):
            _check_versions(first, second, len(drawings), overlap=naming.overlap)
        check_hidden(labels, naming)
    return labels


def _drawing(volume: NDArray[np.uint8], naming: Naming) -> _Drawing:
    spans = [np.flatnonzero(volume.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(spans[0]):
        return _Drawing(frozenset(naming.heard), (0, 0, 0), volume[:0])
    box = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return _Drawing(frozenset(naming.heard), tuple(int(span[0]) for span in spans), volume[box].copy())


def _check_versions(first: _Drawing, second: _Drawing, files: int, *, overlap: bool) -> None:
    starts = np.maximum(first.start, second.start)
    ends = np.minimum(*(np.add(one.start, one.part.shape) for one in (first, second)))
    if (ends <= starts).any():
        return
    shared = [
        one.part[tuple(slice(a - s, e - s) for a, e, s in zip(starts, ends, one.start, strict=True))]
        for one in (first, second)
    ]
    for value in {value for _, value in first.heard & second.heard if value}:
        both = int(np.logical_and(*(marks(part, value, overlap=overlap) for part in shared)).sum())
        sizes = [int(marks(one.part, value, overlap=overlap).sum()) for one in (first, second)]
        if both > _IN_COMMON * min(sizes) and 2 * both < _SAME_DICE * sum(sizes):
            raise doubtful(
                f"two of the {files} label files of this series draw the same class at the same place and differently "
                f"({sizes[0]} and {sizes[1]} voxels, {both} in common). Are they two versions?",
                "Keep one of them",
            )


def _read(path: Path, grid: Grid, naming: Naming, fractional_threshold: float) -> NDArray[np.uint8]:
    if has_suffix(path, nifti.SUFFIXES):
        if grid.stack is None:
            raise DataError(
                "a NIfTI label map lies in the patient's space, and this image has no place there. Draw it as a DICOM "
                "segmentation.",
                ErrorCode.GEOMETRY_MISMATCH,
            )
        return nifti.label_on(path, grid.shape, grid.stack.affine, naming)
    header = with_identity(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS)))
    if grid.names and not references_of(header)[0] & grid.names:
        naming.labelling = replace(naming.labelling, by_place=naming.labelling.by_place + 1)
    if header.get("SOPClassUID") == STRUCTURE_SET:
        return rtstruct.read_labels(path, grid, naming)
    return dicom_seg.read_labels(path, grid, naming, fractional_threshold)
