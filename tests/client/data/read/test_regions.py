"""A picture's field of view, named by a column of the table: read with the label, checked, and no image of training."""

from pathlib import Path

import numpy as np
import pytest

from client.data.isolate import answer_checks
from client.data.isolate.answering import answer_to
from client.data.isolate.isolation import Job, Readers, _question
from client.data.keep.entry import entry_of
from client.data.keep.vault import Vault
from client.data.read import sources
from client.data.study.as_json import reference_from_json, reference_to_json
from client.data.study.labels import Vocabulary
from client.data.study.study import NOT_IN_TABLE, Reference
from common.config import DataConfig, SiteConfig, SourceConfig, canonical, parse
from common.errors import ConfigError, DataError, ErrorCode
from tests.client.data.studies import KEY, source, write_picture

SHAPE = (20, 31)
VESSEL = DataConfig(modality="photo", channels=3, classes=("vessel",))


def write_table(folder: Path, *, fov: np.ndarray | None = None, cell: str = "fov/a.png") -> SourceConfig:
    """One photograph with mask and field of view."""
    rng = np.random.default_rng(0)
    write_picture(folder / "images" / "a.png", rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8))
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:15, 8:20] = 255
    write_picture(folder / "masks" / "a.png", mask)
    write_picture(folder / "fov" / "a.png", inside() * 255 if fov is None else fov)
    (folder / "t.csv").write_text(f"id,image,mask,fov\np,images/a.png,masks/a.png,{cell}\n")
    return source(path=str(folder), csv="t.csv", kind="images", region_column="fov")


def inside() -> np.ndarray:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    disc: np.ndarray = (np.hypot(rows - 10, columns - 15) < 9).astype(np.uint8)
    return disc


def one(where: SourceConfig) -> Reference:
    (reference,) = sources.find(where, Path("/")).references
    return reference


@pytest.mark.parametrize("readers", [0, 1])
def test_it_is_read_with_the_label_here_and_by_a_child(tmp_path: Path, readers: int) -> None:
    job = Job(one(write_table(tmp_path)), Vocabulary.of_run(VESSEL, {}))
    with Readers(readers) as parsers:
        (reading,) = parsers.read([job])
    assert not isinstance(reading, DataError)
    assert reading.study.region is not None
    np.testing.assert_array_equal(reading.study.region, inside())
    assert reading.study.label is not None
    assert reading.study.label.sum() == 10 * 12


@pytest.mark.parametrize("value", [1, 255])
def test_whatever_is_not_black_is_inside(tmp_path: Path, value: int) -> None:
    region = sources.read(one(write_table(tmp_path, fov=inside() * value)), Vocabulary.of_run(VESSEL, {})).region
    np.testing.assert_array_equal(region, inside())


def test_a_prediction_reads_none_and_a_source_that_names_none_has_none(tmp_path: Path) -> None:
    where = write_table(tmp_path)
    assert sources.read(one(where), None).region is None
    without = where.model_copy(update={"region_column": None})
    assert sources.read(one(without), Vocabulary.of_run(VESSEL, {})).region is None
    # Then it is a picture that no row names; with the key it is the study's own.
    assert sources.find(without, Path("/")).left_out == {NOT_IN_TABLE: 1}
    assert sources.find(where, Path("/")).left_out == {}


@pytest.mark.parametrize(
    ("fov", "code"),
    [
        (np.zeros(SHAPE, np.uint8), ErrorCode.IMPLAUSIBLE),
        (np.ones((20, 30), np.uint8), ErrorCode.GEOMETRY_MISMATCH),
    ],
)
def test_an_empty_one_and_one_of_another_size_are_refused(tmp_path: Path, fov: np.ndarray, code: ErrorCode) -> None:
    with pytest.raises(DataError) as error:
        sources.read(one(write_table(tmp_path, fov=fov)), Vocabulary.of_run(VESSEL, {}))
    assert error.value.code is code


@pytest.mark.parametrize("cell", ["", "fov/b.png"])
def test_a_row_without_it_is_told_by_line_and_column(tmp_path: Path, cell: str) -> None:
    problem = one(write_table(tmp_path, cell=cell)).problem
    assert problem is not None
    assert "line 2 of the table, column fov" in str(problem)


def test_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    where = write_table(tmp_path).model_copy(update={"region_column": "fow"})
    with pytest.raises(ConfigError, match=r"no column 'fow'.*Did you mean 'fov'.*region-column"):
        one(where)


def test_it_crosses_a_pipe_and_a_changed_one_makes_what_was_kept_out_of_date(tmp_path: Path) -> None:
    reference = one(write_table(tmp_path))
    assert reference_from_json(reference_to_json(reference)) == reference
    job, vault = Job(reference, Vocabulary.of_run(VESSEL, {})), Vault(KEY, "cache")
    before = entry_of(job, tmp_path / "kept", vault)
    write_picture(tmp_path / "fov" / "a.png", np.ones(SHAPE, np.uint8))
    after = entry_of(job, tmp_path / "kept", vault)
    assert before is not None
    assert after is not None
    assert before.stamp != after.stamp


def test_a_child_that_tells_of_a_region_that_is_none_is_not_believed(tmp_path: Path) -> None:
    reference = one(write_table(tmp_path))
    job = Job(reference, Vocabulary.of_run(VESSEL, {}))
    header, arrays = answer_to(_question("read", job), 1 << 30)
    assert answer_checks.reading(job, header, arrays).study.region is not None
    image, label, region = arrays
    for wrong in (region[:-1], region.astype(np.float32), np.zeros_like(region)):
        with pytest.raises(ValueError, match="not a study"):
            answer_checks.reading(job, header, (image, label, wrong))
    unasked = Job(one(write_table(tmp_path).model_copy(update={"region_column": None})), job.wanted)
    with pytest.raises(ValueError, match="not a study"):
        answer_checks.reading(unasked, header, arrays)


def test_the_key_is_of_format_two_and_an_old_file_keeps_its_text() -> None:
    text = 'name = "a"\n[[data]]\npath = "x"\n'
    assert "region-column" not in canonical(parse(SiteConfig, text))
    with pytest.raises(ConfigError, match="region-column is a key of format 2"):
        parse(SiteConfig, f'{text}region-column = "fov"\n')
    assert parse(SiteConfig, f'format = 2\n{text}region-column = "fov"\n').data[0].region_column == "fov"
