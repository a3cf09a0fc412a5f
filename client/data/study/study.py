"""A study as the readers deliver it: voxels on their own grid, geometry, label, and whose it is.

Axes are (z, y, x) for everything with a patient geometry (also a single slice: z = 1) and (y, x) for a
photograph. Patient coordinates are DICOM's: millimetres, LPS (x to the left, y to the back, z to the head).
Raw ids and paths live in `Reference` and `Study` only, are left out of their `repr`, and end in this package.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ErrorCode, WardroundError

Kind = Literal["dicom", "nifti", "images", "mias"]

# Values in one object, and voxels in one study: 4096 slices of 512 x 512, which are 4 GiB as float32.
MOST_VALUES = 2**30
# A study of more takes over 8 GiB, as it is read or as it is prepared.
MOST_VOXELS = 2**31

# Why a file was left out of all studies.
NO_IMAGE = "neither image nor label"
NO_IMAGE_INSIDE = "DICOM object that is neither image nor label"
SECOND_COPY = "second copy of a file"
LONELY_LABEL = "label without its image"
BESIDE = "image or label outside of the folders of images and labels"
TEST_SET = "image of a test set, which has no labels"
NOT_IN_TABLE = "image or label that no row of the table names"
OTHER_PATIENTS_LABEL = "label whose Patient ID is not that of its image"
AMBIGUOUS_LABEL = "label that names no image here, and may belong to several"
DISC_CONTENTS = "DICOMDIR, the table of contents of a disc"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelling:
    """What happened to a study's label on its way from its files.

    files: label files that were drawn. resampled: how many of them lay on another grid than the image. lost: the
    largest share of a class that did not arrive, because it lies outside of the image or between its voxels.
    by_place: files that name none of the study's images, and were taken because they lie in its frame of reference.
    """

    files: int = 0
    resampled: int = 0
    lost: float = 0.0
    by_place: int = 0


@dataclass(frozen=True, eq=False)
class Study:
    """One image, or one series, with its label.

    image: (C, *sp) float32 in the source's units (HU for CT, 0-255 for 8-bit photographs).
    label: (*sp) uint8, 0 background, 1..K the classes, or their bits where they overlap (`common.labelmap`); None when
    read for prediction, and where no map is told.
    findings: the classes, of 1..K and rising, that the image shows as a whole; () none of them, None: not told.
    spacing_mm: one per axis of *sp; None when the source has none (photographs).
    affine: (4, 4), index (z, y, x, 1) -> LPS mm (x, y, z, 1); None when the source has none.
    modality: as DICOM names it; "" when the source does not say.
    files: what it was read from; DICOM: one per slice, in the order of the z axis.
    classes: names of 1..K; none when read for prediction.
    labelling: of the label; None when read for prediction.
    region: (*sp), not 0 in the field of view; None where the source names none, or when read for prediction.
    padding: (*sp), the voxels that the source says are none, around an image; None where it has none. In the image they
    are air, or its darkest value.
    overlap: whether classes of the label may overlap.
    """

    image: NDArray[np.float32] = field(repr=False)
    label: NDArray[np.uint8] | None = field(repr=False)
    spacing_mm: tuple[float, ...] | None
    affine: NDArray[np.float64] | None
    modality: str
    patient: str = field(repr=False)
    key: str = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    labelling: Labelling | None = None
    findings: tuple[int, ...] | None = field(default=None, repr=False)
    region: NDArray[np.uint8] | None = field(default=None, repr=False)
    padding: NDArray[np.bool_] | None = field(default=None, repr=False)
    overlap: bool = False


@dataclass(frozen=True)
class Reference:
    """Where a study lies. Cheap to make: headers only, no pixels.

    patient and key are raw; key is unique within a site. label_map, fractional_threshold and labels_checked are the
    source's. words: what the source's table calls the image as a whole; class_attribute: the DICOM attribute that says
    it; reports: the structured reports on it; None where the source names no such place. problem: why it cannot be
    read, when that was already clear on finding it. beside: files that cannot be seen and may belong to it, where that
    is why. channel: the one to take of a file with several, from 0; None: all. region: the mask of its field of view.
    label_names: what each file of labels marks, by its local name; none: their values tell.
    """

    kind: Kind
    patient: str = field(repr=False)
    key: str = field(repr=False)
    images: tuple[Path, ...] = field(repr=False)
    labels: tuple[Path, ...] = field(default=(), repr=False)
    label_map: Mapping[str, str] = field(default_factory=dict)
    problem: DataError | None = None
    fractional_threshold: float = 0.5
    labels_checked: bool = False
    beside: tuple[Path, ...] = field(default=(), repr=False)
    words: tuple[str, ...] | None = field(default=None, repr=False)
    class_attribute: str | None = None
    channel: int | None = None
    region: Path | None = field(default=None, repr=False)
    reports: tuple[Path, ...] | None = field(default=None, repr=False)
    label_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def is_classed(self) -> bool:
        """Whether its source says where the class of the image as a whole stands."""
        return any(one is not None for one in (self.words, self.class_attribute, self.reports))

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read of it."""
        return (*self.images, *self.labels, *(self.reports or ()), *(() if self.region is None else (self.region,)))

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label of any kind, as far as names and tables tell."""
        return bool(self.labels) or self.is_classed


@dataclass(frozen=True)
class Found:
    """What a look at a source gave.

    left_out: files that are part of no study, counted by reason. assumed: what was taken for granted where the files do
    not say, with the number of files.
    """

    references: tuple[Reference, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    assumed: Mapping[str, int] = field(default_factory=dict)

    @property
    def ignored(self) -> int:
        """The number of files left out."""
        return sum(self.left_out.values())


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """The one boundary around foreign parsers: whatever they raise becomes a DataError with a code.

    Only the exception's type stays: parsers quote paths, UIDs and names, and a traceback in a log would print them.
    """
    try:
        yield
    except WardroundError:
        raise
    except OSError as error:
        if error.errno is None:  # no trouble with the disk: some parsers call a damaged file so
            raise _not_decoded(what) from None
        raise DataError(
            f"this {what} cannot be opened or read ({os.strerror(error.errno)}). Make it readable, or take it out.",
            ErrorCode.NOT_OPENED,
        ) from None
    except MemoryError:
        raise DataError(
            f"there is not enough memory for this {what}. Free memory, or take it out.", ErrorCode.OUT_OF_MEMORY
        ) from None
    except Exception as error:  # noqa: BLE001 - a mutated file makes pydicom alone raise nine types
        _log.debug("a parser gave up (%s)", type(error).__name__)
        raise _not_decoded(what) from None


def _not_decoded(what: str) -> DataError:
    return DataError(
        f"this {what} could not be decoded: it is damaged, or breaks the rules of its format. Export it again, or take "
        "it out.",
        ErrorCode.UNREADABLE,
    )


def no_numbers() -> DataError:
    """Of an image that holds NaN or infinity."""
    return DataError(
        "the image holds values that are no numbers (NaN or infinity). Export the study again from its source, or take "
        "it out.",
        ErrorCode.IMPLAUSIBLE,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom and highdicom quiet: they warn and log about odd values and quote them, and one can be a name."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
