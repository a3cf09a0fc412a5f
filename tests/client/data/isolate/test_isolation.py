"""What children find and read is what this process would, and a second look opens only what changed."""

import sys
from pathlib import Path

import numpy as np
import pytest

from client.data.isolate import child
from client.data.isolate.isolation import Job, Readers, Reading
from client.data.keep.index import Index
from client.data.read import sources
from client.data.study.labels import Vocabulary
from common.errors import ConfigError, DataError
from tests.client.data.studies import KEY, ct_slices, save, source, write_ct, write_pair, write_volume


def _sources(root: Path) -> list[dict[str, str]]:
    """One of each kind."""
    for number in range(3):
        write_ct(root / "ct" / str(number), (5, 24, 30 + number), patient=f"P{number}")
        write_pair(root / "pictures", f"p{number}")
        for part in ("images", "labels"):
            values = np.arange(8 * 9 * 10).reshape(8, 9, 10) % (1000 if part == "images" else 2) + number % 2
            write_volume(root / "volumes" / part / f"{number}.nii.gz", values.astype(np.int16), np.diag([1, 2, 3, 1.0]))
    (root / "ct" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    (root / "ct" / "letter.pdf").write_bytes(b"%PDF")
    (root / "pictures" / "table.csv").write_text("id,image,mask\na,images/p0.png,labels/p0.png\nb,images/p1.png,x.png")
    return [{"path": "ct"}, {"path": "pictures"}, {"path": "pictures", "csv": "table.csv"}, {"path": "volumes"}]


@pytest.mark.parametrize("count", [1, 2])
def test_result_is_the_same_to_the_bit_as_without_children(tmp_path: Path, count: int) -> None:
    with Readers(count) as readers, Readers(0) as here:
        for values in _sources(tmp_path):
            where = source(**values)
            found, expected = readers.find(where, tmp_path), here.find(where, tmp_path)
            assert repr([vars(one) for one in found.references]) == repr([vars(one) for one in expected.references])
            assert found.left_out == expected.left_out
            jobs = [Job(reference, Vocabulary(), True) for reference in found.references]
            for one, other in zip(readers.read(jobs), here.read(jobs), strict=True):
                assert _plain(one) == _plain(other)
            for checked, plain in zip(readers.check(jobs), here.check(jobs), strict=True):
                assert repr(checked) == repr(plain)


def _plain(outcome: Reading | DataError) -> object:
    if isinstance(outcome, DataError):
        return outcome.code, str(outcome)
    values = {
        name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in vars(outcome.study).items()
    }
    return values, outcome.study.image.dtype, outcome.digest


def test_label_map_that_does_not_fit_is_an_error_of_the_site_and_costs_no_child(tmp_path: Path) -> None:
    write_pair(tmp_path, "p1")
    (reference,) = sources.find(source(path=".", label_map={"1": "vesel"}), tmp_path).references
    with Readers(1) as readers:
        with pytest.raises(ConfigError, match="vesel"):
            list(readers.read([Job(reference, Vocabulary(reference.label_map, ("vessel",)))]))
        with pytest.raises(ConfigError, match="CSV"):
            readers.find(source(path=".", csv="labels/p1.png"), tmp_path)
        assert (readers.started, readers.deaths) == (1, 0)


def test_header_that_kills_its_reader_is_named_broken_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "data", ct_slices(np.random.default_rng(1).integers(0, 3000, (9, 16, 16))))
    (tmp_path / "killer.py").write_text(
        "import os, sys\n"
        "from client.data.isolate import reader\n"
        "from client.data.read import dicom_header\n"
        "real = dicom_header.look\n"
        "dicom_header.look = lambda path: os.abort() if path.name == '004.dcm' else real(path)\n"
        "sys.exit(reader.main())\n"
    )
    monkeypatch.setattr(child, "_COMMAND", (sys.executable, "-P", str(tmp_path / "killer.py")))
    with Readers(2) as readers:
        found = readers.find(source(path="data"), tmp_path)
        assert readers.deaths == 1
    broken, series = sorted(found.references, key=lambda one: len(one.images))
    assert len(series.images) == 8
    assert broken.images == (tmp_path / "data" / "004.dcm",)
    assert broken.problem is not None
    assert "its reader crashed" in str(broken.problem)


def test_second_look_opens_only_what_changed_and_forgets_what_is_gone(tmp_path: Path) -> None:
    values = _sources(tmp_path)
    path = tmp_path / "home" / "cache" / "index"

    def look() -> tuple[int, list[object]]:
        index = Index(path, KEY)
        with Readers(1) as readers:
            found = [readers.find(source(**one), tmp_path, memory=index) for one in values]
            index.save()
            return readers.started, [(repr([vars(one) for one in each.references]), each.left_out) for each in found]

    started, first = look()
    assert started == 1
    assert look() == (0, first)
    # Long enough that random bytes do not hold them by chance.
    for secret in (b"1.2.840", b"PatientID", b'"patient"', b"000.dcm"):
        assert secret not in path.read_bytes()
    before = path.stat().st_size
    data = (tmp_path / "ct" / "0" / "000.dcm").read_bytes()
    (tmp_path / "ct" / "0" / "000.dcm").write_bytes(data.replace(b"P0", b"P9"))
    started, second = look()
    assert (started, second != first) == (1, True)
    for one in (tmp_path / "ct" / "1").iterdir():
        one.unlink()
    assert look()[0] == 0
    assert path.stat().st_size < before


def test_damaged_index_is_made_again(tmp_path: Path) -> None:
    values = _sources(tmp_path)[0]
    path = tmp_path / "home" / "index"
    for damage in (lambda data: data, lambda data: data[:-1], lambda _: b""):
        index = Index(path, KEY)
        with Readers(0) as readers:
            assert len(readers.find(source(**values), tmp_path, memory=index).references) == 4
        index.save()
        path.write_bytes(damage(path.read_bytes()))
