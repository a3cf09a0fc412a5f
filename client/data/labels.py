"""A site's own label values and names to the run's classes: 0 background, 1..K in the order of `DataConfig.classes`.

`label_map` in site.toml comes first, then the class's own name (for named segments), then the value 1..K itself.
The target "background" in a label map says that a local label is not wanted. Nothing is ignored silently: a label
that has no place is LABEL_UNKNOWN. Overlaps go to the class named later in the run, so list a lesion after its organ.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import DataConfig
from common.errors import ConfigError, DataError, ErrorCode

BACKGROUND = "background"

_HIGHEST_VALUE = 65535


def class_of_any(names: Sequence[str], data: DataConfig, label_map: Mapping[str, str]) -> int | None:
    """The class of the first of several names that has one; None when none has.

    Case, spaces and underscores do not matter.

    Raises:
        ConfigError: the label map names a class that the run does not have.
    """
    known = {_plain(own): index for index, own in enumerate(data.classes, start=1)}
    known |= {_plain(local): _target(own, data) for local, own in label_map.items()}
    return next((known[_plain(name)] for name in names if _plain(name) in known), None)


def class_of_name(
    name: str, data: DataConfig, label_map: Mapping[str, str], ordinal: int, what: str = "segment"
) -> int:
    """The class of a named segment or ROI; see `class_of_any`.

    Args:
        name: as the label object has it; it is free text, so it enters no message.
        data: names the classes.
        label_map: of the source.
        ordinal: number of the segment, for the message.
        what: what is numbered.

    Raises:
        DataError: LABEL_UNKNOWN.
        ConfigError: the label map names a class that the run does not have.
    """
    found = class_of_any((name,), data, label_map)
    if found is None:
        raise DataError(
            f"{what} {ordinal} is labelled with a name that is no class of this run ({', '.join(data.classes)}). "
            f'Name it in label-map in site.toml, or map it to "{BACKGROUND}".',
            ErrorCode.LABEL_UNKNOWN,
        )
    return found


def map_values(values: NDArray[Any], data: DataConfig, label_map: Mapping[str, str]) -> NDArray[np.uint8]:
    """A label image to classes.

    Args:
        values: (*sp) any number type, whole numbers.
        data: names the classes.
        label_map: of the source; keys are values as text, such as "255".

    Returns:
        (*sp) uint8.

    Raises:
        DataError: LABEL_UNKNOWN, a value has no class.
        ConfigError: a key of the label map is no number, or its class not one of the run.
    """
    if values.size and not (values.min() >= 0 and values.max() <= _HIGHEST_VALUE and (values == np.rint(values)).all()):
        raise DataError(
            f"label values must be whole numbers from 0 to {_HIGHEST_VALUE}. Export the label map again as integers.",
            ErrorCode.LABEL_UNKNOWN,
        )
    whole = values.astype(np.uint8 if values.dtype in (np.bool_, np.uint8) else np.uint16)
    found = [int(value) for value in np.flatnonzero(np.bincount(whole.ravel()))]
    table = _value_table(data, label_map)
    unknown = [value for value in found if value not in table]
    if unknown:
        raise DataError(
            f"the label holds the value(s) {_some(unknown)}; expected {_some(sorted(table))}. "
            f'Name them in label-map in site.toml, or map them to "{BACKGROUND}".',
            ErrorCode.LABEL_UNKNOWN,
        )
    lookup = np.zeros(_HIGHEST_VALUE + 1, np.uint8)
    for value in found:
        lookup[value] = table[value]
    return np.asarray(lookup[whole], np.uint8)


def resample(
    labels: NDArray[np.uint8], affine: NDArray[np.float64], onto: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Bring labels from their own grid to another in the same patient space, by nearest neighbour.

    What the labels' grid does not reach is background.

    Args:
        labels: (z, y, x).
        affine: (4, 4) of the labels, index (z, y, x, 1) -> mm.
        onto: (4, 4) of the image, likewise.
        shape: (Z, Y, X) of the image.

    Returns:
        (Z, Y, X).

    Raises:
        DataError: GEOMETRY_MISMATCH, the grids do not meet, or nothing that is labelled falls on the image.
    """
    try:
        to_labels = np.linalg.inv(affine) @ onto
    except np.linalg.LinAlgError:
        to_labels = np.full((4, 4), np.nan)
    if not np.isfinite(to_labels).all():
        raise _apart("its geometry is corrupt")
    across = to_labels[:3, 1:3] @ np.indices(shape[1:]).reshape(2, -1) + to_labels[:3, 3:]
    edges = np.array(labels.shape)[:, None]
    moved = np.zeros((shape[0], shape[1] * shape[2]), np.uint8)
    meets = False
    for z, plane in enumerate(moved):
        # A centre halfway between two goes to the later one, whatever the last bits of an affine say.
        index = np.floor(across + z * to_labels[:3, :1] + (0.5 + 1e-6))
        inside = ((index >= 0) & (index < edges)).all(axis=0)
        plane[inside] = labels[tuple(index[:, inside].astype(np.intp))]
        meets = meets or bool(inside.any())
    if not meets or (labels.any() and not moved.any()):
        raise _apart("nothing that it labels falls on the image")
    return moved.reshape(shape)


def _apart(why: str) -> DataError:
    return DataError(
        f"the label lies on another grid than its image, and {why}. Resample it to the image.",
        ErrorCode.GEOMETRY_MISMATCH,
    )


def _value_table(data: DataConfig, label_map: Mapping[str, str]) -> dict[int, int]:
    if not label_map:
        return {value: value for value in range(len(data.classes) + 1)}
    table = {0: 0}
    for local, name in label_map.items():
        if not local.isdecimal():
            raise ConfigError(
                f"label-map key {local!r} is no label value; its labels are numbers. Write a number, such as 1."
            )
        table[int(local)] = _target(name, data)
    return table


def _target(name: str, data: DataConfig) -> int:
    if name == BACKGROUND:
        return 0
    if name in data.classes:
        return data.classes.index(name) + 1
    near = difflib.get_close_matches(name, data.classes, n=1)
    raise ConfigError(
        f"label-map names the class {name!r}, which this run does not have ({', '.join(data.classes)})."
        + (f" Did you mean {near[0]!r}?" if near else f' Correct it, or write "{BACKGROUND}".')
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
