"""Photographs and other pictures with a mask: PNG, JPEG, PGM, TIFF, BMP; paired by a CSV or by file name.

Axes (y, x) with the EXIF orientation applied; intensities as stored, 0-255 for 8 bits, and colour of 16 bits with its
upper 8. A mask has the size of the image as it is seen; where only one of the two says how it is turned and their sizes
do not tell, they are refused. Transparency of an image is ignored, in a mask it is refused. With one class and no label
map any one value beside 0 is the class (0/1 and 0/255 are both usual); a mask with more is asked about. A table may
name a mask of each class, "liver=a.png|lesion=b.png": then all but 0 of a mask is that class, and masks may overlap.
"""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client.data.read.nifti import SUFFIXES as NIFTI_SUFFIXES
from client.data.read.pairs import find_pairs, has_suffix, lacking, own_label, patient_of
from client.data.study.label_checks import check_not_the_image, check_one_value
from client.data.study.labels import Naming
from client.data.study.listing import files_under
from client.data.study.pulse import watched
from client.data.study.study import NO_IMAGE, NOT_IN_TABLE, Found, Kind, Reference, Study, parsing
from client.data.study.table import Row, read_table
from common.config import SourceConfig
from common.errors import ConfigError, DataError, ErrorCode

SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (".gif",)  # of masks alone: 256 colours make no picture

_FORMATS = ("PNG", "JPEG", "PPM", "TIFF", "BMP")
_MASK_FORMATS = (*_FORMATS, "GIF")
_BETWEEN = r"[|;]"  # classes of an image that shows several
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # one channel of more than 8 bits
_GREY_MODES = ("1", "L", "LA", *_DEEP_MODES)
_MODES = (*_GREY_MODES, "P", "PA", "RGB", "RGBA", "YCbCr")
_JPEG = ("JPEG", "MPO")  # MPO: a telephone's JPEG with previews behind it; the first is the picture
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = 1
_QUARTER_TURNS = (5, 6, 7, 8)


def find(source: SourceConfig, folder: Path) -> Found:
    """The images of a source, from its CSV or its two sub-folders.

    Raises:
        ConfigError: the CSV, a column or a sub-folder is missing.
    """
    if source.csv is None:
        return find_pairs("images", source, folder, SUFFIXES, MASK_SUFFIXES)
    files = set(files_under(folder))
    rows: dict[Path | None, list[Row]] = {}
    for row in _rows(source, folder):
        place = _place(folder, row.cells[source.image_column])
        rows.setdefault(None if place is None else place.resolve(), []).append(row)
    references = [_reference(source, folder, same, files) for same in rows.values()]
    named = {path.resolve() for one in references for path in (*one.files, folder / str(source.csv))}
    others = [path for path in files if path.resolve() not in named]
    pictures = sum(has_suffix(path, SUFFIXES + MASK_SUFFIXES + NIFTI_SUFFIXES) for path in others)
    return Found(tuple(references), +Counter({NOT_IN_TABLE: pictures, NO_IMAGE: len(others) - pictures}))


def read(reference: Reference, naming: Naming | None) -> Study:
    """Read a picture, and its mask when its classes are wanted.

    Raises:
        DataError: UNREADABLE, NO_LABEL, GEOMETRY_MISMATCH, LABEL_UNKNOWN or UNSUPPORTED.
    """
    path = reference.images[0]
    with parsing("picture"):
        picture, turn = _open(path)
        pixels = _pixels(picture)
    for other in reference.images[1:]:
        with parsing("picture"):
            more, other_turn = _open(other)
            channel = _pixels(more)
        if channel.shape[:2] != pixels.shape[:2] or other_turn != turn:
            raise DataError("the channels of this image differ in size.", ErrorCode.GEOMETRY_MISMATCH)
        pixels = np.concatenate([pixels, channel], axis=2)
    if reference.channel is not None:
        if problem := lacking(reference.channel, pixels.shape[2]):
            raise problem
        pixels = pixels[..., reference.channel, np.newaxis]
    label = None if naming is None else _label(reference, pixels, turn, naming)
    image = np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32)
    region = None if naming is None or reference.region is None else _region(reference.region, pixels.shape[:2], turn)
    return Study(image, label, None, None, "", reference.patient, reference.key, (path,), region=region)


