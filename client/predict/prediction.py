"""Apply a trained model to studies: a segmentation comes back in the study's own format and geometry, a class as JSON.

Order for a study: read, check that it fits the model, network, files (`client.predict.files`). Several studies under
one path are done one after the other, each into a folder of its number; `studies.json` says which number is which.
One that cannot be used is reported with its code and the rest goes on; what is finished stays.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.isolate.isolation import Job, Readers
from client.data.prepare.preprocess import Way, as_samples, preprocess, restore
from client.data.study.study import Reference, Study
from client.predict.dropfolder import Find
from client.predict.files import (
    INDEX_NAME,
    encode,
    encode_told,
    refuse_to_overwrite,
    stem_of,
    write_index,
    write_result,
)
from client.predict.latency import Latency, Seconds, latency_of
from client.predict.memory import within_memory
from client.predict.personal import Personal, overlaid
from common import labelmap
from common.config import RunConfig
from common.errors import ConfigError, DataError, ErrorCode, WardroundError
from common.learning.checkpoint import load_model, pack, sha256
from common.learning.inference import predict_stack
from common.learning.network import build_model
from common.tasks import Told

Read: TypeAlias = Callable[[Reference], Study]
Write: TypeAlias = Callable[[Path, Mapping[str, bytes]], tuple[Path, ...]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyResult:
    """One study, segmented or classified."""

    number: int  # from 1, in the order of `find_images`
    files: tuple[Path, ...]
    slices: int  # a picture is one slice
    voxels: dict[str, int]  # by class, on the study's own grid; nothing where it was classified
    seconds: Seconds
    notes: tuple[str, ...] = ()
    told: Told | None = None  # of the image as a whole, where it was classified


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
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the results."""
        return tuple(f"study {study.number}: {note}" for study in self.studies for note in study.notes)

    @property
    def latency(self) -> tuple[Latency, ...]:
        """Reading, network, writing and all of them; empty when no study was segmented."""
        return latency_of(self.studies)


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A model ready for use. reports: whether the result of a DICOM study has a report and a picture in DICOM too."""

    network: nn.Module
    run: RunConfig
    sha256: str
    device: torch.device
    reports: bool = False


def predict_study(
    model: Path,
    study: Path,
    out: Path,
    *,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    personal: Personal | None = None,
    reports: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Segment, or classify, every study at a path.

    Args:
        model: a run's folder, or its model.safetensors with model.json beside it.
        study: a NIfTI file, a picture, or a folder of DICOM series, volumes or pictures.
        out: receives the results; in a folder per study when there are several.
        device: where the network runs: "cpu", "cuda", or "auto" for cuda where there is one.
        overwrite: replace results that are there already.
        personal: what a site keeps of its own, which is used instead; None: the model as it is.
        reports: whether the result of a DICOM study has a report and a picture in DICOM too.
        progress: called with (studies done, studies), first with 0.

    Raises:
        ConfigError: the model cannot be loaded, or `out` cannot be written or holds results already.
        DataError: there is no study at the path, or only one and it cannot be segmented.
    """
    start = time.perf_counter()
    segmenter = load_predictor(model, device, personal, reports=reports)
    check_apart(study, out)
    with reading(segmenter.run) as (find, read):
        references = find(study.absolute(), None)
        folders = [out / f"{number:03}" for number in range(1, len(references) + 1)] if len(references) > 1 else [out]
        if not overwrite:
            refuse_to_overwrite(references, folders, segmenter.run, reports=reports)
        if len(references) > 1:
            write_index(out, references, study.absolute())
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


def load_segmenter(
    path: Path, device: str | torch.device, *, must_draw: bool = True, personal: Personal | None = None
) -> Segmenter:
    """Load a model and let it run once.

    Args:
        path: as for `predict_study`.
        device: as for `predict_study`.
        personal: as for `predict_study`.
        must_draw: whether one that answers for images as a whole is refused.

    Raises:
        ConfigError: it cannot be loaded, or there is no such device.
    """
    run, state, manifest = load_model(path)
    digest = manifest.sha256
    if personal is not None:
        state = overlaid(state, personal(manifest.run_hash))
        digest = sha256(pack(state))
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
    return Segmenter(network.to(chosen).eval(), run, digest, chosen)


