"""Segment studies with a trained model, and hand the result back in the study's own format and geometry.

    DICOM series         segmentation.dcm    DICOM SEG on the images of the series, one segment per class
    NIfTI volume         NAME-labels.nii.gz  label map with the affine of the volume
    picture (PNG, ...)   NAME-labels.png     8-bit palette, the value is the label
    all                  an overlay as PNG: the slice with the largest finding and its contour

Nothing from a DICOM header enters a file name or a picture. Several studies under one path are done one after the
other, each into a folder of its number; one that cannot be used is reported and the rest goes on.
"""

import datetime
import gzip
import io
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from client.data.preprocess import as_samples, preprocess, restore
from client.data.sources import find_images, read_image
from client.data.study import Kind, Reference, Study, parsing
from client.segmentation import Author, write_segmentation
from common.checkpoint import load_model, write_atomically
from common.config import RunConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.inference import predict_stack
from common.models import build_model

# Colours of the classes in overlays and palettes, repeated when there are more: yellow, cyan, magenta, green, ...
COLOURS = ((255, 214, 0), (0, 229, 255), (255, 64, 180), (80, 230, 90), (255, 128, 0), (150, 130, 255))

# An overlay of a small image is enlarged until its longer side has about this many pixels.
OVERLAY_PIXELS = 512

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyResult:
    """One study, segmented."""

    number: int  # from 1, in the order of `find_images`
    files: tuple[Path, ...]
    slices: int
    voxels: dict[str, int]  # by class, on the study's own grid
    network_seconds: float
    note: str = ""


@dataclass(frozen=True)
class Failure:
    """One study that could not be segmented, and why."""

    number: int
    code: ErrorCode
    reason: str


@dataclass(frozen=True)
class Prediction:
    """All studies under a path."""

    studies: tuple[StudyResult, ...]
    failures: tuple[Failure, ...]
    seconds: float  # from reading the model to the last file

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file written."""
        return tuple(file for study in self.studies for file in study.files)

    @property
    def voxels(self) -> dict[str, int]:
        """Voxels by class, over all studies."""
        total: Counter[str] = Counter()
        for study in self.studies:
            total.update(study.voxels)
        return dict(total)

    @property
    def per_slice_ms(self) -> float:
        """Time of the network for a slice; a picture is one slice."""
        return 1000 * sum(study.network_seconds for study in self.studies) / sum(study.slices for study in self.studies)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the results."""
        return tuple(study.note for study in self.studies if study.note)


@dataclass(frozen=True, eq=False)
class _Segmenter:
    """A model ready for use."""

    network: nn.Module
    run: RunConfig
    sha256: str
    device: torch.device


