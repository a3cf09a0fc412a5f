from pathlib import Path

import numpy as np
import pytest

from client.data.read import sources
from client.data.study.labels import Vocabulary
from common.config import DataConfig
from common.errors import ConfigError, DataError, ErrorCode
from tests.client.data.studies import read_image, source, write_ct, write_pair, write_picture, write_volume


def test_reader_is_chosen_by_looking_at_the_files(tmp_path: Path) -> None:
    write_ct(tmp_path / "dicom" / "deep")
    write_pair(tmp_path / "pictures", "a")
    for folder in ("images", "labels"):
        write_volume(tmp_path / "nifti" / folder / "a.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    kinds = {
        name: sources.find(source(path=name), tmp_path).references[0].kind for name in ("dicom", "pictures", "nifti")
    }
    assert kinds == {"dicom": "dicom", "pictures": "images", "nifti": "nifti"}


def test_absent_folder_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'nowhere' does not exist. Set path of \[\[data\]\]"):
        sources.find(source(path="nowhere"), tmp_path)


def test_absent_subfolder_says_what_to_set(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    with pytest.raises(ConfigError, match=r"no sub-folder 'masks'\. Set labels"):
        sources.find(source(path=".", labels="masks"), tmp_path)


def test_empty_folder_gives_nothing_and_foreign_files_are_counted(tmp_path: Path) -> None:
    assert sources.find(source(path="."), tmp_path).references == ()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    assert sources.find(source(path="."), tmp_path).ignored == 1


def test_only_the_named_patients_are_found(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path, name)
    assert sources.list_patients(source(path=".", patients=["c", "a"]), tmp_path) == ("a", "c")


def test_patients_that_are_not_there_are_counted_without_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        write_pair(tmp_path, name)
    assert sources.list_patients(source(path=".", patients=["a", "Smith", "Jones"]), tmp_path) == ("a",)
    assert "2 of the 3 patients" in caplog.text
    with pytest.raises(ConfigError, match=r"names 2 patient\(s\), and the folder holds none") as error:
        sources.find(source(path=".", patients=["Smith", "Jones"]), tmp_path)
    assert not any(name in caplog.text + str(error.value) for name in ("Smith", "Jones"))


def test_folder_of_a_site_within_its_data_is_left_out(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct")
    write_ct(tmp_path / "home" / "results" / "deep")
    for name in ("site.toml", "site.key", "cache/1", "results/overlay.png"):
        (tmp_path / "home" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "home" / name).write_bytes(b"x")
    found = sources.find(source(path="."), tmp_path)
    assert (len(found.references), found.ignored) == (1, 0)
    assert len(sources.find(source(path="home/results"), tmp_path).references) == 1  # asked for by name


def test_study_of_another_modality_is_not_the_runs_and_welcome_as_found(tmp_path: Path) -> None:
    write_ct(tmp_path)
    (reference,) = sources.find(source(path="."), tmp_path).references
    with pytest.raises(DataError, match="is CT, the run wants MR") as error:
        sources.read(reference, Vocabulary.of_run(DataConfig(modality="MR", classes=("lesion",)), {}))
    assert error.value.code is ErrorCode.UNSUPPORTED
    study = sources.read(reference, Vocabulary.as_found({}))
    assert (study.modality, study.classes) == ("CT", ("Lesion",))
    assert sources.read(reference, None).label is None


def test_prediction_finds_series_and_leaves_previews_out(tmp_path: Path) -> None:
    write_ct(tmp_path / "one")
    write_ct(tmp_path / "two", patient="")
    write_picture(tmp_path / "preview.png", np.zeros((4, 4), np.uint8))
    references = sources.find_images(tmp_path)
    assert [reference.kind for reference in references] == ["dicom", "dicom"]
    assert all(read_image(reference).label is None for reference in references)


def test_prediction_on_nothing_says_what_to_give(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.png"):
        with pytest.raises(DataError, match="Give a DICOM folder") as error:
            read_image(path)
        assert error.value.code is ErrorCode.NO_DATA
