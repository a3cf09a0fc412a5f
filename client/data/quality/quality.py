"""The quality gate: facts about a study that is believable, an error with a code for one that is not.

The limits are wide: what they refuse is not a poor image but a wrong one, such as micrometres written as millimetres, a
series without its rescale slope, or a file of zeros. Spacing and extent are in mm, CT in HU.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.data.study.label_checks import check_label, check_share, holes
from client.data.study.labels import BACKGROUND
from client.data.study.study import MOST_VOXELS, Labelling, Study, no_numbers
from common import labelmap
from common.errors import DataError, ErrorCode

# Along each axis. The finest clinical images (mammograms, fundus, intravascular) are above 0.005 mm, PET and scouts
# below 50 mm; no table moves a body further than 3 m.
SPACING_MM = (0.005, 50.0)
MOST_MM = 3000.0
# A picture narrower than this shows nothing.
FEWEST_PIXELS = 8
# Percentiles kept of the intensities; 0 and 100 are exact.
PERCENTILES = (0.0, 1.0, 50.0, 90.0, 99.0, 100.0)

# HU: air is -1000, fat -100, soft tissue 0 to 100, cortical bone 300 to 2000.
_AIR_HU = -200.0
_DENSE_HU = 900.0
_NARROWEST_HU = 50.0
# Voxels that percentiles are taken from; their sampling error is far below what the limits tell apart.
_SAMPLE = 2**20

StudyType = TypeVar("StudyType")  # what is known of a study that is usable


@dataclass(frozen=True)
class Facts:
    """What a study is like, in plain values; nothing here names a patient, but `voxels` may hold a site's own words.

    modality: as DICOM names it, "" when the source does not say. shape: (z, y, x) or (y, x). spacing_mm: one per axis.
    intensities: at PERCENTILES, in the source's units. voxels: by class, the background first. digest: SHA-256 (hex) of
    the image, the same for the same pixels. labels: label files drawn; resampled, by_place: how many of them, and lost:
    see `Labelling`. holes: the largest share of a class's slices that are empty, see `client.data.study.label_checks`.
    affine: rows of `Study.affine`. findings: names of the classes that the image shows as a whole; None: not told.
    missing: share of the values that are no numbers. label_digest: SHA-256 (hex) of what the label says, by the
    names of its classes; "" without one.
    """

    modality: str
    shape: tuple[int, ...]
    channels: int
    spacing_mm: tuple[float, ...] | None
    intensities: tuple[float, ...]
    voxels: Mapping[str, int]
    digest: str
    labels: int = 0
    resampled: int = 0
    by_place: int = 0
    lost: float = 0.0
    holes: float = 0.0
    affine: tuple[tuple[float, ...], ...] | None = None
    findings: tuple[str, ...] | None = None
    missing: float = 0.0
    label_digest: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is a label, and it marks nothing."""
        return bool(self.voxels) and not self.has_foreground

    @property
    def has_foreground(self) -> bool:
        """Whether the label marks anything."""
        return any(count for name, count in self.voxels.items() if name != BACKGROUND)


@dataclass(frozen=True)
class Checked:
    """A study that passed."""

    facts: Facts
    thumbnail: bytes  # PNG; it shows the patient


