"""One door to a site's images, whatever their format: `find` looks, `read` reads.

The reader is chosen by looking at the files, or by `kind` in site.toml.
"""

from pathlib import Path
from types import ModuleType

from client.data import dicom, dicom_series, images, mias, nifti
from client.data.pairs import files_under, has_suffix
from client.data.study import Found, Kind, Reference, Study
from common.config import DataConfig, SourceConfig
from common.errors import ConfigError, DataError, ErrorCode


def find(source: SourceConfig, root: Path) -> Found:
    """List the studies of a source without reading pixels, in the order of patient and key.

    Args:
        source: where and how to look.
        root: folder that a relative path starts from.

    Raises:
        ConfigError: folder, CSV or column not there, or a pattern that is none.
    """
    folder = root / Path(source.path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"the data folder {source.path!r} does not exist. Set path of [[data]] in site.toml to a folder; "
            "a relative path starts at the file that names it."
        )
    kind = source.kind or _kind_of(source, folder)
    if kind is None:
        return Found((), ignored=len(files_under(folder)))
    found = _reader(kind).find(source, folder)
    wanted = [
        reference for reference in found.references if not source.patients or reference.patient in source.patients
    ]
    return Found(tuple(sorted(wanted, key=lambda reference: (reference.patient, reference.key))), found.ignored)


def list_patients(source: SourceConfig, root: Path) -> tuple[str, ...]:
    """Raw patient ids of a source, sorted: what `SourceConfig.patients` may name."""
    references = find(source, root).references
    return tuple(sorted({reference.patient for reference in references if reference.problem is None}))


def read(reference: Reference, data: DataConfig) -> Study:
    """Read a study with its label, mapped to the run's classes.

    Raises:
        DataError: with the code that says why it cannot be used.
        ConfigError: the source's label map does not fit the run.
    """
    if reference.problem is not None:
        raise DataError(str(reference.problem), reference.problem.code)
    study: Study = _reader(reference.kind).read(reference, data)
    if study.modality not in ("", data.modality):
        raise DataError(
            f"the study is {study.modality}, the run wants {data.modality}. Name a folder of {data.modality} studies.",
            ErrorCode.UNSUPPORTED,
        )
    return study


def find_images(path: Path) -> tuple[Reference, ...]:
    """The studies at a path, for prediction: a NIfTI file, a picture, a DICOM file, or a folder of any one of these.

    Raises:
        DataError: NO_DATA, nothing there that a reader knows.
    """
    files = files_under(path) if path.is_dir() else [path]
    folder = path if path.is_dir() else path.parent
    references = dicom_series.find_among(files, folder, None).references
    kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (("nifti", nifti.SUFFIXES), ("images", images.SUFFIXES))
    for kind, suffixes in kinds:
        # Pictures beside DICOM or NIfTI are previews.
        references = references or tuple(
            Reference(kind, "", file.relative_to(folder).as_posix(), (file,))
            for file in files
            if has_suffix(file, suffixes) and file.is_file()
        )
    if not references:
        raise DataError(
            f"there is no image among {len(files)} file(s). Give a DICOM folder, a NIfTI file or a picture.",
            ErrorCode.NO_DATA,
        )
    return references


def read_image(where: Path | Reference) -> Study:
    """Read one study without label, for prediction; `files` and `affine` are what writing back needs.

    Raises:
        DataError: not readable, or the path holds no study or more than one (then use `find_images`).
    """
    if isinstance(where, Path):
        references = find_images(where)
        if len(references) > 1:
            raise DataError(
                f"the folder holds {len(references)} studies; expected one. Give the folder of one study.",
                ErrorCode.UNSUPPORTED,
            )
        where = references[0]
    if where.problem is not None:
        raise DataError(str(where.problem), where.problem.code)
    study: Study = _reader(where.kind).read(where, None)
    return study


def _reader(kind: Kind) -> ModuleType:
    return {"dicom": dicom, "nifti": nifti, "images": images, "mias": mias}[kind]


def _kind_of(source: SourceConfig, folder: Path) -> Kind | None:
    """The reader for a folder: by its CSV, by mini-MIAS' table, else by the first file that one of them knows."""
    if source.csv is not None:
        return "images"
    if mias.is_archive(folder):
        return "mias"
    within = folder / source.images
    for path in files_under(within if within.is_dir() else folder):
        if dicom_series.is_dicom(path):
            return "dicom"
        if has_suffix(path, nifti.SUFFIXES):
            return "nifti"
        if within.is_dir() and has_suffix(path, images.SUFFIXES):
            return "images"
    return None
