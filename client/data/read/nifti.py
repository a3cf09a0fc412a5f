"""NIfTI volumes with a label map, paired by file name.

NIfTI indexes (i, j, k) and counts mm in RAS; a study indexes (z, y, x) = (k, j, i) and counts in LPS, as DICOM does.
A label map on another grid is resampled when the headers of both name the same space: the patient (sform or qform
codes 1 and 2), or the same atlas. Of sform and qform the sform counts, as in nibabel; when both name the same space and
put the volume at different places in it, nobody knows which is right, and the file is refused. Likewise a label map of
the image's size that its header puts elsewhere: it may have been drawn on these voxels, and lost its header. Lengths
are in the header's unit; where it names none they are mm. An image of several files has a channel from each, and so
has one of several volumes, as the Medical Segmentation Decathlon keeps them.
Source: https://nifti.nimh.nih.gov/nifti-1
"""

import gzip
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.data.read.pairs import find_pairs, lacking
from client.data.study.label_checks import check_not_the_image, doubtful
from client.data.study.label_grid import resample
from client.data.study.labels import Naming
from client.data.study.pulse import watched
from client.data.study.study import MOST_VALUES, Found, Reference, Study, parsing
from common.config import SourceConfig
from common.errors import DataError, ErrorCode

SUFFIXES = (".nii", ".nii.gz")

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSED = np.eye(4)[[2, 1, 0, 3]]
# Label and image grids are the same when no corner of the volume is further apart than this share of a voxel.
_GRID_TOLERANCE = 0.1
# xform codes: 1 scanner, 2 aligned to another image of the patient, 3 and up atlases; 0 says nothing.
_PATIENT_CODES = (1, 2)
# Unit of length, as nibabel names xyzt_units -> mm.
_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
# Size of the header -> type and place of the number that says where the voxels begin (NIfTI-1, NIfTI-2).
_OFFSETS = {348: ("f", 108), 540: ("q", 168)}
_START = 176
_LARGEST_OFFSET = 64 * 2**20
# Volumes in one file that may be channels of an image; more are phases of a time series.
_MOST_CHANNELS = 8


def find(source: SourceConfig, folder: Path) -> Found:
    """The volumes of a source.

    Raises:
        ConfigError: a sub-folder is missing.
    """
    return find_pairs("nifti", source, folder, SUFFIXES)


def read(reference: Reference, naming: Naming | None) -> Study:
    """Read a volume, and its label map when its classes are wanted.

    Raises:
        DataError: UNREADABLE, NO_LABEL, GEOMETRY_MISMATCH, LABEL_UNKNOWN, LABEL_DOUBTFUL or UNSUPPORTED.
    """
    with parsing("NIfTI file"):
        first, *others = [one for path in watched(reference.images) for one in _volumes(path, _MOST_CHANNELS)]
    if reference.channel is not None:
        if problem := lacking(reference.channel, 1 + len(others)):
            raise problem
        first, others = [first, *others][reference.channel], []
    for one in others:
        if one.voxels.shape != first.voxels.shape or _corner_distance(first, one) > _GRID_TOLERANCE:
            raise DataError(
                "the channels of this image lie on different grids. Resample them to the first.",
                ErrorCode.GEOMETRY_MISMATCH,
            )
    label = None if naming is None else _label(reference, first, naming)
    spacing_mm = tuple(float(length) for length in np.linalg.norm(first.affine[:3, :3], axis=0))
    channels = [one.voxels for one in (first, *others)]
    image = np.empty((len(channels), *first.voxels.shape), np.float32)
    for channel, voxels in zip(image, channels, strict=True):
        channel[:] = voxels
    return Study(image, label, spacing_mm, first.affine, "", reference.patient, reference.key, reference.images[:1])


