"""What is wrong with a folder is said before anything is written: what it is, how often, where, and what to do."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from common.config import SourceConfig
from common.errors import WardroundError
from simulations.commands.main import app
from simulations.drafts.text import draft
from tests.client.data.studies import write_picture
from tests.simulations.drafts import folders


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(WardroundError) as raised:
        draft(SourceConfig(path=str(folder), **options), "mine")  # type: ignore[arg-type]  # of a source
    return str(raised.value)


def test_empty_folder(tmp_path: Path) -> None:
    said = refusal(tmp_path)
    assert said.startswith(f"no image was found in {tmp_path} (it is empty)")
    assert "imagesTr/ and labelsTr/" in said


def test_images_without_any_label(tmp_path: Path) -> None:
    for number, (image, _) in enumerate(folders.discs(6)):
        write_picture(tmp_path / f"{number}.png", image)
    assert refusal(tmp_path).startswith("no label was found: 6 images")


def test_mask_of_another_size_unreadable_file_and_image_without_mask_are_counted_and_named(tmp_path: Path) -> None:
    folder = folders.pictures(tmp_path / "p", count=12)
    write_picture(folder / "masks" / "im003.png", np.zeros((30, 31), np.uint8))
    (folder / "images" / "im005.png").write_bytes((folder / "images" / "im005.png").read_bytes()[:200])
    (folder / "masks" / "im007.png").unlink()
    said = refusal(folder)
    assert said.startswith("3 of 12 studies cannot be used.")
    assert "images/im003.png: (geometry-mismatch) the mask has 30 x 31 pixels, the picture 48 x 48" in said
    assert "images/im005.png: (unreadable)" in said
    assert "images/im007.png: (no-label)" in said
    assert "--leave-out" in said


def test_leave_out_goes_on_and_says_in_the_file_what_is_left_out(tmp_path: Path) -> None:
    folder = folders.pictures(tmp_path / "p", count=12)
    (folder / "masks" / "im007.png").unlink()
    made = draft(SourceConfig(path=str(folder)), "mine", leave_out=True)
    assert made.studies == 11
    assert "1 cannot be used, no-label" in made.text


def test_where_nothing_can_be_used_leave_out_does_not_go_on_with_nothing(tmp_path: Path) -> None:
    folder = folders.pictures(tmp_path / "p", count=7)
    for mask in sorted((folder / "masks").iterdir())[1:]:
        write_picture(mask, np.zeros((30, 31), np.uint8))
    next(iter(sorted((folder / "masks").iterdir()))).unlink()
    with pytest.raises(WardroundError, match=r"7 of 7 studies cannot be used\. .*the mask has 30 x 31 pixels"):
        draft(SourceConfig(path=str(folder)), "mine", leave_out=True)


def test_folder_of_two_kinds_of_images_asks_which_are_meant(tmp_path: Path) -> None:
    folder = folders.nifti(tmp_path / "v")
    for number, (image, _) in enumerate(folders.discs(2)):
        write_picture(folder / "previews" / f"{number}.png", image)
    assert "the folder holds 2 pictures and 6 NIfTI volumes, and a scenario is of one kind" in refusal(folder)
    assert "--kind nifti" in refusal(folder)
    assert draft(SourceConfig(path=str(folder), kind="nifti"), "mine").studies == 6


def test_too_few_patients_for_two_sites(tmp_path: Path) -> None:
    assert refusal(folders.pictures(tmp_path / "p", count=5)).startswith("the folder has 5 patients")


def test_smoothed_masks_are_no_classes(tmp_path: Path) -> None:
    for number, (image, mask) in enumerate(folders.discs(6)):
        write_picture(tmp_path / "images" / f"{number}.png", image)
        smooth = np.where(mask > 0, 255 - np.arange(48, dtype=np.uint8)[None, :], 0).astype(np.uint8)
        write_picture(tmp_path / "masks" / f"{number}.png", smooth)
    assert "values beside 0, and each would be a class" in refusal(tmp_path)


def test_two_tables_that_list_images_ask_which_is_meant(tmp_path: Path) -> None:
    folder = folders.with_table(tmp_path / "t")
    (folder / "other.csv").write_bytes((folder / "list.csv").read_bytes())
    assert "2 tables in the folder name images: list.csv, other.csv. Say which one lists them: --csv NAME" in refusal(
        folder
    )
    assert draft(SourceConfig(path=str(folder), csv="other.csv"), "mine").studies == 12


def test_table_that_lists_no_files_is_left_alone(tmp_path: Path) -> None:
    folder = folders.pictures(tmp_path / "p", count=6)
    (folder / "ages.csv").write_text("image,age\nim000,61\nim001,40\n")
    assert draft(SourceConfig(path=str(folder)), "mine").studies == 6


def test_another_modality_than_the_files_say_is_refused(tmp_path: Path) -> None:
    folder = folders.dicom(tmp_path / "ct")
    for modality, says in (("MR", "the files say CT"), ("XX", "expected one of CT, MR")):
        with pytest.raises(WardroundError, match=says):
            draft(SourceConfig(path=str(folder)), "mine", modality=modality)


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    folder = folders.pictures(tmp_path / "p", count=6)
    out = tmp_path / "mine.toml"
    out.write_text("kept")
    done = CliRunner().invoke(app, ["new", str(folder), "--out", str(out)])
    assert done.exit_code == 1
    assert "is there already. Give another name with --out, or --force" in done.stderr
    assert out.read_text() == "kept"
    assert CliRunner().invoke(app, ["new", str(folder), "--out", str(out), "--force"]).exit_code == 0
    assert "[partition.source]" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"), [(["nowhere"], "no folder that is there"), ([".", "--out", "there"], "name of a .toml file")]
)
def test_what_cannot_be_is_refused_at_once(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["new", *arguments])
    assert done.exit_code == 1
    assert says in done.stderr


@pytest.mark.parametrize("key", ["image_column", "mask_column", "patient_column", "class_column"])
def test_column_that_a_person_named_and_the_table_has_not_is_refused_by_its_option(tmp_path: Path, key: str) -> None:
    said = refusal(folders.with_table(tmp_path / "t"), **{key: "Hospitl"})
    option = key.replace("_", "-")
    assert "'list.csv' has no column 'Hospitl'" in said
    assert said.endswith(f"Did you mean 'Hospital'? Correct --{option}.")


def test_where_that_no_row_fits_is_named(tmp_path: Path) -> None:
    said = refusal(folders.with_table(tmp_path / "t"), where={"Hospital": "Nrod"})
    assert said == "no row of list.csv has Hospital=Nrod. Correct --where."


def test_label_map_of_a_value_that_no_mask_has_is_refused(tmp_path: Path) -> None:
    said = refusal(folders.pictures(tmp_path / "p", count=6), label_map={"1": "lesion"})
    assert said == (
        "--label-map 1=lesion names no label of the folder, whose labels are 255. Correct it, or leave it out."
    )


def test_label_map_of_a_word_that_no_row_has_is_refused(tmp_path: Path) -> None:
    said = refusal(folders.of_classes(tmp_path / "c"), label_map={"tumor": "malignant"})
    assert said.startswith("--label-map tumor=malignant names no label of the folder, whose labels are normal, tumour.")


def test_folders_whose_names_say_nothing_are_told_by_options(tmp_path: Path) -> None:
    for number, (image, mask) in enumerate(folders.discs(6)):
        write_picture(tmp_path / "a" / f"{number}.png", image)
        write_picture(tmp_path / "b" / f"{number}_x.png", mask)
    said = refusal(tmp_path, images="a", labels="b")
    assert said.startswith(f"no label was found: 6 images in {tmp_path}, and none has one (beside them 6 ")
    assert "--images and --labels" in said
    assert refusal(tmp_path, images="a", labels="c") == (
        "the data source has no sub-folder 'c'. Set --labels to the sub-folder's name, or csv to a table of images and "
        "masks."
    )


def test_options_are_named_for_what_a_reader_says_of_a_site(tmp_path: Path) -> None:
    said = refusal(folders.pictures(tmp_path / "p", count=6), patient_pattern="x(.)")
    assert "Correct --patient-pattern. Mend these studies" in said
    assert "site.toml" not in said


def test_modality_that_is_none_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(WardroundError, match="--modality is 'photos', expected one of CT"):
        draft(SourceConfig(path=str(tmp_path / "nowhere")), "mine", modality="photos")
