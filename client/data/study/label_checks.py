"""Whether a label says what was drawn: what it lost on its way, whether slices between its slices are empty, whether a
mask of one class has one value and leaves something unmarked, and whether it is a label at all.

A contour on every second slice trains a network to find every second slice of a lesion. A gap counts as a hole when it
is at most four slices thick and the class is at one place on both of its sides; two lesions one above the other are
further apart, or side by side. Slices are those of the study's first axis, as acquired.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.study.study import Labelling
from common import labelmap
from common.errors import DataError, ErrorCode

# Largest shares that are taken without a person's word (labels-checked in site.toml).
MOST_LOST = 0.05  # of a class' voxels, outside of the image or between its voxels
MOST_MARKED = 0.8  # of the image, by a label of one class
MOST_HOLES = 1 / 3  # of the slices that a class reaches over: every second slice is about a half

_THICKEST_GAP = 4  # slices


def holes(label: NDArray[np.uint8], *, overlap: bool = False) -> float:
    """The largest share of empty slices, over the classes, within what is drawn of a class.

    Args:
        label: (Z, Y, X); of a picture (Y, X), which has no slices.
        overlap: whether classes may overlap.

    Returns:
        Hole slices / (hole slices + slices with the class), 0 to 1.
    """
    if label.ndim < 3 or len(label) < 3:
        return 0.0
    counts = np.stack([labelmap.counts(plane, overlap=overlap)[1:] for plane in label])  # (Z, classes)
    worst = 0.0
    for number in (1 + np.flatnonzero(counts.sum(axis=0))).tolist():
        drawn = np.flatnonzero(counts[:, number - 1])
        gaps = np.diff(drawn) - 1
        empty = sum(
            int(gap)
            for below, above, gap in zip(drawn, drawn[1:], gaps, strict=False)
            if 0 < gap <= _THICKEST_GAP and _meet(label[below], label[above], number, overlap=overlap)
        )
        worst = max(worst, empty / (empty + len(drawn)))
    return worst


def _meet(below: NDArray[np.uint8], above: NDArray[np.uint8], number: int, *, overlap: bool) -> bool:
    """Whether a class is at one place on two slices."""
    return bool(np.logical_and(*(labelmap.marks(one, number, overlap=overlap) for one in (below, above))).any())


def check_label(labelling: Labelling, empty_slices: float) -> None:
    """Refuse a label that lost, or lacks, more than a share that can be meant.

    Raises:
        DataError: LABEL_DOUBTFUL.
    """
    if labelling.lost > MOST_LOST:
        raise doubtful(
            f"{labelling.lost:.0%} of a class of the label lie outside of the image, or are too small for its voxels; "
            f"expected at most {MOST_LOST:.0%}. Was the label drawn on this image?",
            "Export both together",
        )
    if empty_slices > MOST_HOLES:
        raise doubtful(
            f"{empty_slices:.0%} of the slices that a class of the label reaches over hold none of it; expected at "
            f"most {MOST_HOLES:.0%}. Was it drawn on every second slice only?",
            "Draw, or interpolate, the slices between",
        )


def check_not_the_image(values: NDArray[Any], image: NDArray[Any]) -> None:
    """Refuse a copy of the image in the place of its label.

    Args:
        values: of the label, as its file has them.
        image: of the same file format.

    Raises:
        DataError: NO_LABEL.
    """
    if np.array_equal(values, image) and len(np.unique(image)) > 2:
        raise DataError(
            "the label of this image is a copy of the image itself. Name its own label, or take it out.",
            ErrorCode.NO_LABEL,
        )


def check_one_value(values: NDArray[Any]) -> None:
    """Refuse a mask of one class that holds more than one value beside 0.

    Raises:
        DataError: LABEL_DOUBTFUL.
    """
    found = np.unique(values[values != 0])
    if len(found) > 1:
        some = ", ".join(f"{value:g}" for value in found[:5].tolist()) + (", ..." if len(found) > 5 else "")
        raise doubtful(
            f"the mask is to mark one class, and holds {len(found)} values beside 0 ({some}). Which of them mark it?",
            "Export it with two values, name them in label-map in site.toml",
        )


def check_share(voxels: Mapping[str, int], background: str) -> None:
    """Refuse a label of one class that marks nearly everything: it may be inverted, or the outline of the picture.

    Args:
        voxels: by class.
        background: what is not marked.

    Raises:
        DataError: LABEL_DOUBTFUL.
    """
    marked = [count for name, count in voxels.items() if name != background]
    total = sum(voxels.values())
    if len(marked) == 1 and marked[0] > MOST_MARKED * total:
        raise doubtful(
            f"the label marks {marked[0] / total:.0%} of the image as its one class; expected at most "
            f"{MOST_MARKED:.0%}. Is it inverted, or the outline of the picture?",
            "Turn it over",
        )


def doubtful(what: str, remedy: str) -> DataError:
    """The refusal of a label that a person must look at."""
    return DataError(
        f"{what} {remedy}, or take the study out; where the label is meant as it is, set labels-checked = true for its "
        "source in site.toml.",
        ErrorCode.LABEL_DOUBTFUL,
    )


__all__ = [
    "MOST_HOLES",
    "MOST_LOST",
    "MOST_MARKED",
    "check_label",
    "check_not_the_image",
    "check_one_value",
    "check_share",
    "doubtful",
    "holes",
]