def label_on(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64], naming: Naming) -> NDArray[np.uint8]:
    """A label map in the patient's space on an image of another format.

    Args:
        path: of the label map.
        shape: (Z, Y, X) of the image.
        affine: (4, 4) of the image, index (z, y, x, 1) -> LPS mm.
        naming: local names -> classes.

    Raises:
        DataError: UNREADABLE, GEOMETRY_MISMATCH, LABEL_UNKNOWN or UNSUPPORTED.
    """
    label = _load(path)
    if label.space not in _PATIENT_CODES:
        raise DataError(
            "the label map's header does not say that it lies in the patient's space, so nobody knows where on the "
            "images it belongs. Write it with sform or qform code 1.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return resample(naming.numbers(np.ascontiguousarray(label.voxels)), label.affine, affine, shape, naming)


@dataclass(frozen=True, eq=False)
class _Volume:
    """voxels: (z, y, x), scaled as the header says. affine: to LPS mm. space: its code, 0 unknown, 1 patient."""

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    space: int

    @property
    def has_no_place(self) -> bool:
        """Whether the affine is the identity: what programs write who were given none."""
        return bool((self.affine == _LPS @ _REVERSED).all())


def _load(path: Path) -> _Volume:
    (one,) = _volumes(path, 1)
    return one


def _volumes(path: Path, most: int) -> list[_Volume]:
    """The volumes of a file, at most so many."""
    _check_start(path)
    file: Any = nib.load(path)  # nibabel types the base class only
    shape, kind = tuple(file.shape) + (1,) * (3 - len(file.shape)), file.get_data_dtype()
    count = math.prod(shape[3:])
    if not 1 <= count <= most or kind.kind not in "buif":
        expected = "one volume" if most == 1 else f"one volume, or at most {most} as channels,"
        raise DataError(
            f"the NIfTI file holds {shape} voxels of type {kind}; expected {expected} of plain numbers. "
            "Export each phase or channel to a file.",
            ErrorCode.UNSUPPORTED,
        )
    if math.prod(shape) > MOST_VALUES:
        raise _too_large(f"{math.prod(shape)} voxels")
    space = _space(file.header, shape[:3])
    # No get_fdata: it makes float64 of everything. Whole numbers without scaling stay whole.
    voxels = np.asanyarray(file.dataobj).reshape((*shape[:3], count))
    affine = _LPS @ np.asarray(file.affine, np.float64) @ _REVERSED
    affine[:3] *= _MM.get(file.header.get_xyzt_units()[0], 1.0)
    return [_Volume(voxels[..., number].transpose(), affine, space) for number in range(count)]


def _check_start(path: Path) -> None:
    """Refuse a file that says its voxels begin far off: all that lies before them is unpacked into memory."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        start = file.read(_START)
    for order in "<>":
        size = struct.unpack_from(f"{order}i", start)[0]
        if size in _OFFSETS:
            form, place = _OFFSETS[size]
            if not struct.unpack_from(order + form, start, place)[0] <= _LARGEST_OFFSET:
                raise _too_large(f"voxels that begin behind the first {_LARGEST_OFFSET // 2**20} MiB")


def _space(header: Any, shape: tuple[int, ...]) -> int:
    """The code of the space that the voxels lie in."""
    codes = (int(header["sform_code"]), int(header["qform_code"]))
    sform, qform = (_PATIENT_CODES[0] if code in _PATIENT_CODES else code for code in codes)
    if sform == qform != 0 and not _distance(header.get_sform(), header.get_qform(), shape) <= 1:
        raise DataError(
            "the header places the volume twice (sform and qform), more than a voxel apart. Write it again with one of "
            "them.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return sform or qform


def _too_large(what: str) -> DataError:
    return DataError(
        f"the NIfTI file announces {what}, more than anything needs. Export it again, or take it out.",
        ErrorCode.OUT_OF_MEMORY,
    )


def _label(reference: Reference, image: _Volume, naming: Naming) -> NDArray[np.uint8]:
    if not reference.labels:
        raise DataError(
            "the volume has no label map. Add it under the same file name, or take the volume out.", ErrorCode.NO_LABEL
        )
    checked = reference.labels_checked
    if not reference.label_names:
        return _drawn(reference.labels[0], image, naming, naming.numbers, checked=checked)
    named = enumerate(zip(watched(reference.labels), reference.label_names, strict=True), start=1)
    parts = []
    for ordinal, (path, name) in named:
        of_mask = partial(naming.of_mask, name=name, ordinal=ordinal, checked=checked)
        parts.append(_drawn(path, image, naming, of_mask, checked=checked))
    return naming.together(parts, checked=checked)


def _drawn(
    path: Path,
    image: _Volume,
    naming: Naming,
    numbers_of: Callable[[NDArray[Any]], NDArray[np.uint8]],
    *,
    checked: bool,
) -> NDArray[np.uint8]:
    """A label map on the image's grid; numbers_of: what its values are."""
    with parsing("label map"):
        label = _load(path)
    check_not_the_image(label.voxels, image.voxels)
    numbers = numbers_of(np.ascontiguousarray(label.voxels))
    shape = image.voxels.shape
    if label.voxels.shape == shape and _corner_distance(image, label) <= _GRID_TOLERANCE:
        return numbers
    if image.space != label.space or not image.space:
        raise DataError(
            f"the label map has another grid than the image: {label.voxels.shape} voxels where the image has {shape}, "
            "or another place, and their headers name no common space. Resample it to the image.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    if not checked:
        _check_place(image, label)
    return resample(numbers, label.affine, image.affine, shape, naming)


def _check_place(image: _Volume, label: _Volume) -> None:
    """Ask where the header of a label map is likely to be wrong: it was drawn on the voxels, and written without it."""
    if image.has_no_place != label.has_no_place:
        which = "label map's" if label.has_no_place else "image's"
        raise doubtful(
            f"the {which} header has no place of its own (its affine is the identity), and the other's has; by their "
            "headers the label lies elsewhere than where it was drawn.",
            "Write both with the image's header",
        )
    if label.voxels.shape == image.voxels.shape and not _same_box(image, label):
        raise doubtful(
            "the label map has the image's size, and its header puts it elsewhere; was it drawn on these voxels and "
            "written with another header?",
            "Write it with the image's header",
        )


def _same_box(first: _Volume, second: _Volume) -> bool:
    """Whether two grids fill the same part of space, in whatever order of axes."""
    corners, others = ((_corners(one.voxels.shape, -0.5).T @ one.affine[:3].T) for one in (first, second))
    apart = np.linalg.norm(corners[:, None] - others[None], axis=2)
    voxel = max(float(np.linalg.norm(first.affine[:3, :3], axis=0).min()), 1e-9)
    return bool(apart.min(axis=1).max() <= _GRID_TOLERANCE * voxel)


def _corner_distance(first: _Volume, second: _Volume) -> float:
    """Largest distance between the two grids' corners, in voxels of the first."""
    return _distance(first.affine, second.affine, first.voxels.shape)


def _distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    voxel = np.linalg.norm(first[:3, :3], axis=0).min()
    return float(np.linalg.norm(((first - second) @ _corners(shape))[:3], axis=0).max() / max(voxel, 1e-9))


def _corners(shape: tuple[int, ...], first: float = 0.0) -> NDArray[np.float64]:
    """(4, 8) indices of the corners of a grid, from `first` to `first` + its edges."""
    ends = [(first, first + edge) for edge in shape[:3]]
    return np.array([[z, y, x, 1] for z in ends[0] for y in ends[1] for x in ends[2]], np.float64).T
