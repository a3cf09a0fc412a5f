"""Segment studies with a trained model, and hand the result back in the study's own format and geometry.

Order for a study: read, check that it fits the model, network, files (`client.predict.files`). Several studies under
one path are done one after the other, each into a folder of its number; `studies.json` says which number is which.
One that cannot be used is reported with its code and the rest goes on; what is finished stays.

Times are of a model that is loaded and has run once: the first pass of a network costs more than the others.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.isolate.isolation import Job, Readers
from client.data.prepare.preprocess import as_samples, preprocess, restore
from client.data.study.study import Reference, Study
from client.predict.dropfolder import Find
from client.predict.files import encode, result_names, stem_of, write_result
from common.config import RunConfig
from common.errors import ConfigError, DataError, ErrorCode, WardroundError
from common.learning.checkpoint import load_model
from common.learning.inference import predict_stack
from common.learning.network import build_model
from common.system.files import write_private

# Which number is which study, beside the results of several.
INDEX_NAME = "studies.json"

Read: TypeAlias = Callable[[Reference], Study]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seconds:
    """Where the time of one study went."""

    reading: float
    network: float  # with resampling to its grid and back
    writing: float

    @property
    def all(self) -> float:
        """From the first file to the last."""
        return self.reading + self.network + self.writing


@dataclass(frozen=True)
class StudyResult:
    """One study, segmented."""

    number: int  # from 1, in the order of `find_images`
    files: tuple[Path, ...]
    slices: int  # a picture is one slice
    voxels: dict[str, int]  # by class, on the study's own grid
    seconds: Seconds
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One study that could not be segmented, and why."""

    number: int
    code: ErrorCode
    reason: str


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one part of the work, over the studies."""

    part: str
    volume_median: float
    volume_95: float
    slice_median: float
    slice_95: float


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
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the results."""
        return tuple(f"study {study.number}: {note}" for study in self.studies for note in study.notes)

    @property
    def latency(self) -> tuple[Latency, ...]:
        """Reading, network, writing and all of them; empty when no study was segmented."""
        if not self.studies:
            return ()
        slices = np.array([study.slices for study in self.studies])
        rows = []
        for part in ("reading", "network", "writing", "all"):
            volumes = 1000 * np.array([getattr(study.seconds, part) for study in self.studies])
            figures = (float(np.percentile(of, q)) for of in (volumes, volumes / slices) for q in (50, 95))
            rows.append(Latency(part, *figures))
        return tuple(rows)