def examine(study: Study, *, empty_is_negative: bool, labels_checked: bool = False, most_missing: float = 0.0) -> Facts:
    """The facts about a study.

    Args:
        study: as read.
        empty_is_negative: whether a label that marks nothing says that nothing is there.
        labels_checked: whether a person has looked at a label that would be called doubtful.
        most_missing: share of its values that may be no numbers, because the run fills them in.

    Raises:
        DataError: IMPLAUSIBLE, LABEL_EMPTY or LABEL_DOUBTFUL.
    """
    _check_size(study.image.shape)
    if study.spacing_mm is not None:
        _check_spacing(study.image.shape[1:], study.spacing_mm)
    intensities, missing = _intensities(study.image, most_missing)
    if study.modality == "CT":
        _check_hounsfield(dict(zip(PERCENTILES, intensities, strict=True)))
    told = study.labelling or Labelling()
    facts = Facts(
        study.modality,
        study.image.shape[1:],
        study.image.shape[0],
        study.spacing_mm,
        intensities,
        _voxels(study),
        _digest(study.image),
        told.files,
        told.resampled,
        told.by_place,
        told.lost,
        0.0 if study.label is None else holes(study.label, overlap=study.overlap),
        None if study.affine is None else _rows(study.affine.tolist()),
        None if study.findings is None else tuple(study.classes[number - 1] for number in study.findings),
        missing,
        _label_digest(study),
    )
    if study.label is not None and not (facts.has_foreground or empty_is_negative):
        raise DataError(
            "the label marks nothing. Finish it or take the study out; where an empty label means that nothing was "
            "found, set empty-labels-are-negative = true for its source in site.toml.",
            ErrorCode.LABEL_EMPTY,
        )
    if not labels_checked:
        check_label(told, facts.holes)
        check_share(facts.voxels, BACKGROUND)
    return facts


def no_region() -> DataError:
    """Of a study that a run of regions has no use for."""
    return DataError(
        "the label marks nothing, and the run classifies marked regions. Nothing is wrong with the study: it is of no "
        "class.",
        ErrorCode.LABEL_EMPTY,
    )


def without_duplicates(
    results: Sequence[StudyType | DataError],
    digest: Callable[[StudyType], str],
    label_digest: Callable[[StudyType], str] = lambda _: "",
) -> list[StudyType | DataError]:
    """Of several studies with the same image the first stays; the others are set aside, without a word of whose it is.

    One with another label is told apart: then a label is wrong, which may be the first one's.

    Args:
        results: of all studies, in order; those that are set aside already stay so.
        digest: of a study's image.
        label_digest: of what its label says.
    """
    first: dict[str, tuple[int, str]] = {}  # digest -> number, from 1, and label
    kept: list[StudyType | DataError] = []
    for number, result in enumerate(results, start=1):
        if isinstance(result, DataError):
            kept.append(result)
            continue
        said = label_digest(result)
        earlier, said_first = first.setdefault(digest(result), (number, said))
        if earlier == number:
            kept.append(result)
        else:
            kept.append(_duplicate() if said == said_first else _conflict(earlier))
    return kept


def _duplicate() -> DataError:
    return DataError(
        "the image is pixel for pixel that of a study above. Take one of them out: the same image may not be used for "
        "training and for testing, nor count as two patients.",
        ErrorCode.DUPLICATE,
    )


def _conflict(number: int) -> DataError:
    return DataError(
        f"the image is pixel for pixel that of study {number}, and its label says another thing: one of the two is "
        f"wrong. Study {number} is used as it is labelled. Look at both, and take the wrong one out.",
        ErrorCode.LABEL_CONFLICT,
    )


def facts_to_json(facts: Facts) -> dict[str, Any]:
    """Plain JSON values."""
    return asdict(facts)


def facts_from_json(values: Mapping[str, Any]) -> Facts:
    """Inverse of `facts_to_json`, also after a trip through JSON text."""
    tuples = {
        name: None if values[name] is None else tuple(values[name])
        for name in ("shape", "spacing_mm", "intensities", "findings")
    }
    return Facts(**{**values, **tuples, "affine": None if values["affine"] is None else _rows(values["affine"])})


def _rows(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix))


def _check_size(shape: Sequence[int]) -> None:
    """shape: (C, *sp)."""
    size = " x ".join(map(str, shape[1:]))
    if min(shape[-2:]) < FEWEST_PIXELS:
        raise _implausible(f"the image has {size} voxels, expected at least {FEWEST_PIXELS} along rows and columns")
    if np.prod([int(edge) for edge in shape], dtype=object) > MOST_VOXELS:
        raise _implausible(f"the image has {size} voxels, expected at most {MOST_VOXELS / 1e9:.1f} thousand million")