def _label(reference: Reference, pixels: NDArray[Any], turn: int, naming: Naming) -> NDArray[np.uint8]:
    if not reference.labels:
        raise DataError("the picture has no mask. Add the mask file, or take the picture out.", ErrorCode.NO_LABEL)
    masks = []
    for path in watched(reference.labels):
        masks.append(_drawn(path, pixels.shape[:2], turn))
        check_not_the_image(masks[-1], pixels[..., 0])
    if reference.label_names:
        checked, named = reference.labels_checked, enumerate(zip(masks, reference.label_names, strict=True), start=1)
        parts = [naming.of_mask(mask, name, ordinal, checked=checked) for ordinal, (mask, name) in named]
        return naming.together(parts, checked=checked)
    (values,) = masks
    if naming.any_value:
        if not reference.labels_checked:
            check_one_value(values)
        return np.asarray(values != 0).astype(np.uint8)
    return naming.numbers(values)


def _region(path: Path, shape: tuple[int, ...], turn: int) -> NDArray[np.uint8]:
    """The field of view: 1 inside."""
    inside = np.asarray(_drawn(path, shape, turn) != 0).astype(np.uint8)
    if not inside.any():
        raise DataError(
            "the mask of the picture's field of view is empty. Export it again, or leave out region-column.",
            ErrorCode.IMPLAUSIBLE,
        )
    return inside


