"""All labels of a DICOM series to one volume: any number of segmentations and structure sets.

One that cannot be used sets the whole study aside, with its reason, though another one is good: nobody can tell what it
would have drawn, and a lesion taken for background teaches the wrong thing. One that holds nothing at all says nothing,
and is passed over beside one that does. What a run does not want is dropped by name ("background" in label-map) before
it can be in the way.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from client.data import dicom_seg, rtstruct
from client.data.dicom_seg import Grid
from client.data.dicom_series import STRUCTURE_SET
from client.data.labels import Naming
from client.data.pulse import watched
from client.data.study import parsing
from common.errors import DataError, ErrorCode


def read_labels(paths: Sequence[Path], grid: Grid, naming: Naming, fractional_threshold: float) -> NDArray[np.uint8]:
    """Draw every label of a series; where they overlap, the class with the higher number wins.

    Args:
        paths: segmentations and structure sets, at least one.
        grid: the series.
        naming: local names -> classes.
        fractional_threshold: see `dicom_seg.read_labels`.

    Returns:
        (Z, Y, X) uint8, 0 background, 1..K.

    Raises:
        DataError: NO_LABEL, LABEL_UNKNOWN, GEOMETRY_MISMATCH, UNREADABLE or UNSUPPORTED.
    """
    labels = np.zeros(grid.shape, np.uint8)
    empty: DataError | None = None
    drawn = 0
    for number, path in enumerate(watched(paths), start=1):
        try:
            with parsing("segmentation or structure set"):
                np.maximum(labels, _read(path, grid, naming, fractional_threshold), out=labels)
            drawn += 1
        except DataError as error:
            if error.code is ErrorCode.NO_LABEL:
                empty = error
            elif len(paths) == 1:
                raise
            else:
                raise DataError(
                    f"of the {len(paths)} labels of this series, number {number}: {error}", error.code
                ) from error
    if empty is not None and not drawn:
        raise empty
    return labels


def _read(path: Path, grid: Grid, naming: Naming, fractional_threshold: float) -> NDArray[np.uint8]:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    if header.get("SOPClassUID") == STRUCTURE_SET:
        return rtstruct.read_labels(path, grid, naming)
    return dicom_seg.read_labels(path, grid, naming, fractional_threshold)