def _check_spacing(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    low, high = SPACING_MM
    given = " x ".join(f"{edge:.4g}" for edge in spacing_mm)
    if not all(low <= edge <= high for edge in spacing_mm):  # also when it is NaN
        raise _implausible(f"the voxels are {given} mm large, expected {low:g} to {high:g} mm along each axis")
    longest = max(edge * count for edge, count in zip(spacing_mm, shape, strict=True))
    if longest > MOST_MM:
        raise _implausible(
            f"the image is {longest / 1000:.1f} m long with voxels of {given} mm, expected at most {MOST_MM / 1000:g} m"
        )


def _check_hounsfield(at: Mapping[float, float]) -> None:
    """at: intensity at each of PERCENTILES."""
    if at[100] - at[0] < _NARROWEST_HU:
        raise _implausible(f"the CT's values span {at[100] - at[0]:.3g} only; they seem to be rescaled, not HU")
    if (at[0], at[100]) == (0, 255):
        raise _implausible("the CT's values run from 0 to 255; it seems to be a windowed picture, not HU")
    if at[99] < _AIR_HU:
        raise _implausible(
            f"99 % of the CT is below {_AIR_HU:g} HU, which is air; its rescale intercept seems to be applied twice"
        )
    if at[1] > _AIR_HU and at[90] > _DENSE_HU:
        raise _implausible(
            f"the CT shows no air, and 10 % of it are above {_DENSE_HU:g} HU, which is bone; its rescale intercept "
            "seems to be missing"
        )


def _implausible(what: str) -> DataError:
    return DataError(f"{what}. Export the study again from its source, or take it out.", ErrorCode.IMPLAUSIBLE)


def _intensities(image: NDArray[np.float32], most_missing: float) -> tuple[tuple[float, ...], float]:
    """At PERCENTILES, of the values that are numbers; and the share of those that are none."""
    low, high, missing = float(image.min()), float(image.max()), 0.0
    if not np.isfinite(low + high):  # a NaN anywhere makes min and max NaN
        numbers = image[np.isfinite(image)]
        missing = 1 - numbers.size / image.size
        if not missing <= most_missing or not numbers.size:
            raise no_numbers()
        image, low, high = numbers, float(numbers.min()), float(numbers.max())
    if low == high:
        raise _implausible(f"all voxels of the image have the value {low:g}; it shows nothing")
    values = image.reshape(-1)
    # An odd step that is no multiple of a usual edge does not stay in one column.
    step = max(1, values.size // _SAMPLE) | 1
    middle = np.percentile(values[::step], PERCENTILES[1:-1])
    return (low, *(float(value) for value in middle), high), missing


def _voxels(study: Study) -> dict[str, int]:
    if study.label is None:
        return {}
    names = (BACKGROUND, *study.classes)
    counts = labelmap.counts(study.label, overlap=study.overlap)[: len(names)]
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _digest(image: NDArray[np.float32]) -> str:
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _label_digest(study: Study) -> str:
    """Of the classes that a label shows, by name, each with the voxels that it marks; or of the findings."""
    if study.label is None and study.findings is None:
        return ""
    digest = hashlib.sha256()
    if study.findings is not None:
        names = sorted(study.classes[number - 1] for number in study.findings)
        digest.update(repr(("findings", names)).encode())
    if study.label is not None:
        counts = labelmap.counts(study.label, overlap=study.overlap)
        shown = sorted((name, n) for n, name in enumerate(study.classes, start=1) if n < len(counts) and counts[n])
        for name, number in shown:
            marked = labelmap.marks(study.label, number, overlap=study.overlap)
            digest.update(repr(("class", name)).encode() + hashlib.sha256(np.packbits(marked).data).digest())
    return digest.hexdigest()


__all__ = [
    "Checked",
    "Facts",
    "examine",
    "facts_from_json",
    "facts_to_json",
    "no_region",
    "without_duplicates",
]