def predict_study(
    model: Path,
    study: Path,
    out: Path,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Segment every study at a path.

    Args:
        model: a run's folder, or its model.safetensors with model.json beside it.
        study: a NIfTI file, a picture, or a folder of DICOM series, volumes or pictures.
        out: receives the results; in a folder per study when there are several.
        device: where the network runs: "cpu", "cuda", or "auto" for cuda where there is one.
        progress: called with (studies done, studies).

    Raises:
        ConfigError: the model cannot be loaded, or `out` cannot be written.
        DataError: there is no study at the path, or none could be segmented.
    """
    start = time.perf_counter()
    segmenter = _load(model, device)
    if study.is_dir() and out.resolve().is_relative_to(study.resolve()):
        raise ConfigError("the results would lie among the images. Choose an --out outside the study's folder.")
    references = find_images(study)
    results: list[StudyResult] = []
    failures: list[Failure] = []
    for number, reference in enumerate(references, start=1):
        folder = out if len(references) == 1 else out / f"{number:03}"
        try:
            results.append(_predict_one(segmenter, reference, folder, number))
        except DataError as error:
            _log.info("study %d of %d: %s", number, len(references), error.code)
            failures.append(Failure(number, error.code, str(error)))
        if progress is not None:
            progress(number, len(references))
    if not results:
        first = failures[0]
        several = f"none of the {len(failures)} studies could be segmented; the first: " if len(failures) > 1 else ""
        raise DataError(f"{several}{first.reason}", first.code)
    return Prediction(tuple(results), tuple(failures), time.perf_counter() - start)


def _load(path: Path, device: str | torch.device) -> _Segmenter:
    run, state, manifest = load_model(path)
    chosen = _device(device)
    network = build_model(run)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            "the weights do not fit the network that model.json describes. Copy both files again from the run."
        ) from error
    return _Segmenter(network.to(chosen).eval(), run, manifest.sha256, chosen)


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this computer has no usable CUDA device. Use the device cpu or auto.")
    return device


def _predict_one(segmenter: _Segmenter, reference: Reference, folder: Path, number: int) -> StudyResult:
    study = read_image(reference)
    _check(study, segmenter.run)
    start = time.perf_counter()
    labels = _segment(segmenter, study)
    seconds = time.perf_counter() - start
    classes = segmenter.run.data.classes
    with parsing("study's header"):
        contents = _encode(reference.kind, study, labels, segmenter)
    files = tuple(folder / name for name in contents)
    try:
        for file, data in zip(files, contents.values(), strict=True):
            write_atomically(file, data)
    except OSError as error:
        raise ConfigError(
            f"a result cannot be written ({error.strerror}). Give an --out that is writable and has space.",
            ErrorCode.DISK_FULL,
        ) from error
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)
    voxels = {name: int(counts[k]) for k, name in enumerate(classes, start=1)}
    note = "" if labels.any() else f"study {number}: the model found nothing; the segmentation is empty"
    return StudyResult(number, files, _slices(study), voxels, seconds, note)


def _check(study: Study, run: RunConfig) -> None:
    if study.modality and study.modality != run.data.modality:
        raise DataError(
            f"the study is of modality {study.modality}, the model was trained on {run.data.modality}. "
            "Give a study of that modality, or a model of this one.",
            ErrorCode.UNSUPPORTED,
        )
    if study.image.ndim - 1 < run.model.dims:
        raise DataError(
            f"the model takes volumes ({run.model.dims} axes), the study is a picture ({study.image.ndim - 1} axes). "
            "Give a volume, or a 2D model.",
            ErrorCode.UNSUPPORTED,
        )


def _segment(segmenter: _Segmenter, study: Study) -> NDArray[np.uint8]:
    """Labels (*sp) on the study's own grid."""
    run = segmenter.run
    image, _ = preprocess(study, run)
    try:
        labels = predict_stack(segmenter.network, as_samples(image, run.model.dims), run, segmenter.device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise DataError(
            "the study does not fit into memory. Free memory, or use the device cpu.", ErrorCode.OUT_OF_MEMORY
        ) from error
    return restore(labels.reshape(image.shape[1:]).to(torch.uint8), study, run)


def _encode(kind: Kind, study: Study, labels: NDArray[np.uint8], segmenter: _Segmenter) -> dict[str, bytes]:
    """The files of one result: name -> content."""
    overlay = _overlay(study, labels, segmenter.run)
    match kind:
        case "dicom":
            return {"segmentation.dcm": _dicom(study, labels, segmenter), "overlay.png": overlay}
        case "nifti":
            stem = study.files[0].name.removesuffix(".gz").removesuffix(".nii")
            return {f"{stem}-labels.nii.gz": _nifti(study, labels), f"{stem}-overlay.png": overlay}
        case "images" | "mias":
            stem = study.files[0].stem
            return {f"{stem}-labels.png": _palette_png(labels), f"{stem}-overlay.png": overlay}


def _dicom(study: Study, labels: NDArray[np.uint8], segmenter: _Segmenter) -> bytes:
    buffer = io.BytesIO()
    # pydicom quotes odd values when it warns, and a value can be a name.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in study.files]
        segmentation = write_segmentation(
            sources,
            labels,
            segmenter.run.data.classes,
            Author("Wardround", version=segmenter.sha256),
            created=datetime.datetime.now(),
            series_number=1000 + max(int(sources[0].get("SeriesNumber") or 0), 0),
            description="Wardround segmentation",
        )
        segmentation.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _nifti(study: Study, labels: NDArray[np.uint8]) -> bytes:
    source: Any = nibabel.load(study.files[0])  # nibabel types its images in part only
    # The header carries both transforms and their codes; its free texts and extensions may carry a name.
    header = source.header.copy()
    for text in ("descrip", "aux_file", "intent_name", "db_name"):
        if text in header:
            header[text] = b""
    header.extensions.clear()
    header["cal_min"] = header["cal_max"] = 0
    image = type(source)(labels.transpose(2, 1, 0), source.affine, header, dtype=np.uint8)
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def _palette_png(labels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(labels, mode="P")
    image.putpalette([0, 0, 0, *(channel for k in range(255) for channel in COLOURS[k % len(COLOURS)])])
    return _png(image)


def _overlay(study: Study, labels: NDArray[np.uint8], run: RunConfig) -> bytes:
    """The slice with the largest finding (the middle one when there is none), grey or colour, with contours."""
    image, axes = study.image, tuple[int, ...]()
    spacing = study.spacing_mm or (1.0, 1.0)
    if labels.ndim == 3:
        areas = np.count_nonzero(labels, axis=(1, 2))
        index = int(areas.argmax()) if areas.any() else len(areas) // 2
        image, labels = image[:, index], labels[index]
        axes = _upside_down(study)
    image, labels = np.flip(image, tuple(axis + 1 for axis in axes)), np.flip(labels, axes)
    low, high = run.preprocessing.window or np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    picture = Image.fromarray(np.broadcast_to(grey.astype(np.uint8), (3, *labels.shape)).transpose(1, 2, 0).copy())
    size = _display_size(labels.shape, spacing[-2:])
    canvas = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).copy()
    drawn = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    for k in range(1, len(run.data.classes) + 1):
        canvas[_contour(drawn == k)] = COLOURS[(k - 1) % len(COLOURS)]
    return _png(Image.fromarray(canvas))


def _upside_down(study: Study) -> tuple[int, ...]:
    """In-plane axes (0 rows, 1 columns) to flip so that left, back and feet lie right, down and down."""
    if study.affine is None:
        return ()
    directions = study.affine[:3, 1:3].T  # of a row step and a column step, in LPS
    main = [int(np.abs(direction).argmax()) for direction in directions]
    return tuple(axis for axis in (0, 1) if (directions[axis, main[axis]] < 0) != (main[axis] == 2))


def _display_size(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int]:
    """Width and height in pixels for an image of rows x columns, square pixels, large enough to look at."""
    # Some scanners write a spacing of zero.
    finest = min(spacing)
    stretch_y, stretch_x = (spacing[0] / finest, spacing[1] / finest) if finest > 0 else (1.0, 1.0)
    height, width = shape[0] * stretch_y, shape[1] * stretch_x
    factor = max(1, round(OVERLAY_PIXELS / max(height, width)))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask with a neighbour outside it, above, below, left or right."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _slices(study: Study) -> int:
    return study.image.shape[1] if study.image.ndim == 4 else 1


__all__ = ["Failure", "Prediction", "StudyResult", "predict_study"]