@dataclass(frozen=True, eq=False)
class Segmenter:
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
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Segment every study at a path.

    Args:
        model: a run's folder, or its model.safetensors with model.json beside it.
        study: a NIfTI file, a picture, or a folder of DICOM series, volumes or pictures.
        out: receives the results; in a folder per study when there are several.
        device: where the network runs: "cpu", "cuda", or "auto" for cuda where there is one.
        overwrite: replace results that are there already.
        progress: called with (studies done, studies), first with 0.

    Raises:
        ConfigError: the model cannot be loaded, or `out` cannot be written or holds results already.
        DataError: there is no study at the path, or only one and it cannot be segmented.
    """
    start = time.perf_counter()
    segmenter = load_segmenter(model, device)
    check_apart(study, out)
    with reading(segmenter.run) as (find, read):
        references = find(study.absolute(), None)
        folders = [out / f"{number:03}" for number in range(1, len(references) + 1)] if len(references) > 1 else [out]
        if not overwrite:
            _refuse_to_overwrite(references, folders)
        if len(references) > 1:
            _write_index(out, references, study.absolute())
        results: list[StudyResult] = []
        failures: list[Failure] = []
        for number, (reference, folder) in enumerate(zip(references, folders, strict=True), start=1):
            if progress is not None:
                progress(number - 1, len(references))
            try:
                results.append(predict_one(segmenter, read, reference, folder, stem_of(reference), number=number))
            except DataError as error:
                if len(references) == 1:
                    raise
                _log.info("study %d of %d: %s", number, len(references), error.code)
                failures.append(Failure(number, error.code, str(error)))
            except ConfigError as error:
                raise ConfigError(
                    f"study {number} of {len(references)}: {error} Finished and kept: {len(results)}.", error.code
                ) from error
    if progress is not None:
        progress(len(references), len(references))
    return Prediction(tuple(results), tuple(failures), time.perf_counter() - start)


@contextmanager
def reading(run: RunConfig) -> Iterator[tuple[Find, Read]]:
    """How studies are found and read for prediction: by a child process, so that no file takes this one down.

    Args:
        run: of the model, which may take studies with missing values. Paths must be absolute.
    """
    with Readers(1) as readers:

        def read(reference: Reference) -> Study:
            (outcome,) = readers.read([Job(reference, None, most_missing=run.preprocessing.most_missing)])
            if isinstance(outcome, DataError):
                raise outcome
            return outcome.study

        yield readers.find_images, read


def load_segmenter(path: Path, device: str | torch.device, *, must_draw: bool = True) -> Segmenter:
    """Load a model and let it run once.

    Args:
        path: as for `predict_study`.
        device: as for `predict_study`.
        must_draw: whether one that answers for images as a whole is refused.

    Raises:
        ConfigError: it cannot be loaded, or there is no such device.
    """
    run, state, manifest = load_model(path)
    if must_draw and not run.task.DRAWS:
        raise ConfigError(
            f"the model answers {run.task.kind}, which draws nothing into an image. Predict with one that segments."
        )
    chosen = _device(device)
    network = build_model(run)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            "the weights do not fit the network that model.json describes. Copy both files again from the run."
        ) from error
    predict_stack(network, torch.zeros(1, run.data.channels, *run.training.patch_size), run, chosen)
    return Segmenter(network.to(chosen).eval(), run, manifest.sha256, chosen)


def predict_one(
    segmenter: Segmenter, read: Read, reference: Reference, folder: Path, stem: str, *, number: int = 1
) -> StudyResult:
    """Segment one study and write its files.

    Args:
        segmenter: the model.
        read: reads the study.
        reference: the study.
        folder: receives the files.
        stem: what their names start with; "" for names that say nothing.
        number: of the study, for the result.

    Raises:
        DataError: the study cannot be used; nothing was written.
        ConfigError: DISK_FULL, the files cannot be written.
    """
    began = time.perf_counter()
    study = read(reference)
    have_read = time.perf_counter()
    try:
        check_fits(study, segmenter.run)
        labels = _segment(segmenter, study)
        have_labels = time.perf_counter()
        contents = encode(reference, stem, study, labels, run=segmenter.run, model_sha256=segmenter.sha256)
    except WardroundError:
        raise
    except Exception as error:
        # Whatever one study provokes must not stop the others, nor a service. Its text may quote a header.
        raise DataError(
            f"the study met an unexpected {type(error).__name__}. Report that, and take the study out.",
            ErrorCode.INTERNAL,
        ) from error
    files = write_result(folder, contents)
    seconds = Seconds(have_read - began, have_labels - have_read, time.perf_counter() - have_labels)
    classes = segmenter.run.data.classes
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)
    voxels = {name: int(counts[k]) for k, name in enumerate(classes, start=1)}
    return StudyResult(number, files, _slices(study), voxels, seconds, _notes(study, labels, segmenter.run))


def check_apart(images: Path, out: Path) -> None:
    """Refuse an `out` among the images, where results would be taken for studies.

    Raises:
        ConfigError: it lies there.
    """
    if images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise ConfigError("the results would lie among the images. Choose an --out outside the study's folder.")


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}. Use cpu, cuda or auto.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this computer has no usable CUDA device. Use the device cpu or auto.")
    return device


def _refuse_to_overwrite(references: Sequence[Reference], folders: Sequence[Path]) -> None:
    if len(references) == 1:
        there = sum((folders[0] / name).exists() for name in result_names(references[0], stem_of(references[0])))
    else:
        # Whatever a numbered folder holds is of an earlier batch, whose numbers may mean other studies.
        there = sum(folder.is_dir() and any(folder.iterdir()) for folder in folders)
    if there:
        raise ConfigError(
            f"--out holds results of an earlier prediction already ({there}). Give another --out, or --overwrite."
        )


def _write_index(out: Path, references: Sequence[Reference], root: Path) -> None:
    """Say which number is which study. It names files as the site does, so only its owner may read it."""
    rows = [
        {
            "study": number,
            "first-file": reference.images[0].relative_to(root).as_posix(),
            "files": len(reference.images),
        }
        for number, reference in enumerate(references, start=1)
    ]
    try:
        write_private(out / INDEX_NAME, f"{json.dumps(rows, indent=2)}\n".encode())
    except OSError as error:
        raise ConfigError(
            f"--out cannot be written ({error.strerror}). Give an --out that is writable and has space.",
            ErrorCode.DISK_FULL,
        ) from error


def check_fits(study: Study, run: RunConfig) -> None:
    """Refuse a study of another modality than the model's.

    Raises:
        DataError: UNSUPPORTED.
    """
    if study.modality and study.modality != run.data.modality:
        raise DataError(
            f"the study is of modality {study.modality}, the model was trained on {run.data.modality}. "
            "Give a study of that modality, or a model of this one.",
            ErrorCode.UNSUPPORTED,
        )


def _segment(segmenter: Segmenter, study: Study) -> NDArray[np.uint8]:
    """Labels (*sp) on the study's own grid."""
    run = segmenter.run
    try:
        image, _, way = preprocess(study, run)
        labels = predict_stack(segmenter.network, as_samples(image, run.model.dims), run, segmenter.device)
        return restore(labels.reshape(image.shape[1:]).to(torch.uint8), way)
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch says so in the text only.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise DataError(
            "the study does not fit into memory. Free memory, or use the device cpu.", ErrorCode.OUT_OF_MEMORY
        ) from error


def _notes(study: Study, labels: NDArray[np.uint8], run: RunConfig) -> tuple[str, ...]:
    notes = []
    if not labels.any():
        notes.append("the model found nothing; the segmentation is empty")
    if study.image.shape[0] != run.data.channels:
        given, wanted = ("grey" if channels == 1 else "in colour" for channels in (len(study.image), run.data.channels))
        notes.append(f"the study is {given}, the model was trained on pictures {wanted}: look at the result twice")
    return tuple(notes)


def _slices(study: Study) -> int:
    return study.image.shape[1] if study.image.ndim == 4 else 1


__all__ = [
    "INDEX_NAME",
    "Failure",
    "Latency",
    "Prediction",
    "Read",
    "Seconds",
    "Segmenter",
    "StudyResult",
    "check_apart",
    "check_fits",
    "load_segmenter",
    "predict_one",
    "predict_study",
    "reading",
]
