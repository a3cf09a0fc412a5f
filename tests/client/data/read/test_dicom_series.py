"""From headers to references: what is a slice, what a study of its own, and what may not be read."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import UID

from client.data.read import dicom_header, dicom_series
from common.errors import DataError, ErrorCode
from tests.client.data.studies import ct_slices, save, source, write_ct

ENHANCED = ("2.1", "2.2", "4.1", "4.4")
SECONDARY_CAPTURE = ("7", "7.1", "7.2", "7.3", "7.4")


def write(folder: Path, kind: str, count: int = 3) -> None:
    """Instances of one series whose SOP class ends in this."""
    slices = ct_slices(np.random.default_rng(1).integers(0, 3000, (count, 16, 16)))
    for ds in slices:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID(f"1.2.840.10008.5.1.4.1.1.{kind}")
    save(folder, slices)


@pytest.mark.parametrize(("kind", "studies"), [("2", 1), ("4", 1), *((kind, 3) for kind in ENHANCED)])
def test_slices_make_a_series_and_an_enhanced_instance_is_a_study(tmp_path: Path, kind: str, studies: int) -> None:
    write(tmp_path, kind)
    found = dicom_series.find(source(path="."), tmp_path)
    assert len(found.references) == studies
    assert len({reference.key for reference in found.references}) == studies
    assert sum(len(reference.images) for reference in found.references) == 3


@pytest.mark.parametrize("kind", SECONDARY_CAPTURE)
def test_secondary_capture_is_found_and_set_aside_until_a_person_has_looked(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind, count=1)
    for looked, code in ((False, ErrorCode.BURNED_IN), (True, None)):
        (reference,) = dicom_series.find(source(path=".", pixel_text_checked=looked), tmp_path).references
        assert (reference.problem.code if reference.problem else None) == code


def test_what_a_header_said_survives_the_way_through_json(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct")
    write(tmp_path / "sc", "7", count=1)
    for path in sorted(tmp_path.rglob("*.dcm")):
        entry = dicom_header.look(path)
        assert entry is not None
        again = dicom_header.entry_from_json(path, dicom_header.entry_to_json(entry))
        assert repr(again) == repr(entry)
        assert (again.patient, again.instance, again.series) == (entry.patient, entry.instance, entry.series)
        assert (again.frame_of_reference, again.references) == (entry.frame_of_reference, entry.references)


@pytest.mark.parametrize("values", [{}, {"texts": ["a"] * 4, "references": [], "pixel-text": None}, {"texts": [1] * 5}])
def test_values_that_are_no_header_are_refused(values: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        dicom_header.entry_from_json(Path("a"), values)


def test_look_says_which_of_four_a_file_is(tmp_path: Path) -> None:
    save(tmp_path, ct_slices(np.ones((1, 8, 8))))
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    (tmp_path / "letter.pdf").write_bytes(b"%PDF")
    seen = list(dicom_header.look_at_all([tmp_path / name for name in ("000.dcm", "broken.dcm", "letter.pdf", "gone")]))
    assert isinstance(seen[0], dicom_header.Entry)
    assert isinstance(seen[1], DataError)
    assert seen[2] is None
    assert isinstance(seen[3], DataError)  # it was listed, so it may have been a slice
    assert seen[3].code is ErrorCode.NOT_OPENED
