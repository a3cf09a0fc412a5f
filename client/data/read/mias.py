"""The mini-MIAS mammograms as published: mdbNNN.pgm beside Info.txt, whose rows are circles around abnormalities.

A circle is a WEAK mask: it encloses the abnormality (for calcifications a whole cluster), and its edge is no edge in
the tissue. Some are wrong (those of mdb212 and mdb214 lie beside the breast), so scores against them have a ceiling.
Rows count y from the BOTTOM: row = 1023 - y. An image can have several rows. Rows without coordinates ("NOTE 3" in the
file, note 4 in its text: spread over the breast) leave the image without a map; its class as a whole is known. An odd
film and the even one after it are the breasts of one woman, hence one patient. 1024 x 1024 pixels of 0.2 mm.
Source: J Suckling et al (1994), Excerpta Medica International Congress Series 1069, 375-378; notes in Info.txt.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.read import images
from client.data.study.labels import BACKGROUND, Naming
from client.data.study.listing import files_under
from client.data.study.study import NO_IMAGE, Found, Reference, Study, parsing
from common.config import SourceConfig
from common.errors import ConfigError, DataError, ErrorCode

TABLE = "Info.txt"

_FILM = re.compile(r"mdb(\d{3})", re.IGNORECASE)
_EDGE = 1024
_PIXEL_MM = 0.2
_NORMAL = "NORM"
# What Info.txt calls it -> the class it is without a label map, in runs that have that class.
_USUAL = {
    "CALC": "calcification",
    "CIRC": "mass",
    "SPIC": "mass",
    "MISC": "mass",
    "ARCH": "distortion",
    "ASYM": "asymmetry",
    "B": "benign",
    "M": "malignant",
}


@dataclass(frozen=True)
class _Row:
    """One line on one film. circle: x, y and radius in pixels, y from the bottom."""

    abnormality: str
    severity: str
    circle: tuple[int, int, int] | None


def is_archive(folder: Path) -> bool:
    """Whether a folder holds the archive: an Info.txt with rows on films."""
    try:
        return any(_rows(folder / TABLE))
    except (OSError, UnicodeDecodeError):
        return False


def find(source: SourceConfig, folder: Path) -> Found:
    """The films of the archive. patient-pattern is not used: the archive itself says which two belong together.

    Raises:
        ConfigError: the folder holds no such archive.
    """
    if not is_archive(folder):
        raise ConfigError(
            f"the data source is no mini-MIAS archive: it has no {TABLE} with rows on films. Set path in site.toml to "
            "the folder with mdb001.pgm and its fellows, or kind to another one."
        )
    references = []
    files = files_under(folder)
    for path in files:
        film = _FILM.fullmatch(path.stem)
        if film and path.suffix.lower() == ".pgm" and path.parent == folder:
            number = int(film.group(1))
            patient = f"mdb{number - 1 + number % 2:03}"
            key = f"mdb{number:03}"
            references.append(Reference("mias", patient, key, (path,), (folder / TABLE,), source.label_map))
    others = sum(path.name != TABLE for path in files) - len(references)
    return Found(tuple(references), {NO_IMAGE: others} if others else {})


def read(reference: Reference, naming: Naming | None) -> Study:
    """Read a film, and its circles when its classes are wanted.

    The class of a circle is its abnormality's (CALC, CIRC, SPIC, MISC, ARCH, ASYM) in label-map, else its severity's
    (B, M). Without a label map a run may name its classes benign and malignant, or calcification, mass (CIRC, SPIC and
    MISC), distortion and asymmetry. Normal films are background.

    Raises:
        DataError: UNREADABLE, NO_LABEL, LABEL_UNKNOWN or GEOMETRY_MISMATCH.
    """
    study = images.read(reference, None)
    study = replace(study, spacing_mm=(_PIXEL_MM, _PIXEL_MM), modality="MG")
    if naming is None:
        return study
    if naming.whole:
        drawn = {_class_of(row, reference, naming) for row in _rows_of(reference)}
        return replace(study, findings=tuple(sorted(drawn - {0})))
    return replace(study, label=_label(reference, study.image.shape[1:], naming))


def _label(reference: Reference, shape: tuple[int, ...], naming: Naming) -> NDArray[np.uint8]:
    if shape != (_EDGE, _EDGE):
        raise DataError(
            f"the film has {shape[0]} x {shape[1]} pixels; the circles are for {_EDGE} x {_EDGE}. "
            "Use the archive as published.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    rows = _rows_of(reference)
    label = np.zeros(shape, np.uint8)
    for row in rows:
        drawn = _class_of(row, reference, naming)
        if drawn:  # what is background needs no place
            naming.draw(label, _disc(row) * np.uint8(naming.value(drawn)))
    return label


def _rows_of(reference: Reference) -> list[_Row]:
    with parsing(TABLE):
        rows = [row for film, row in _rows(reference.labels[0]) if film == reference.key]
    if not rows:
        raise DataError(f"{TABLE} has no row on this film. Use the archive as published.", ErrorCode.NO_LABEL)
    return rows


def _class_of(row: _Row, reference: Reference, naming: Naming) -> int:
    if row.abnormality == _NORMAL:
        return 0
    codes = (row.abnormality, row.severity)
    usual = () if reference.label_map else tuple(_USUAL[code] for code in codes if code in _USUAL)
    found = naming.find((*codes, *usual))
    if found is None:
        raise DataError(
            f"the film shows {_told(row.abnormality)} of severity {_told(row.severity)}, and neither is "
            f"a class of this run ({', '.join(naming.classes)}). Name one of them in label-map in site.toml, or map it "
            f'to "{BACKGROUND}".',
            ErrorCode.LABEL_UNKNOWN,
        )
    return found


def _told(code: str) -> str:
    """A code as a message may hold it: one of the archive's, never a stranger's text."""
    return code if code in _USUAL else "something else"


def _disc(row: _Row) -> NDArray[np.bool_]:
    """(1024, 1024); pixels whose centre lies in the circle."""
    if row.circle is None:
        raise DataError(
            f"{TABLE} gives no place for this abnormality: it is spread over the breast. That is no error.",
            ErrorCode.NO_LABEL,
        )
    x, y, radius = row.circle
    rows, columns = np.ogrid[:_EDGE, :_EDGE]
    disc: NDArray[np.bool_] = (rows - (_EDGE - 1 - y)) ** 2 + (columns - x) ** 2 <= radius**2
    if not disc.any():
        raise DataError(
            f"a circle lies outside of the film. Use {TABLE} as published.",
            ErrorCode.GEOMETRY_MISMATCH,
        )
    return disc


def _rows(path: Path) -> Iterator[tuple[str, _Row]]:
    """(film, row) for each line that is about a film."""
    for line in path.read_text(encoding="ascii").splitlines():
        film, *fields = line.split() or [""]
        if not _FILM.fullmatch(film) or len(fields) < 2:
            continue
        _, abnormality, severity, *numbers = [*fields, ""] if len(fields) == 2 else fields
        circle = tuple(map(int, numbers[:3])) if all(number.isdecimal() for number in numbers[:3]) else ()
        yield film.lower(), _Row(abnormality, severity, (circle[0], circle[1], circle[2]) if len(circle) == 3 else None)
