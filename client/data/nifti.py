"""NIfTI volumes with a label map, paired by file name.

NIfTI indexes (i, j, k) and counts mm in RAS; a study indexes (z, y, x) = (k, j, i) and counts in LPS, as DICOM does.
A label map on another grid is resampled when the headers of both name the same space: the patient (sform or qform
codes 1 and 2), or the same atlas. Of sform and qform the sform counts, as in nibabel; when both name the same space and
put the volume at different places in it, nobody knows which is right, and the file is refused. `write_nifti` is the way
back. Source: https://nifti.nimh.nih.gov/nifti-1
"""

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.data.dicom_pixels import MOST_VALUES
from client.data.labels import Naming, resample
from client.data.pairs import find_pairs
from client.data.study import Found, Reference, Study, parsing
from common.config import SourceConfig
from common.errors import DataError, ErrorCode

SUFFIXES = (".nii", ".nii.gz")

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSED = np.eye(4)[[2, 1, 0, 3]]
# Label and image grids are the same when no corner of the volume is further apart than this share of a voxel.
_GRID_TOLERANCE = 0.1
# xform codes: 1 scanner, 2 aligned to another image of the patient, 3 and up atlases; 0 says nothing.
_PATIENT_CODES = (1, 2)
# Size of the header -> type and place of the number that says where the voxels begin (NIfTI-1, NIfTI-2).
_OFFSETS = {348: ("f", 108), 540: ("q", 168)}
_START = 176
_LARGEST_OFFSET = 64 * 2**20


def find(source: SourceConfig, folder: Path) -> Found:
    """The volumes of a source.

    Raises:
        ConfigError: a sub-folder is missing.
    """
    return find_pairs("nifti", source, folder, SUFFIXES)


def read(reference: Reference, naming: Naming | None) -> Study:
    """Read a volume, and its label map when its classes are wanted.

    Raises:
        DataError: UNREADABLE, NO_LABEL, GEOMETRY_MISMATCH, LABEL_UNKNOWN or UNSUPPORTED.
    """
    path = reference.images[0]
    with parsing("NIfTI file"):
        voxels, affine, space = _load(path)
    label = None if naming is None else _label(reference, voxels.shape, affine, space, naming)
    spacing_mm = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    image = np.ascontiguousarray(voxels, dtype=np.float32)[None]
    return Study(image, label, spacing_mm, affine, "", reference.patient, reference.key, (path,))


def write_nifti(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a (z, y, x) array with its LPS affine."""
    image = nib.Nifti1Image(voxels.transpose(), _LPS @ affine @ _REVERSED)  # type: ignore[no-untyped-call]  # nibabel
    nib.save(image, path)


def _load(path: Path) -> tuple[NDArray[Any], NDArray[np.float64], int]:
    """(z, y, x) voxels, scaled as the header says, their affine, and the code of its space: 0 unknown, 1 patient."""
    _check_start(path)
    file: Any = nib.load(path)  # nibabel types the base class only
    shape, kind = tuple(file.shape) + (1,) * (3 - len(file.shape)), file.get_data_dtype()
    if set(shape[3:]) - {1} or kind.kind not in "buif":
        raise DataError(
            f"the NIfTI file holds {shape} voxels of type {kind}; expected one volume of plain numbers. "
            "Export each phase or channel to a file.",
            ErrorCode.UNSUPPORTED,
        )
    if math.prod(shape) > MOST_VALUES:
        raise _too_large(f"{math.prod(shape)} voxels")
    space = _space(file.header, shape[:3])
    # No get_fdata: it makes float64 of everything. Whole numbers without scaling stay whole.
    voxels = np.asanyarray(file.dataobj).reshape(shape[:3])
    return voxels.transpose(), _LPS @ np.asarray(file.affine, np.float64) @ _REVERSED, space


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
    if sform == qform != 0 and not _corner_distance(header.get_sform(), header.get_qform(), shape) <= 1:
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


def _label(
    reference: Reference, shape: tuple[int, ...], affine: NDArray[np.float64], space: int, naming: Naming
) -> NDArray[np.uint8]:
    if not reference.labels:
        raise DataError(
            "the volume has no label map. Add it under the same file name, or take the volume out.", ErrorCode.NO_LABEL
        )
    with parsing("label map"):
        values, label_affine, label_space = _load(reference.labels[0])
    label = naming.numbers(np.ascontiguousarray(values))
    if values.shape == shape and _corner_distance(affine, label_affine, shape) <= _GRID_TOLERANCE:
        return label
    if space != label_space or not space:
        raise DataError(
            f"the label map has another grid than the image: {values.shape} voxels where the image has {shape}, or "
            "another place, and their headers name no common space. Resample it to the image.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return resample(label, label_affine, affine, shape, naming)


def _corner_distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance between the two grids' corners, in voxels of the first."""
    corners = np.array([[z, y, x, 1] for z in (0, shape[0]) for y in (0, shape[1]) for x in (0, shape[2])]).T
    voxel = np.linalg.norm(first[:3, :3], axis=0).min()
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max() / max(voxel, 1e-9))