def load_predictor(
    path: Path, device: str | torch.device, personal: Personal | None = None, *, reports: bool = False
) -> Segmenter:
    """See `load_segmenter`; a model that classifies regions is refused, for nothing says where there are any."""
    segmenter = load_segmenter(path, device, must_draw=False, personal=personal)
    task = segmenter.run.task
    if not (task.DRAWS or task.TELLS):
        raise ConfigError(f"the model answers {task.kind}, which draws nothing into an image, nor tells of it.")
    if task.of_regions:
        raise ConfigError(
            "the model tells classes of marked regions apart, and a study for prediction has no marks. Predict with a "
            "model that segments, or that classifies images."
        )
    return replace(segmenter, reports=reports)


def predict_one(
    segmenter: Segmenter,
    read: Read,
    reference: Reference,
    folder: Path,
    stem: str,
    *,
    number: int = 1,
    wanted: Collection[str] | None = None,
    write: Write = write_result,
) -> StudyResult:
    """Segment, or classify, one study and write its files.

    Args:
        segmenter: the model.
        read: reads the study.
        reference: the study.
        folder: receives the files.
        stem: what their names start with; "" for names that say nothing.
        number: of the study, for the result.
        wanted: names of the files that are made, of those that there could be; None: all.
        write: writes them.

    Raises:
        DataError: the study cannot be used; nothing was written.
        ConfigError: DISK_FULL, the files cannot be written.
    """
    began = time.perf_counter()
    study = read(reference)
    have_read = time.perf_counter()
    run = segmenter.run
    wishes: Any = {"run": run, "model_sha256": segmenter.sha256, "wanted": wanted, "reports": segmenter.reports}
    labels: NDArray[np.uint8] | None = None
    told: Told | None = None
    try:
        check_fits(study, run)
        if run.task.DRAWS:
            labels = _segment(segmenter, study)
            have_answer = time.perf_counter()
            contents = encode(reference, stem, study, labels, **wishes)
        else:
            told = run.task.tell(_answers(segmenter, study)[0], run.data.classes)
            have_answer = time.perf_counter()
            contents = encode_told(reference, stem, study, told, **wishes)
    except WardroundError:
        raise
    except Exception as error:
        # Whatever one study provokes must not stop the others, nor a service. Its text may quote a header.
        raise DataError(
            f"the study met an unexpected {type(error).__name__}. Report that, and take the study out.",
            ErrorCode.INTERNAL,
        ) from error
    files = write(folder, contents)
    seconds = Seconds(have_read - began, have_answer - have_read, time.perf_counter() - have_answer)
    notes = _notes(study, labels, run)
    return StudyResult(number, files, _slices(study), _voxels(labels, run), seconds, notes, told)


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
    labels, shape, way = _answers(segmenter, study)
    return restore(labels.reshape(shape).to(torch.uint8), way)


def _answers(segmenter: Segmenter, study: Study) -> tuple[torch.Tensor, torch.Size, Way]:
    """What the task says of each sample (S, ...), the prepared image's shape (*sp), and the way back from it."""
    run = segmenter.run
    with within_memory():
        image, _, way = preprocess(study, run)
        samples = as_samples(image, run.model.dims)
        return predict_stack(segmenter.network, samples, run, segmenter.device), image.shape[1:], way


def _voxels(labels: NDArray[np.uint8] | None, run: RunConfig) -> dict[str, int]:
    if labels is None:
        return {}
    counts = labelmap.counts(labels, overlap=run.task.overlaps)
    return {name: int(counts[k]) for k, name in enumerate(run.data.classes, start=1)}


def _notes(study: Study, labels: NDArray[np.uint8] | None, run: RunConfig) -> tuple[str, ...]:
    notes = []
    if labels is not None and not labels.any():
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
    "Write",
    "check_apart",
    "check_fits",
    "load_predictor",
    "load_segmenter",
    "predict_one",
    "predict_study",
    "reading",
]
