"""One door to a site's images, whatever their format: `find` looks, `read` reads.

The reader is chosen by looking at the files, or by `kind` in site.toml.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from client.data.dicom import image_class
from client.data.read import dicom, dicom_header, dicom_series, images, layouts, mias, nifti
from client.data.read.beside import with_label_maps
from client.data.read.pairs import has_suffix
from client.data.study.labels import Vocabulary
from client.data.study.listing import NOT_LISTED, Listing, files_under, list_folder
from client.data.study.study import NO_IMAGE, Found, Kind, Reference, Study
from common.config import SourceConfig
from common.errors import ConfigError, DataError, ErrorCode

_log = logging.getLogger(__name__)


def find(source: SourceConfig, root: Path, looker: dicom_series.Looker = dicom_header.look_at_all) -> Found:
    """List the studies of a source without reading pixels, in the order of patient and key.

    Args:
        source: where and how to look.
        root: folder that a relative path starts from.
        looker: reads the headers of DICOM files.

    Raises:
        ConfigError: folder, CSV, column or every named patient not there, or a pattern that is none.
    """
    folder = folder_of(source, root)
    kind = source.kind or kind_of(source, folder)
    _check_class(source, kind)
    listing = list_folder(folder)
    if kind is None:
        return Found((), +Counter({NO_IMAGE: len(listing.files), **listing.unseen}))
    if kind == "dicom":
        found = with_label_maps(dicom_series.find(source, folder, looker), listing.files, folder)
    else:
        found = _reader(kind).find(source, folder)
    if source.patients:
        _check_patients(source, found)
    wanted = [
        replace(reference, labels_checked=source.labels_checked, class_attribute=source.class_attribute)
        for reference in found.references
        if not source.patients or reference.patient in source.patients
    ]
    ordered = tuple(sorted(wanted, key=lambda reference: (reference.patient, reference.key)))
    return replace(found, references=ordered, left_out=Counter(found.left_out) + Counter(listing.unseen))


def folder_of(source: SourceConfig, root: Path) -> Path:
    """The folder of a source.

    Raises:
        ConfigError: it is not there.
    """
    folder = root / Path(source.path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"the data folder {source.path!r} does not exist. Set path of [[data]] in site.toml to a folder; "
            "a relative path starts at the file that names it."
        )
    return folder


def kind_of(source: SourceConfig, folder: Path) -> Kind | None:
    """The reader for a folder: by its CSV, by mini-MIAS' table, else by its files; pictures may be others' previews."""
    if source.csv is not None:
        return "images"
    if mias.is_archive(folder):
        return "mias"
    within = folder / source.images
    files = files_under(within if within.is_dir() else folder) or files_under(folder)
    pictures = volumes = False
    for path in files:
        if has_suffix(path, nifti.SUFFIXES):
            if not layouts.is_label_name(path.relative_to(folder).as_posix().lower().partition(".nii")[0]):
                return "nifti"
            volumes = True
        elif has_suffix(path, images.SUFFIXES):
            pictures = True
        elif dicom_header.is_dicom(path):
            return "dicom"
    return "nifti" if volumes else "images" if pictures else None


def table_of(source: SourceConfig, folder: Path) -> Path | None:
    """The table that a source's studies are listed in; None where its files tell. The source's kind is known."""
    if source.kind == "mias":
        return folder / mias.TABLE
    return None if source.csv is None or source.kind != "images" else folder / source.csv


def list_patients(source: SourceConfig, root: Path) -> tuple[str, ...]:
    """Raw patient ids of a source, sorted: what `SourceConfig.patients` may name."""
    references = find(source, root).references
    return tuple(sorted({reference.patient for reference in references if reference.problem is None}))


def read(reference: Reference, wanted: Vocabulary | None) -> Study:
    """Read a study, and its label in the classes that are wanted; None: without label, for prediction.

    Raises:
        DataError: with the code that says why it cannot be used.
        ConfigError: the source's label map does not fit the run.
    """
    if reference.problem is not None:
        raise DataError(str(reference.problem), reference.problem.code)
    naming = None if wanted is None else wanted.naming()
    by_word = reference.is_classed
    if naming is not None:
        naming.by_word = by_word
    # Where a word tells the class of the whole, a map is read only for who wants one.
    without_map = naming is None or (by_word and (naming.whole or not reference.labels))
    study: Study = _reader(reference.kind).read(reference, None if without_map else naming)
    if wanted is None or naming is None:
        return study
    if wanted.modality is not None and study.modality not in ("", wanted.modality):
        raise DataError(
            f"the study is {study.modality}, the run wants {wanted.modality}. "
            f"Name a folder of {wanted.modality} studies.",
            ErrorCode.UNSUPPORTED,
        )
    findings = study.findings
    if by_word and (naming.whole or naming.as_found):
        findings = naming.findings(names_told(reference))
    if wanted.whole and findings is None and study.label is not None:
        findings = tuple(int(number) for number in np.flatnonzero(np.bincount(study.label.ravel())) if number)
    if not wanted.whole and wanted.classes is not None and study.label is None:
        raise DataError(
            "the label of this image is a class of the whole, and the run wants a map of what lies where. Name masks "
            "in site.toml, or ask for a run that classifies images.",
            ErrorCode.NO_LABEL,
        )
    return replace(study, classes=naming.classes, labelling=naming.labelling, findings=findings, overlap=naming.overlap)


def names_told(reference: Reference) -> tuple[image_class.Names, ...]:
    """What the source calls the image as a whole; nothing where it tells no such thing."""
    if reference.class_attribute is not None:
        return image_class.names_in_header(reference)
    if reference.reports is not None:
        return image_class.names_in_reports(reference)
    return tuple((word,) for word in reference.words or ())


def find_images(
    path: Path, among: Sequence[Path] | None = None, looker: dicom_series.Looker = dicom_header.look_at_all
) -> tuple[Reference, ...]:
    """The studies at a path, for prediction: a NIfTI file, a picture, a DICOM file, or a folder of any one of these.

    Args:
        path: the file or folder.
        among: look at these files under the folder only.
        looker: reads the headers of DICOM files.

    Raises:
        DataError: NO_DATA, nothing there that a reader knows.
    """
    folder = path if path.is_dir() else path.parent
    listing = list_folder(path) if among is None and path.is_dir() else Listing((), ())
    files = list(among) if among is not None else list(listing.files) if path.is_dir() else [path] * path.exists()
    references = dicom_series.find_among(files, folder, None, looker, lost=listing.lost).references
    if not references and mias.is_archive(folder):
        films = mias.find(SourceConfig(path="."), folder).references
        references = tuple(film for film in films if film.images[0] in files)
    kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (("nifti", nifti.SUFFIXES), ("images", images.SUFFIXES))
    for kind, suffixes in kinds:
        # Pictures beside DICOM or NIfTI are previews.
        named = [file for file in files if has_suffix(file, suffixes) and file.is_file()]
        references = references or tuple(
            Reference(kind, "", file.relative_to(folder).as_posix(), (file,))
            for file in layouts.without_labels(named, folder, suffixes)
        )
    if not references:
        beside = "".join(f", and {count} {reason}" for reason, count in sorted(listing.unseen.items()))
        raise DataError(
            f"there is no image among {len(files)} file(s){beside}. Give a DICOM folder, a NIfTI file or a picture.",
            ErrorCode.NO_DATA,
        )
    return (
        *references,
        *(
            Reference("dicom", "", where.relative_to(folder).as_posix(), (where,), problem=_not_listed())
            for reason, where in listing.lost
            if reason == NOT_LISTED
        ),
    )


def _not_listed() -> DataError:
    return DataError(
        "a folder cannot be listed, so the studies in it were not looked at. Make it readable, or take it out.",
        ErrorCode.NOT_OPENED,
    )


def _check_class(source: SourceConfig, kind: Kind | None) -> None:
    """Refuse more than one place, or one of another kind of file, where a source says what its images show."""
    if source.class_attribute is not None:
        image_class.tag_of(source.class_attribute)
    of_dicom = {"class-attribute": source.class_attribute is not None, "class-reports": source.class_reports}
    named = [key for key, is_named in {**of_dicom, "class-column": source.class_column is not None}.items() if is_named]
    if len(named) > 1:
        raise ConfigError(
            f"site.toml names {' and '.join(named)} for one source; an image has its class from one. Choose."
        )
    if any(of_dicom.values()) and kind not in ("dicom", None):
        raise ConfigError(f"{named[0]} is for DICOM, and the source is read as {kind}. Use class-column and a CSV.")
    if source.class_column is not None and source.csv is None:
        raise ConfigError("class-column names a column of a CSV, and the source has none. Set csv in site.toml.")


def _check_patients(source: SourceConfig, found: Found) -> None:
    """Say how many of the patients that a source is kept to are not in it; without a name."""
    named = set(source.patients)
    unknown = len(named - {reference.patient for reference in found.references})
    if unknown == len(named):
        raise ConfigError(
            f"patients in site.toml names {len(named)} patient(s), and the folder holds none of them. Write them as "
            "the source does, or remove patients to use all."
        )
    if unknown:
        _log.warning(
            "%d of the %d patients named in site.toml are not in the folder. Correct them.", unknown, len(named)
        )


def _reader(kind: Kind) -> ModuleType:
    return {"dicom": dicom, "nifti": nifti, "images": images, "mias": mias}[kind]
