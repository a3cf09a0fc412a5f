"""Which columns of a CSV beside the images say what: by the files that its cells name, then by the columns' names.

Only what a person has not said is guessed, and all that was guessed is told. Columns of files are known by their cells,
which are files that are there; so a table that lists none (participants, scores of others) is left alone.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.read.layouts import is_label_name
from client.data.study.table import Row, read_table
from common.config import SourceConfig
from common.errors import ConfigError

_LOOKED_AT = 50  # rows
_FILES = 0.5  # share of the cells that are files, in a column of files
# Names of columns, without case and signs.
_PATIENT = (
    *("patient", "patientid", "patientname", "subject", "subjectid", "participant", "participantid", "person"),
    *("personid", "pid", "woman", "man", "individual", "id", "case", "caseid"),
)
_SITE = (
    *("site", "siteid", "sitename", "hospital", "hospitalid", "centre", "center", "centreid", "centerid", "clinic"),
    *("institution", "institute", "scanner", "vendor"),
)
_CLASS = ("class", "diagnosis", "finding", "category", "target", "grade", "label")
_MASK = ("mask", "label", "seg", "segmentation", "groundtruth", "gt", "annotation", "manual", "roi")
_REGION = ("fov", "region", "fieldofview")
_IMAGE = ("image", "img", "file", "filename", "path", "filepath", "imagepath", "scan", "volume", "picture")


@dataclass(frozen=True)
class Table:
    """source: with the table and its columns, where there is one. guessed: what was taken from it, in sentences."""

    source: SourceConfig
    guessed: tuple[str, ...] = ()
    site_column: str | None = None


def with_table(source: SourceConfig, folder: Path) -> Table:
    """A source with the CSV that lists its images; as it is where there is none.

    Raises:
        ConfigError: several tables may be meant, or the one that was named has no column of images.
    """
    if source.csv is not None:
        columns, rows = read_table(folder, source.csv)
        return _filled(source, source.csv, columns, rows, folder)
    if source.kind not in (None, "images") or (source.images, source.labels) != ("images", "labels"):
        return Table(source)
    listing = [
        (path.name, columns, rows)
        for path in sorted(folder.glob("*.[cC][sS][vV]"))
        for columns, rows in [read_table(folder, path.name)]
        if _columns_of_files(columns, rows, folder)
    ]
    if len(listing) > 1:
        raise ConfigError(
            f"{len(listing)} tables in the folder name images: {', '.join(name for name, *_ in listing)}. Say which "
            "one lists them: --csv NAME."
        )
    return _filled(source, *listing[0], folder) if listing else Table(source)


def _filled(source: SourceConfig, name: str, columns: Sequence[str], rows: Sequence[Row], folder: Path) -> Table:
    files = _columns_of_files(columns, rows, folder)
    changes: dict[str, object] = {"csv": name}
    guessed = [f"the images are those that {name} lists"]

    def take(key: str, column: str | None, what: str) -> None:
        if column is not None and getattr(source, key) not in columns and not _said(source, key):
            changes[key] = column
            guessed.append(f"the column {column!r} of {name} names {what}")

    free = [one for one in files if one not in (source.mask_column, source.region_column)]
    image = source.image_column if source.image_column in columns else _called(free, _IMAGE) or _first(free, files)
    if image is None:
        raise ConfigError(
            f"no column of {name} names files that are there; it has {', '.join(columns) or 'none'}. Say which one "
            "names the images: --image-column COLUMN. Paths in it are relative to the folder."
        )
    take("image_column", image, "the images")
    others = {column: cells for column, cells in files.items() if column != image}
    region = _called(others, _REGION)
    take("region_column", region, "the field of view, which alone is scored by `evaluate`")
    mask = _called([one for one in others if one != region], _MASK) or _mask_among(others)
    take("mask_column", mask, "the masks")
    patient = _called(columns, _PATIENT)
    if not _said(source, "patient_column") and source.patient_column != patient:
        changes["patient_column"] = patient or image
        guessed.append(f"the column {patient or image!r} of {name} names the patients")
    no_mask = source.mask_column not in columns and mask is None and not _said(source, "mask_column")
    if no_mask and source.class_column is None:
        take("class_column", _class_in(columns, rows, files), "the class of each image as a whole")
    return Table(source.model_copy(update=changes), tuple(guessed), _called(columns, _SITE))


def _said(source: SourceConfig, key: str) -> bool:
    """Whether a person named the column; one that the table has not is then refused where its rows are read."""
    return bool(getattr(source, key) != SourceConfig.model_fields[key].default)


def _columns_of_files(columns: Sequence[str], rows: Sequence[Row], folder: Path) -> Mapping[str, list[str]]:
    """Columns whose cells are files that are there, with the cells looked at."""
    found = {}
    for column in dict.fromkeys(columns):
        cells = [cell for row in rows[:_LOOKED_AT] if (cell := row.cells.get(column, ""))]
        there = sum(_is_file(folder, cell) for cell in cells)
        if cells and there > _FILES * len(cells):
            found[column] = cells
    return found


def _is_file(folder: Path, cell: str) -> bool:
    # A cell may name a mask of each class: liver=a.png|lesion=b.png.
    parts = [part.rpartition("=")[2] for part in cell.replace("\\", "/").split("|")]
    try:
        return all((folder / part).is_file() for part in parts)
    except (OSError, ValueError):  # no path at all
        return False


def _called(columns: Collection[str], names: Sequence[str]) -> str | None:
    """The column that has one of these names, the first name first."""
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(list(columns))}
    return next((plain[name] for name in names if name in plain), None)


def _first(columns: Sequence[str], files: Mapping[str, list[str]]) -> str | None:
    """The first column whose files are not named as labels."""
    return next((one for one in columns if not _of_labels(files[one])), next(iter(columns), None))


def _mask_among(files: Mapping[str, list[str]]) -> str | None:
    return next((column for column, cells in files.items() if _of_labels(cells)), None)


def _of_labels(cells: Sequence[str]) -> bool:
    return all(is_label_name(cell.replace("\\", "/").rpartition(".")[0]) for cell in cells)


def _class_in(columns: Sequence[str], rows: Sequence[Row], files: Mapping[str, list[str]]) -> str | None:
    """A column of few words, by its name."""
    column = _called([one for one in columns if one not in files], _CLASS)
    words = set() if column is None else {row.cells.get(column, "") for row in rows}
    return column if 1 < len(words) <= max(2, len(rows) // 2) else None


__all__ = ["Table", "with_table"]
