"""What the answers of a child mean. Nothing that comes from one is trusted: types, shapes, sizes and numbers are looked
at before they are used.

Each function takes the header and the arrays of one answer (`client.data.isolate.answering`). Where they make no sense
it raises a ValueError, KeyError or the like, and `client.data.isolate.pool` treats the child as one that crashed.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.data.isolate.answering import Job, Reading
from client.data.quality import quality
from client.data.read import dicom_header
from client.data.study.as_json import problem_to_json, reference_from_json, text_of
from client.data.study.labels import Vocabulary
from client.data.study.study import Found, Labelling, Study
from common.errors import DataError

_MOST_THUMBNAIL = 1 << 20  # bytes


def reading(job: Job, header: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> Reading:
    """A study as a child told it. Whose it is, we know ourselves."""
    image, *others = arrays
    region = others.pop() if header["within"] is True else None
    padding = others.pop() if header["padded"] is True else None
    label = others.pop() if others else None
    axes = image.ndim - 1
    classes = tuple(map(text_of, header["classes"]))
    spacing = None if header["spacing-mm"] is None else tuple(map(float, header["spacing-mm"]))
    affine = None if header["affine"] is None else np.array(header["affine"], np.float64)
    order, found = header["order"], header["findings"]
    labelling = None if header["labelling"] is None else Labelling(**header["labelling"])
    sound = (
        image.dtype == np.float32
        and axes in (2, 3)
        and image.size
        and _is_told(job.wanted, label, found, len(classes))
        and not others
        and (padding is None or (padding.dtype == np.uint8 and padding.shape == image.shape[1:]))
        and (label is None or (label.dtype == np.uint8 and label.shape == image.shape[1:]))
        and (label is None or int(label.max()) <= _highest(job.wanted, len(classes)))
        and (region is None or (region.dtype == np.uint8 and region.shape == image.shape[1:] and region.any()))
        and (region is None or (job.reference.region is not None and job.wanted is not None))
        and (job.wanted is None or job.wanted.classes is None or job.wanted.classes == classes)
        and (labelling is None or all(type(number) in (int, float) for number in vars(labelling).values()))
        and _is_place(axes, spacing, affine)
        and all(type(index) is int and 0 <= index < len(job.reference.images) for index in order)
        and len(order) <= image.shape[1]
    )
    if not sound:
        raise ValueError("not a study")
    study = Study(
        image,
        label,
        spacing,
        affine,
        text_of(header["modality"]),
        job.reference.patient,
        job.reference.key,
        tuple(job.reference.images[index] for index in order),
        classes,
        labelling,
        None if found is None else tuple(found),
        padding=None if padding is None else padding.astype(np.bool_),
        region=region,
        overlap=job.wanted is not None and job.wanted.overlap,
    )
    return Reading(study, text_of(header["digest"]), text_of(header["label-digest"]))


def _highest(wanted: Vocabulary | None, classes: int) -> int:
    """The largest value that a label may hold."""
    return 2**classes - 1 if wanted is not None and wanted.overlap else classes


def _is_told(wanted: Vocabulary | None, label: NDArray[Any] | None, found: Any, classes: int) -> bool:
    """Whether label and findings are what was wanted, and the findings classes of the image."""
    if wanted is None:
        return label is None and found is None
    if found is None:
        return label is not None and not wanted.whole
    return (
        isinstance(found, list)
        and all(type(number) is int and 0 < number <= classes for number in found)
        and all(low < high for low, high in pairwise(found))
        and (wanted.whole or wanted.classes is None)
    )


def checked(_job: Job, header: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> quality.Checked:
    """What `data check` asked for: numbers, printable words and a small picture."""
    (thumbnail,) = arrays
    values = header["facts"]
    facts = quality.facts_from_json(values)
    numbers = [*facts.shape, *(facts.spacing_mm or ()), *facts.intensities, *facts.voxels.values(), facts.channels]
    numbers += [facts.labels, facts.resampled, facts.by_place, facts.lost, facts.holes, facts.missing]
    numbers += [number for row in facts.affine or () for number in row]
    texts = [facts.modality, facts.digest, facts.label_digest, *facts.voxels, *(facts.findings or ())]
    sound = (
        all(type(number) in (int, float) for number in numbers)
        and _is_place(len(facts.shape), facts.spacing_mm, facts.affine)
        and all(isinstance(text, str) and text.isprintable() for text in texts)
        and thumbnail.dtype == np.uint8
        and thumbnail.nbytes <= _MOST_THUMBNAIL
    )
    if not sound:
        raise ValueError("not facts")
    return quality.Checked(facts, thumbnail.tobytes())


def _is_place(axes: int, spacing_mm: Sequence[float] | None, affine: ArrayLike | None) -> bool:
    """Whether this says where voxels of so many axes lie."""
    spaced = spacing_mm is None or (len(spacing_mm) == axes and bool(np.isfinite(spacing_mm).all()))
    return spaced and (affine is None or (np.shape(affine) == (4, 4) and axes == 3 and bool(np.isfinite(affine).all())))


def found(header: Mapping[str, Any], _arrays: Sequence[NDArray[Any]]) -> Found:
    """What stands in a table of studies."""
    left_out, assumed = (
        {text_of(why): int(count) for why, count in header[kind].items()} for kind in ("left-out", "assumed")
    )
    return Found(tuple(map(reference_from_json, header["references"])), left_out, assumed)


def entry(path: Path, header: Mapping[str, Any], _arrays: Sequence[NDArray[Any]]) -> dicom_header.Entry | None:
    """The header of a file; None: it is no DICOM."""
    values = header["entry"]
    return None if values is None else dicom_header.entry_from_json(path, values)


def look_to_json(outcome: dicom_header.Entry | DataError | None) -> dict[str, Any]:
    """As a child would tell it; see `entry`."""
    if isinstance(outcome, DataError):
        return {"problem": problem_to_json(outcome)}
    return {"entry": None if outcome is None else dicom_header.entry_to_json(outcome)}


__all__ = ["checked", "entry", "found", "look_to_json", "reading"]
