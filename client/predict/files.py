"""A segmentation as files, in the format its study came in.

    DICOM series              segmentation.dcm     DICOM SEG on the images of the series, one segment per class
      where reports are wanted
                              report.dcm           DICOM SR (TID 1500), see `client.predict.dicom.report`
                              capture.dcm          the overlay as a Secondary Capture
    NIfTI volume              labels.nii.gz        label map with the affine of the volume
    PGM                       labels.pgm           8-bit grey, the value is the label
    other picture (PNG, ...)  labels.png           8-bit palette, the value is the label
    all                       overlay.png          see `client.predict.overlay`

Where classes overlap one value cannot say all that a voxel is: then each class has a label file of its own, such as
labels-liver.nii.gz, with the class's number in it; a DICOM SEG has overlapping segments.

Of what a model says of an image as a whole there is scores.json (`client.predict.scores`), and report.dcm.

Nothing from a DICOM header enters a file name. A file that carries a name of its own may lend it: scan-labels.nii.gz.
"""

import datetime
import gzip
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from client.data.dicom.frames import frame_order
from client.data.study.drawing import COLOURS
from client.data.study.study import Reference, Study, parsing, quiet
from client.predict.dicom.capture import Captures
from client.predict.dicom.report import Said, extents, write_measured, write_said
from client.predict.dicom.segmentation import Author, write_segmentation
from client.predict.overlay import draw_overlay, png, shown_slices
from client.predict.partial import partial_folder, remove_leftovers
from client.predict.scores import encode_scores, scores_name
from common import labelmap
from common.config import RunConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.labelmap import marks
from common.system.files import move, write_atomically, write_private
from common.tasks import Told

# Which number is which study, beside the results of several.
INDEX_NAME = "studies.json"
# Beside a segmentation or an answer, in DICOM.
REPORT_NAME, CAPTURE_NAME = "report.dcm", "capture.dcm"

# Added to the number of the study's series; maps that explain a model have 2000.
_SEGMENTATION, _REPORT, _CAPTURE = 1000, 1001, 1002


def stem_of(reference: Reference) -> str:
    """The name a study's file has, for the names of its results; "" for DICOM, whose names say nothing."""
    if reference.kind == "dicom":
        return ""
    return reference.images[0].name.removesuffix(".gz").rpartition(".")[0]


def result_names(reference: Reference, stem: str, run: RunConfig, *, reports: bool = False) -> tuple[str, ...]:
    """File names of a study's result.

    Args:
        reference: where the study came from.
        stem: see `stem_of`.
        run: of the model.
        reports: whether a DICOM study has a report and a picture too.

    Returns:
        Of a segmentation: one file or one for each class, the report and the picture, and, the last, its overlay. Of
        what is said of an image as a whole: its scores, and the report.
    """
    prefix = f"{stem}-" if stem else ""
    reports = reports and reference.kind == "dicom"
    if not run.task.DRAWS:
        return (scores_name(stem), *([REPORT_NAME] if reports else []))
    name, kind = _label_name(reference)
    of_classes = run.data.classes if run.task.overlaps and reference.kind != "dicom" else ()
    names = [f"{name}-{one}.{kind}" for one in of_classes] or [f"{name}.{kind}"]
    if reports:
        names += [REPORT_NAME, CAPTURE_NAME]
    return (*(f"{prefix}{one}" for one in names), f"{prefix}overlay.png")


def encode(
    reference: Reference,
    stem: str,
    study: Study,
    labels: NDArray[np.uint8],
    *,
    run: RunConfig,
    model_sha256: str,
    wanted: Collection[str] | None = None,
    reports: bool = False,
) -> dict[str, bytes]:
    """The files of a segmentation: name -> content.

    Args:
        reference: where the study came from; it decides the format.
        stem: see `stem_of`; "" for names that say nothing.
        study: the study; `files` are read again for what the result repeats of their headers.
        labels: (*sp) on the study's grid.
        run: names the classes and the window of the overlay.
        model_sha256: of the model, hex; a DICOM SEG names it.
        wanted: names of those that are made; None: all.
        reports: whether a DICOM study has a report and a picture too.
    """
    names = [name for name in result_names(reference, stem, run, reports=reports) if wanted is None or name in wanted]
    contents: dict[str, bytes] = {}
    *drawn, overlay = result_names(reference, stem, run)
    picture = b""
    if {overlay, CAPTURE_NAME} & set(names):
        window, overlap = run.preprocessing.window, run.task.overlaps
        picture = draw_overlay(study, labels, run.data.classes, window, overlap=overlap)
    with parsing("study's header"):
        if reference.kind == "dicom":
            contents |= _of_dicom(study, labels, picture, names, run=run, model_sha256=model_sha256)
        else:
            for number, name in enumerate(drawn, start=1):
                if name in names:
                    own = run.task.overlaps
                    values = marks(labels, number, overlap=True) * np.uint8(number) if own else labels
                    contents[name] = _labels(name, study, values)
    if overlay in names:
        contents[overlay] = picture
    return contents


def encode_told(
    reference: Reference,
    stem: str,
    study: Study,
    told: Told,
    *,
    run: RunConfig,
    model_sha256: str,
    wanted: Collection[str] | None = None,
    reports: bool = False,
) -> dict[str, bytes]:
    """The files of what is said of an image as a whole; arguments as for `encode`."""
    contents = {}
    for name in result_names(reference, stem, run, reports=reports):
        if wanted is None or name in wanted:
            if name == REPORT_NAME:
                with parsing("study's header"), quiet():
                    contents[name] = _saved(_report_of(study, told, model_sha256))
            else:
                contents[name] = encode_scores(told, run, model_sha256)
    return contents