def _drawn(path: Path, shape: tuple[int, ...], turn: int) -> NDArray[Any]:
    """A mask (*sp) that was drawn on a picture of a shape, turned as the picture is."""
    with parsing("mask"):
        mask, mask_turn = _open(path, _MASK_FORMATS)
        values = _mask(mask)
    if values.shape != shape:
        raise DataError(
            f"the mask has {values.shape[0]} x {values.shape[1]} pixels, the picture {shape[0]} x {shape[1]}. "
            "Export the mask in the picture's size.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    if turn != mask_turn and (shape[0] == shape[1] or not {turn, mask_turn} & {*_QUARTER_TURNS}):
        raise DataError(
            "only one of picture and mask says that it is to be turned for viewing, and the sizes do not tell whether "
            "the mask was drawn on the turned picture. Save both upright.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return values


def _pixels(image: Image.Image) -> NDArray[Any]:
    """(H, W, C) with C = 1 or 3."""
    if image.mode not in ("L", "RGB", *_DEEP_MODES):
        image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _mask(image: Image.Image) -> NDArray[Any]:
    """(H, W); a palette image gives its indices (but a GIF its grey levels), a two-valued one 0 and 255."""
    if "A" in image.getbands() and np.asarray(image.getchannel("A")).min() < 255:
        raise DataError(
            "the mask is transparent in places, so its values do not tell what it marks. Export it as grey levels.",
            ErrorCode.UNSUPPORTED,
        )
    if image.format == "GIF":  # the order of its palette is the program's that wrote it, and says nothing
        kind, image = image.format, image.convert("RGB")
        image.format = kind
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    values = np.asarray(image)
    if values.ndim == 3:
        if not (values[..., 1:3] == values[..., :1]).all():
            raise DataError(
                "the mask is in colour; expected one value per pixel. Export it as grey levels.", ErrorCode.UNSUPPORTED
            )
        values = values[..., 0]
    # JPEG smears the edge of a mask over all grey levels.
    return np.where(values > 127, 255, 0).astype(np.uint8) if image.format in _JPEG else values


def _open(path: Path, formats: tuple[str, ...] = _FORMATS) -> tuple[Image.Image, int]:
    """A picture as it is to be seen, and the EXIF orientation that it had in its file (1: upright)."""
    with _announced(path, formats) as opened:
        if opened.mode not in _MODES:
            raise DataError(
                f"the file has the colour mode {opened.mode}; expected grey or red, green, blue. Export it as PNG.",
                ErrorCode.UNSUPPORTED,
            )
        if getattr(opened, "n_frames", 1) > 1 and opened.format not in _JPEG:
            raise DataError(
                "the file holds several pictures; expected one. Export each to a file.", ErrorCode.UNSUPPORTED
            )
        kind, turn = opened.format, int(opened.getexif().get(_EXIF_ORIENTATION, _UPRIGHT))
        opened.load()
        image = ImageOps.exif_transpose(opened)
    image.format = kind
    return image, turn if turn in range(2, 9) else _UPRIGHT


def _announced(path: Path, formats: tuple[str, ...]) -> Image.Image:
    """The picture before it is decoded, if it is of a size that can be."""
    try:
        return Image.open(path, formats=formats)
    except Image.DecompressionBombError as error:
        raise DataError(
            "the picture has more pixels than are believable. Export it smaller, or take it out.",
            ErrorCode.OUT_OF_MEMORY,
        ) from error


def _reference(source: SourceConfig, folder: Path, rows: Sequence[Row], files: Collection[Path]) -> Reference:
    """The study of the rows that name one image, which should be one row."""
    number, row = rows[0].line, rows[0].cells
    patient, problem = patient_of(row[source.patient_column], source.patient_pattern)
    image, region = (
        _place(folder, row.get(column or "", "")) for column in (source.image_column, source.region_column)
    )
    named = _named_masks(folder, row.get(source.mask_column, ""))
    masks = tuple(path for _, path in named)
    problem = problem or _row_problem(source, rows)
    if image is None:
        problem, image = _absent(source.image_column, number, "it names no picture"), folder / str(source.csv)
    elif not image.is_file():
        problem = _absent(source.image_column, number, _how_absent(image, files))
    elif absent := next((path for path in masks if not path.is_file()), None):
        problem = _absent(source.mask_column, number, _how_absent(absent, files), ErrorCode.NO_LABEL)
    elif len(names := [name for name, _ in named if name]) > len(set(names)):
        problem = DataError(
            f"line {number} of the table, column {source.mask_column}: two masks have one name. Join them in one, or "
            "keep the one that is right.",
            ErrorCode.UNSUPPORTED,
        )
    elif source.region_column is not None:
        problem = problem or _region_problem(region, image, source.region_column, number, files)
    problem = problem or own_label((image,), masks)
    words = None if source.class_column is None else tuple(map(str.strip, re.split(_BETWEEN, row[source.class_column])))
    kind: Kind = "nifti" if has_suffix(image, NIFTI_SUFFIXES) else "images"
    key = row[source.image_column]
    return Reference(
        *(kind, patient, key, (image,), masks, source.label_map, problem),
        words=words,
        region=region,
        label_names=tuple(name for name, _ in named if name),
        channel=source.channel,
    )


def _row_problem(source: SourceConfig, rows: Sequence[Row]) -> DataError | None:
    """Why the rows that name one image do not say whose it is, or what it shows."""
    number = rows[0].line
    told = (source.mask_column, source.patient_column, source.class_column, source.region_column)
    if len({tuple(one.cells.get(column or "", "") for column in told) for one in rows}) > 1:
        return DataError(
            f"{len(rows)} rows of the table name the image of line {number}, with other masks or classes or for other "
            "patients. Join the masks in one, or write them in one cell (liver=a.png|lesion=b.png), and the classes "
            "too (a|b), or keep the row that is right.",
            ErrorCode.UNSUPPORTED,
        )
    if (longer := next((row.line for row in rows if row.beyond), None)) is not None:
        return DataError(
            f"line {longer} of the table has more cells than its header, so which belongs to which column is not "
            'known. Write a cell that holds the separator in quotes ("a, b").',
            ErrorCode.UNSUPPORTED,
        )
    if not rows[0].cells[source.patient_column]:
        return _absent(source.patient_column, number, "it names no patient", ErrorCode.UNSUPPORTED)
    return None


def _region_problem(
    region: Path | None, image: Path, column: str, number: int, files: Collection[Path]
) -> DataError | None:
    """What is wrong with the field of view that the table names."""
    if has_suffix(image, NIFTI_SUFFIXES):
        return DataError(
            "a field of view is of pictures, and the table names a volume. Take region-column out of site.toml.",
            ErrorCode.UNSUPPORTED,
        )
    if region is None:
        return _absent(column, number, "it names no mask of the field of view")
    return None if region.is_file() else _absent(column, number, _how_absent(region, files))


def _named_masks(folder: Path, cell: str) -> list[tuple[str, Path]]:
    """Each mask of a cell with the local name of what it marks: "liver=a.png|lesion=b.png"; without one where the cell
    is the name of a file.
    """
    parts = [(name.strip(), sign, path.strip()) for name, sign, path in (one.partition("=") for one in cell.split("|"))]
    if not all(name and sign and path for name, sign, path in parts) or _is_there(folder / cell):
        whole = _place(folder, cell)
        return [] if whole is None else [("", whole)]
    return [(name, _place(folder, path) or folder) for name, _, path in parts]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # longer than any name can be
        return False


def _place(folder: Path, cell: str) -> Path | None:
    """The file that a cell names, with or without its ending; None where it names none. Windows writes backslashes."""
    if not cell:
        return None
    path = folder / cell
    other = folder / cell.replace("\\", "/")
    if path.exists() or other.exists():
        return path if path.exists() else other
    # A table may name a picture without its ending (ISIC_0000000).
    named = [place for suffix in (*SUFFIXES, *NIFTI_SUFFIXES) if (place := folder / f"{cell}{suffix}").is_file()]
    return named[0] if len(named) == 1 else path


def _how_absent(path: Path, files: Collection[Path]) -> str:
    """What can be said of a file that is not there, without its name."""
    if path.is_symlink():
        return "the file it names is a link to nothing: fetch what it stands for"
    lower = str(path).lower()
    if any(str(other).lower() == lower for other in files):
        return "the file it names is not there, and one is whose name differs in capitals only: write it as it is"
    return "the file it names is not there: correct the path, which is relative to the source's folder"


def _absent(column: str, number: int, why: str, code: ErrorCode = ErrorCode.UNREADABLE) -> DataError:
    return DataError(f"line {number} of the table, column {column}: {why}.", code)


def _rows(source: SourceConfig, folder: Path) -> list[Row]:
    """The rows of the CSV that `where` selects."""
    columns, rows = read_table(folder, str(source.csv))
    wanted: dict[str, str | None] = {
        "image-column": source.image_column,
        "mask-column": source.mask_column,
        "patient-column": source.patient_column,
        "class-column": source.class_column,
        "region-column": source.region_column,
    }
    if source.class_column is not None and source.mask_column not in columns:  # a table of classes need not have masks
        wanted["mask-column"] = None
    for key, column in [*wanted.items(), *(("where", column) for column in source.where)]:
        if column is not None and column not in columns:
            near = difflib.get_close_matches(column, columns, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"the CSV {source.csv!r} has no column {column!r}, only {', '.join(columns) or 'none'}.{hint} "
                f"Correct {key} in site.toml."
            )
        if column is not None and columns.count(column) > 1:
            raise ConfigError(
                f"the CSV {source.csv!r} has {columns.count(column)} columns {column!r}, and which of them {key} in "
                "site.toml means is not known. Give them different names."
            )
    return [row for row in rows if all(row.cells[column] == value for column, value in source.where.items())]
