"""Every DICOM file of the two collections meets the reader, and what becomes of it is what docs/dicom.md says.

The document is the claim, the outcome comes from the code. An image is found and read alone. A label is found among the
images of its collection and drawn onto those it names. Both are done as by a site that has looked at its captures
(pixel-text-checked) and names patients by path (patient-pattern); the column "set first" says which of the two a file
needs. That the numbers are right is for test_dicom_pixels, test_dicom_frames and the tests of the labels to show.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pydicom
import pytest

from client.data.read import dicom_header, dicom_series, sources
from client.data.read.dicom_header import Entry
from client.data.study.labels import Vocabulary
from client.data.study.study import LONELY_LABEL, Found
from common.errors import DataError, ErrorCode
from tests import ROOT
from tests.client.data.studies import source

DOCUMENT = ROOT / "docs" / "dicom.md"
ROOT = Path(os.environ.get("WARDROUND_DATA", "."))
FOLDERS = {"dicom_labelled": 57, "dicom_conformance": 77}  # files, counting equal ones once

# Labels that lie apart from their images.
ELSEWHERE = {"dicom_conformance": "dicom_labelled/dcmqi"}

STRICT = source(path=".")
OPEN = source(path=".", pixel_text_checked=True, patient_pattern="^(dicom)_")
SETTINGS = {ErrorCode.BURNED_IN: "pixel-text-checked", ErrorCode.UNSUPPORTED: "patient-pattern"}

needs_data = pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set")


class Row(NamedTuple):
    """A row of the table, without its last column, which is for people."""

    file: str
    outcome: str  # read, drawn, refused, ignored
    result: str  # shape, shape and classes, code, reason
    set_first: str


def claimed() -> list[Row]:
    """The tables of the document whose first cell is a file."""
    lines = [line for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith("| `dicom_")]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == len(Row._fields) + 1 and row[-1] for row in rows)
    return [Row(*row[:-1]) for row in rows]


def files_of(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in (".dcm", ".seg"))


@cache
def look(path: Path) -> Entry | DataError | None:
    (seen,) = dicom_header.look_at_all([path])
    return seen


def find(files: Sequence[Path], how: object = OPEN) -> Found:
    def looker(paths: Sequence[Path]) -> Iterable[Entry | DataError | None]:
        return [look(path) for path in paths]

    return dicom_series.find_among(files, ROOT, how, looker)  # type: ignore[arg-type]


def is_label(path: Path) -> bool:
    header = pydicom.dcmread(path, force=True, specific_tags=["Modality"], stop_before_pixels=True)
    return header.get("Modality") in ("SEG", "RTSTRUCT")


def size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def ignored(found: Found) -> tuple[str, str, str]:
    """How a file was left out: among images that are there more than once or are of no use, it is the other reason."""
    ((reason, _),) = found.left_out.items()
    return "ignored", reason, ""


def outcome_of_image(path: Path) -> tuple[str, str, str]:
    found = find([path])
    if not found.references:
        return ignored(found)
    (reference,), (strictly,) = found.references, find([path], STRICT).references
    set_first = "" if strictly.problem is None or reference.problem else SETTINGS[strictly.problem.code]
    try:
        return "read", size(sources.read(reference, None).image.shape), set_first
    except DataError as error:
        return "refused", error.code.value, set_first


def outcome_of_label(path: Path, images: Sequence[Path]) -> tuple[str, str, str]:
    found = find([path, *images])
    reference = next((one for one in found.references if path in one.labels), None)
    if reference is None:
        assert found.left_out[LONELY_LABEL] == 1
        return "ignored", LONELY_LABEL, ""
    try:
        study = sources.read(reference, Vocabulary.as_found({}))
    except DataError as error:
        return "refused", error.code.value, ""
    assert study.label is not None
    assert study.label.any()
    return "drawn", f"{size(study.label.shape)}: {', '.join(study.classes)}", ""


@needs_data
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_is_read_or_refused_as_the_document_says(folder: str) -> None:
    rows = {row.file: row for row in claimed()}
    outcomes = []
    for path in files_of(folder):
        if is_label(path):
            apart = ELSEWHERE.get(folder) or "/".join(path.relative_to(ROOT).parts[:2])
            images = [image for image in files_of(apart) if not is_label(image)]
            outcome = outcome_of_label(path, images)
        else:
            outcome = outcome_of_image(path)
        outcomes.append(Row(path.relative_to(ROOT).as_posix(), *outcome))
    for row in outcomes:
        assert rows.get(row.file) == row
    assert [file for file in rows if file.startswith(f"{folder}/")] == [row.file for row in outcomes]


@needs_data
@pytest.mark.parametrize(("folder", "count"), FOLDERS.items())
def test_no_file_of_the_collections_is_left_out_of_the_count(folder: str, count: int) -> None:
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(folder)}) == count


def test_the_document_names_every_file_once_and_says_why() -> None:
    rows = claimed()
    assert len(rows) == len({row.file for row in rows}) >= sum(FOLDERS.values())
    assert {row.outcome for row in rows} == {"read", "drawn", "refused", "ignored"}
    codes = {code.value for code in ErrorCode}
    assert all(row.result in codes for row in rows if row.outcome == "refused")