def write_result(folder: Path, contents: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write the files of a result: all of them, or none.

    Raises:
        ConfigError: DISK_FULL, the folder does not take them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with partial_folder(folder) as partial:
            for name, data in contents.items():
                write_atomically(partial / name, data)
            for name in contents:
                move(partial / name, folder / name)
    except OSError as error:
        raise ConfigError(
            f"a result cannot be written ({error.strerror}). Give an --out that is writable and has space.",
            ErrorCode.DISK_FULL,
        ) from error
    return tuple(folder / name for name in contents)


def refuse_to_overwrite(
    references: Sequence[Reference], folders: Sequence[Path], run: RunConfig, *, reports: bool = False
) -> None:
    """Stop before results of an earlier prediction are replaced.

    Raises:
        ConfigError: there are some.
    """
    for folder in folders:
        remove_leftovers(folder)
    if len(references) == 1:
        stem = stem_of(references[0])
        names = result_names(references[0], stem, run, reports=reports)
        there = sum((folders[0] / name).exists() for name in names)
    else:
        # Whatever a numbered folder holds is of an earlier batch, whose numbers may mean other studies.
        there = sum(folder.is_dir() and any(folder.iterdir()) for folder in folders)
    if there:
        raise ConfigError(
            f"--out holds results of an earlier prediction already ({there}). Give another --out, or --overwrite."
        )


def write_index(out: Path, references: Sequence[Reference], root: Path) -> None:
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


def _label_name(reference: Reference) -> tuple[str, str]:
    """Name and ending of a study's segmentation."""
    match reference.kind:
        case "dicom":
            return "segmentation", "dcm"
        case "nifti":
            return "labels", "nii.gz"
        case "images" | "mias":
            return "labels", "pgm" if reference.images[0].suffix.lower() == ".pgm" else "png"


def _labels(name: str, study: Study, labels: NDArray[np.uint8]) -> bytes:
    match name.rpartition(".")[2]:
        case "gz":
            return _nifti(study, labels)
        case "pgm":
            return _pgm(labels)
        case _:
            return _palette_png(labels)


def _of_dicom(
    study: Study,
    labels: NDArray[np.uint8],
    picture: bytes,
    names: Collection[str],
    *,
    run: RunConfig,
    model_sha256: str,
) -> dict[str, bytes]:
    """The DICOM objects among the names; a report refers to the segmentation, which is made for it if need be."""
    contents: dict[str, bytes] = {}
    wanted = [name for name in names if name.endswith(".dcm")]
    if not wanted:
        return contents
    now = datetime.datetime.now()
    overlap, classes = run.task.overlaps, run.data.classes
    with quiet():
        headers = _headers(study)
        sources = list(headers.values())
        author = Author("Wardround", version=model_sha256)
        segmentation = write_segmentation(
            sources,
            _in_frame_order(labels, sources),
            classes,
            author,
            created=now,
            series_number=_series(sources, _SEGMENTATION),
            description="Wardround segmentation",
            overlap=overlap,
        )
        for name in wanted:
            if name == REPORT_NAME:
                found = labelmap.counts(labels, overlap=overlap)
                measured = extents(study, {one: int(found[k]) for k, one in enumerate(classes, start=1)})
                number = _series(sources, _REPORT)
                report = write_measured(sources, segmentation, measured, author, created=now, series_number=number)
                contents[name] = _saved(report)
            elif name == CAPTURE_NAME:
                captures = Captures(study, headers, series_number=_CAPTURE, created=now)
                shown = shown_slices(labels, overlap=overlap) if labels.ndim == 3 else [0]
                pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
                contents[name] = _saved(captures.make(pixels, shown, "Wardround segmentation, as a picture"))
            else:
                contents[name] = _saved(segmentation)
    return contents


def _report_of(study: Study, told: Told, model_sha256: str) -> Dataset:
    sources = list(_headers(study).values())
    said = [Said(name, chance, name in told.answer) for name, chance in told.chances.items()]
    if told.none is not None:
        said.append(Said(None, told.none, not told.answer))
    return write_said(
        sources,
        said,
        Author("Wardround", version=model_sha256),
        created=datetime.datetime.now(),
        series_number=_series(sources, _REPORT),
    )


def _headers(study: Study) -> dict[Path, Dataset]:
    """By file; one of many frames is named once for each of its slices."""
    return {file: pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(study.files)}


def _series(sources: Sequence[Dataset], offset: int) -> int:
    return offset + max(int(sources[0].get("SeriesNumber") or 0), 0)


def _saved(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _in_frame_order(labels: NDArray[np.uint8], sources: Sequence[Dataset]) -> NDArray[np.uint8]:
    """The slices of a study of one multi-frame image, in the order of its frames; of single frames, as they are."""
    if all(int(source.get("NumberOfFrames") or 1) == 1 for source in sources):
        return labels
    if len(sources) > 1:
        raise DataError(
            f"the volume is spread over {len(sources)} multi-frame images, and a segmentation can refer to one. "
            "Export it as one image, or as single-frame images.",
            ErrorCode.UNSUPPORTED,
        )
    return labels[np.argsort(frame_order(sources[0]))]


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
    return png(image)


def _pgm(labels: NDArray[np.uint8]) -> bytes:
    # Netpbm's raw form: magic, width, height, largest value, then the rows from the top.
    return b"P5\n%d %d\n255\n" % (labels.shape[1], labels.shape[0]) + labels.tobytes()


__all__ = [
    "CAPTURE_NAME",
    "INDEX_NAME",
    "REPORT_NAME",
    "encode",
    "encode_told",
    "refuse_to_overwrite",
    "result_names",
    "stem_of",
    "write_index",
    "write_result",
]
