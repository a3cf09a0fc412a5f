"""NIfTI volumes with a label map, paired by file name.

NIfTI indexes (i, j, k) and counts mm in RAS; a study indexes (z, y, x) = (k, j, i) and counts in LPS, as DICOM does.
A label map on another grid is resampled when the headers of both name the same space: the patient (sform or qform
codes 1 and 2), or the same atlas. `write_nifti` is the way back. Source: https://nifti.nimh.nih.gov/nifti-1
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.data.labels import map_values, resample
from client.data.pairs import find_pairs
from client.data.study import Found, Reference, Study, parsing
from common.config import DataConfig, SourceConfig
from common.errors import DataError, ErrorCode

SUFFIXES = (".nii", ".nii.gz")

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSED = np.eye(4)[[2, 1, 0, 3]]
# Label and image grids are the same when no corner of the volume is further apart than this share of a voxel.
_GRID_TOLERANCE = 0.1
# xform codes: 1 scanner, 2 aligned to another image of the patient, 3 and up atlases; 0 says nothing.
_PATIENT_CODES = (1, 2)


def find(source: SourceConfig, folder: Path) -> Found:
    """The volumes of a source.

    Raises:
        ConfigError: a sub-folder is missing.
    """
    return find_pairs("nifti", source, folder, SUFFIXES)


def read(reference: Reference, data: DataConfig | None) -> Study:
    """Read a volume, and its label map when the run's data contract is given.

    Raises:
        DataError: UNREADABLE, NO_LABEL, GEOMETRY_MISMATCH, LABEL_UNKNOWN or UNSUPPORTED.
    """
    path = reference.images[0]
    with parsing("NIfTI file"):
        voxels, affine, space = _load(path)
    label = None if data is None else _label(reference, voxels.shape, affine, space, data)
    spacing_mm = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    image = np.ascontiguousarray(voxels, dtype=np.float32)[None]
    return Study(image, label, spacing_mm, affine, "", reference.patient, reference.key, (path,))


def write_nifti(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a (z, y, x) array with its LPS affine."""
    image = nib.Nifti1Image(voxels.transpose(), _LPS @ affine @ _REVERSED)  # type: ignore[no-untyped-call]  # nibabel
    nib.save(image, path)


def _load(path: Path) -> tuple[NDArray[Any], NDArray[np.float64], int]:
    """(z, y, x) voxels, scaled as the header says, their affine, and the code of its space: 0 unknown, 1 patient."""
    file: Any = nib.load(path)  # nibabel types the base class only
    # No get_fdata: it makes float64 of everything. Whole numbers without scaling stay whole.
    voxels = np.asanyarray(file.dataobj)
    voxels = voxels.reshape(voxels.shape + (1,) * (3 - voxels.ndim))
    if set(voxels.shape[3:]) - {1} or voxels.dtype.kind not in "buif":
        raise DataError(
            f"the NIfTI file holds {voxels.shape} voxels of type {voxels.dtype}; expected one volume of plain numbers. "
            "Export each phase or channel to a file.",
            ErrorCode.UNSUPPORTED,
        )
    affine = _LPS @ np.asarray(file.affine, np.float64) @ _REVERSED
    code = int(file.header["sform_code"]) or int(file.header["qform_code"])
    return voxels.reshape(voxels.shape[:3]).transpose(), affine, 1 if code in _PATIENT_CODES else code


def _label(
    reference: Reference, shape: tuple[int, ...], affine: NDArray[np.float64], space: int, data: DataConfig
) -> NDArray[np.uint8]:
    if not reference.labels:
        raise DataError(
            "the volume has no label map. Add it under the same file name, or take the volume out.", ErrorCode.NO_LABEL
        )
    with parsing("label map"):
        values, label_affine, label_space = _load(reference.labels[0])
    label = map_values(np.ascontiguousarray(values), data, reference.label_map)
    if values.shape == shape and _corner_distance(affine, label_affine, shape) <= _GRID_TOLERANCE:
        return label
    if space != label_space or not space:
        raise DataError(
            f"the label map has another grid than the image: {values.shape} voxels where the image has {shape}, or "
            "another place, and their headers name no common space. Resample it to the image.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return resample(label, label_affine, affine, shape)


def _corner_distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance between the two grids' corners, in voxels of the first."""
    corners = np.array([[z, y, x, 1] for z in (0, shape[0]) for y in (0, shape[1]) for x in (0, shape[2])]).T
    voxel = np.linalg.norm(first[:3, :3], axis=0).min()
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max() / max(voxel, 1e-9))
