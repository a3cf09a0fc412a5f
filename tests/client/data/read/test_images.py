import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.data.study.study import NO_IMAGE, NOT_IN_TABLE, Study
from common.config import DataConfig, SourceConfig
from common.errors import ConfigError, DataError, ErrorCode
from tests.client.data.studies import read_image, source, write_pair, write_picture

VESSEL = DataConfig(modality="photo", channels=3, classes=("vessel",))
TWO = DataConfig(modality="photo", channels=3, classes=("artery", "vein"))


def read_all(where: SourceConfig, root: Path, data: DataConfig = VESSEL) -> list[Study]:
    return [
        sources.read(reference, Vocabulary.of_run(data, reference.label_map))
        for reference in sources.find(where, root).references
    ]


def assert_refused(root: Path, code: ErrorCode, data: DataConfig = VESSEL, **options: object) -> None:
    with pytest.raises(DataError) as error:
        read_all(source(path=".", **options), root, data)
    assert error.value.code is code


def test_pair_is_read_channels_first_with_its_mask(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", (20, 31))
    (study,) = read_all(source(path="."), tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "images" / "a.png"))
    assert (study.image == pixels.transpose(2, 0, 1)).all()
    assert study.image.dtype == np.float32
    assert study.label is not None
    assert study.label.sum() == 10 * 12
    assert (study.patient, study.spacing_mm, study.affine) == ("a", None, None)


@pytest.mark.parametrize("by_table", [False, True])
def test_one_channel_of_a_photograph_is_taken_and_one_that_it_has_not_is_refused(
    tmp_path: Path, by_table: bool
) -> None:
    write_pair(tmp_path, "a", (20, 31))
    options: dict[str, Any] = {}
    if by_table:
        (tmp_path / "images.csv").write_text("id,image,mask\na,images/a.png,labels/a.png\n")
        options = {"csv": "images.csv", "patient_column": "id", "image_column": "image", "mask_column": "mask"}
    green = np.asarray(Image.open(tmp_path / "images" / "a.png"))[..., 1]
    (study,) = read_all(source(path=".", channel=1, **options), tmp_path)
    assert (study.image == green[None]).all()
    assert_refused(tmp_path, ErrorCode.UNSUPPORTED, channel=3, **options)


def test_a_grey_picture_has_one_channel(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "a.png", np.arange(72, dtype=np.uint8).reshape(8, 9))
    write_picture(tmp_path / "labels" / "a.png", np.full((8, 9), 255, np.uint8))
    (study,) = read_all(source(path=".", channel=0), tmp_path)
    assert study.image.shape == (1, 8, 9)
    with pytest.raises(DataError, match="asks for channel 1 of each image, counted from 0, and this one has 1 channel"):
        read_all(source(path=".", channel=1), tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "pgm", "tiff", "bmp", "PNG"])
def test_every_format_pairs_by_name_without_suffix(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / "images" / "deep" / f"a.{suffix}", np.full((8, 9), 77, np.uint8))
    write_picture(tmp_path / "labels" / "deep" / "a.png", np.full((8, 9), 255, np.uint8))
    (study,) = read_all(source(path="."), tmp_path)
    assert study.image.shape == (1, 8, 9)
    assert study.image == pytest.approx(77)


def test_sixteen_bit_picture_keeps_its_values(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", np.array([[0, 40000]], np.uint16))
    assert read_image(tmp_path / "a.png").image.tolist() == [[[0, 40000]]]


def test_palette_picture_is_colour_and_palette_mask_its_indices(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        picture.save(tmp_path / folder / "a.png")
    (study,) = read_all(source(path="."), tmp_path, TWO)
    assert study.image[:, 0, 1].tolist() == [255, 0, 0]
    assert study.label is not None
    assert study.label.tolist() == [[0, 1, 2]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.zeros((4, 9, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").image.shape == (3, 9, 4)


def test_smeared_jpeg_mask_is_cut_at_half(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[9:20, 7:23] = 255
    write_picture(tmp_path / "images" / "a.png", mask)
    write_picture(tmp_path / "labels" / "a.jpg", mask)
    assert (np.asarray(Image.open(tmp_path / "labels" / "a.jpg")) > 0).sum() > (mask > 0).sum()
    (study,) = read_all(source(path="."), tmp_path)
    assert study.label is not None
    assert (study.label == mask // 255).all()


def test_csv_selects_rows_and_pattern_joins_two_eyes(tmp_path: Path) -> None:
    for name in ("Image_01L", "Image_01R", "Image_02L", "other"):
        write_pair(tmp_path, name)
    rows = [f"child,{name},images/{name}.png,labels/{name}.png" for name in ("Image_01L", "Image_01R", "Image_02L")]
    (tmp_path / "t.csv").write_text(
        "\ufeffsite,id,image,mask\n" + "\n".join(rows) + "\nadult,x,images/other.png,labels/other.png\n"
    )
    where = source(path=".", csv="t.csv", where={"site": "child"}, patient_pattern=r"(Image_\d+)[LR]")
    assert [study.patient for study in read_all(where, tmp_path)] == ["Image_01", "Image_01", "Image_02"]
    assert sources.list_patients(where, tmp_path) == ("Image_01", "Image_02")


def test_csv_may_name_a_picture_without_its_ending_where_there_is_one_alone(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", (8, 9))
    (tmp_path / "list.csv").write_text("image,id,mask\nimages/a,p,labels/a.png\n")
    (study,) = read_all(source(path=".", csv="list.csv"), tmp_path)
    assert study.image.shape == (3, 8, 9)
    write_picture(tmp_path / "images" / "a.jpg", np.zeros((8, 9), np.uint8))
    (reference,) = sources.find(source(path=".", csv="list.csv"), tmp_path).references
    assert "the file it names is not there" in str(reference.problem)


def test_unknown_csv_column_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,image,masks\n")
    with pytest.raises(ConfigError, match=r"no column 'mask'.*Did you mean 'masks'.*mask-column"):
        sources.find(source(path=".", csv="t.csv"), tmp_path)
    with pytest.raises(ConfigError, match="Correct where"):
        sources.find(source(path=".", csv="t.csv", mask_column="masks", where={"site": "x"}), tmp_path)


def test_missing_csv_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Set csv in site\.toml"):
        sources.find(source(path=".", csv="none.csv"), tmp_path)


def test_row_without_a_mask_or_with_a_lost_one_has_no_label(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    for cell in ("", "labels/lost.png"):
        (tmp_path / "t.csv").write_text(f"id,image,mask\n1,images/a.png,{cell}\n")
        assert_refused(tmp_path, ErrorCode.NO_LABEL, csv="t.csv")


def test_picture_without_mask_has_no_label(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    (tmp_path / "labels" / "a.png").unlink()
    assert_refused(tmp_path, ErrorCode.NO_LABEL)


def test_mask_of_another_size_does_not_fit(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", (20, 31), mask=np.zeros((31, 20), np.uint8))
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


def test_value_beyond_the_classes_is_unknown(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    assert_refused(tmp_path, ErrorCode.LABEL_UNKNOWN, TWO)


def test_coloured_mask_is_not_supported(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", (4, 4), mask=np.full((4, 4, 3), [255, 0, 0], np.uint8))
    assert_refused(tmp_path, ErrorCode.UNSUPPORTED)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n cut off"])
def test_broken_picture_is_unreadable(tmp_path: Path, content: bytes) -> None:
    write_pair(tmp_path, "a")
    (tmp_path / "images" / "a.png").write_bytes(content)
    assert_refused(tmp_path, ErrorCode.UNREADABLE)


def test_broken_mask_is_unreadable(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    mask = tmp_path / "labels" / "a.png"
    mask.write_bytes(mask.read_bytes()[:60])
    assert_refused(tmp_path, ErrorCode.UNREADABLE)


def test_pattern_that_does_not_match_is_refused_rather_than_guessed(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    assert_refused(tmp_path, ErrorCode.UNSUPPORTED, patient_pattern=r"case-(\d+)")


@pytest.mark.parametrize("pattern", ["(", "no group"])
def test_pattern_that_is_none_is_a_configuration_error(tmp_path: Path, pattern: str) -> None:
    write_pair(tmp_path, "a")
    with pytest.raises(ConfigError, match="patient-pattern"):
        sources.find(source(path=".", patient_pattern=pattern), tmp_path)


def turned(folder: Path, name: str, pixels: np.ndarray, orientation: int) -> None:
    """A picture that says how it is to be turned for viewing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name, exif=exif)


def two_halves(shape: tuple[int, int]) -> np.ndarray:
    """White above, black below."""
    pixels = np.zeros(shape, np.uint8)
    pixels[: shape[0] // 2] = 255
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_picture_and_mask_stay_together(tmp_path: Path, orientation: int) -> None:
    for name in ("images/a.png", "labels/a.png"):
        turned(tmp_path, name, two_halves((8, 8)), orientation)
    (study,) = read_all(source(path="."), tmp_path)
    assert study.label is not None
    assert (study.label == study.image[0] // 255).all()
    assert study.label[0].all() == (orientation in (1, 2))  # the two whose first row is the top


def test_mask_that_was_drawn_on_the_turned_picture_needs_no_orientation_of_its_own(tmp_path: Path) -> None:
    turned(tmp_path, "images/a.jpg", np.zeros((6, 16), np.uint8), 6)
    write_picture(tmp_path / "labels" / "a.png", two_halves((16, 6)))
    (study,) = read_all(source(path="."), tmp_path)
    assert study.label is not None
    assert (study.label == two_halves((16, 6)) // 255).all()
    write_picture(tmp_path / "labels" / "a.png", two_halves((6, 16)))
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


@pytest.mark.parametrize(("shape", "orientation"), [((16, 16), 6), ((16, 6), 3), ((16, 6), 2)])
def test_mask_of_which_nobody_knows_whether_it_is_turned_does_not_fit(
    tmp_path: Path, shape: tuple[int, int], orientation: int
) -> None:
    turned(tmp_path, "images/a.jpg", np.zeros(shape, np.uint8), orientation)
    write_picture(tmp_path / "labels" / "a.png", two_halves(shape))
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


def test_transparency_is_ignored_in_a_picture_and_refused_in_a_mask(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    mask = np.zeros((5, 7, 4), np.uint8)
    mask[..., 3], mask[2:4, 1:3, :3] = 255, 255
    for name, values in (("images", pixels), ("labels", mask)):
        (tmp_path / name).mkdir()
        Image.fromarray(values, "RGBA").save(tmp_path / name / "a.png")
    (study,) = read_all(source(path="."), tmp_path)
    assert (study.image == pixels[..., :3].transpose(2, 0, 1)).all()
    assert study.label is not None
    assert (study.label == mask[..., 0] // 255).all()
    for mode, values in (("RGBA", np.concatenate([mask[..., :3] * 0, mask[..., :1]], -1)), ("LA", mask[..., [3, 0]])):
        Image.fromarray(values, mode).save(tmp_path / "labels" / "a.png")
        assert_refused(tmp_path, ErrorCode.UNSUPPORTED)


def test_several_pages_and_print_colours_are_not_supported(tmp_path: Path) -> None:
    page = Image.fromarray(np.zeros((4, 5), np.uint8))
    page.save(tmp_path / "pages.tiff", save_all=True, append_images=[page])
    page.convert("CMYK").save(tmp_path / "print.jpg")
    page.convert("CMYK").save(tmp_path / "print.tiff")
    for name in ("pages.tiff", "print.jpg", "print.tiff"):
        with pytest.raises(DataError) as error:
            read_image(tmp_path / name)
        assert error.value.code is ErrorCode.UNSUPPORTED


def test_previews_behind_a_telephones_picture_are_left_out(tmp_path: Path) -> None:
    first, preview = np.full((8, 16), 200, np.uint8), np.zeros((8, 16), np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(first).save(path, format="MPO", save_all=True, append_images=[Image.fromarray(preview)])
    assert read_image(path).image == pytest.approx(200)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_mask_of_sixteen_bits_keeps_its_values(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / "images" / "a.png", np.zeros((1, 3), np.uint8))
    write_picture(tmp_path / "labels" / f"a.{suffix}", np.array([[0, 300, 40000]], np.uint16))
    (study,) = read_all(source(path=".", label_map={"300": "artery", "40000": "vein"}), tmp_path, TWO)
    assert study.label is not None
    assert study.label.tolist() == [[0, 1, 2]]


def test_picture_of_more_pixels_than_are_believable_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 30000 30000 255\n" + bytes(100))
    with pytest.raises(DataError) as error:
        read_image(tmp_path / "a.pgm")
    assert error.value.code is ErrorCode.OUT_OF_MEMORY


def test_empty_mask_is_a_label(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", mask=np.zeros((20, 31), np.uint8))
    (study,) = read_all(source(path="."), tmp_path)
    assert study.label is not None
    assert not study.label.any()


def test_as_found_every_value_is_a_class(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", (1, 4), mask=np.array([[0, 9, 255, 9]], np.uint8))
    (reference,) = sources.find(source(path="."), tmp_path).references
    study = sources.read(reference, Vocabulary.as_found({"9": "vein"}))
    assert study.classes == ("vein", "255")
    assert study.label is not None
    assert study.label.tolist() == [[0, 1, 2, 1]]


def mask_of(*levels: int) -> np.ndarray:
    """(20, 31); a band of each level, half of the picture 0."""
    mask = np.zeros((20, 31), np.uint8)
    for number, level in enumerate(levels):
        mask[2 + 3 * number : 5 + 3 * number, 4:20] = level
    return mask


@pytest.mark.parametrize("levels", [(255, 1), (1, 2), (255, 128, 64)])
def test_mask_of_one_class_with_a_stray_value_is_asked_about(tmp_path: Path, levels: tuple[int, ...]) -> None:
    write_pair(tmp_path, "a", mask=mask_of(*levels))
    assert_refused(tmp_path, ErrorCode.LABEL_DOUBTFUL)
    (study,) = read_all(source(path=".", labels_checked=True), tmp_path)
    assert study.label is not None
    assert (study.label == (mask_of(*levels) > 0)).all()
    named = {str(level): "vessel" if level == levels[0] else "background" for level in levels}
    (study,) = read_all(source(path=".", label_map=named), tmp_path)
    assert study.label is not None
    assert (study.label == (mask_of(*levels) == levels[0])).all()


def test_copy_of_the_picture_is_no_mask(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    grey = np.arange(20 * 31, dtype=np.uint8).reshape(20, 31)
    for folder in ("images", "labels"):
        write_picture(tmp_path / folder / "a.png", grey)
    assert_refused(tmp_path, ErrorCode.NO_LABEL)


def write_table(folder: Path, *rows: tuple[str, ...], separator: str = ",", encoding: str = "utf-8") -> None:
    lines = [separator.join(row) for row in (("id", "image", "mask"), *rows)]
    (folder / "t.csv").write_bytes("\r\n".join(lines).encode(encoding))


def problem_of(folder: Path) -> DataError:
    (reference,) = sources.find(source(path=".", csv="t.csv"), folder).references
    with pytest.raises(DataError) as error:
        sources.read(reference, Vocabulary.of_run(VESSEL, {}))
    return error.value


def test_row_that_names_what_is_not_there_says_so_and_which(tmp_path: Path) -> None:
    write_pair(tmp_path, "Name")
    for row, words, code in (
        (("1", "images/lost.png", "labels/Name.png"), "column image: .* is not there", ErrorCode.UNREADABLE),
        (("1", "images/Name.png", "labels/lost.png"), "column mask: .* is not there", ErrorCode.NO_LABEL),
        (("1", "images/name.png", "labels/Name.png"), "column image: .*differs in capitals", ErrorCode.UNREADABLE),
        (("1", "", "labels/Name.png"), "column image: it names no picture", ErrorCode.UNREADABLE),
    ):
        write_table(tmp_path, row)
        problem = problem_of(tmp_path)
        assert re.search(f"line 2 of the table, {words}", str(problem))
        assert problem.code is code
        assert "ame.png" not in str(problem)
        assert "lost" not in str(problem)


def test_row_that_names_a_link_to_nothing_says_so(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    (tmp_path / "images" / "b.png").symlink_to("nowhere")
    write_table(tmp_path, ("1", "images/b.png", "labels/a.png"))
    assert "link to nothing" in str(problem_of(tmp_path))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_table_of_any_usual_separator_and_of_windows_paths_is_read(tmp_path: Path, separator: str) -> None:
    write_pair(tmp_path, "a")
    write_table(tmp_path, ("1", "images\\a.png", "labels\\a.png"), separator=separator, encoding="utf-8-sig")
    (study,) = read_all(source(path=".", csv="t.csv"), tmp_path)
    assert (study.patient, study.image.shape) == ("1", (3, 20, 31))


def test_table_of_another_encoding_says_what_to_do(tmp_path: Path) -> None:
    write_table(tmp_path, ("pät", "a", "b"), encoding="latin-1")
    with pytest.raises(ConfigError, match=r"not UTF-8; in Excel"):
        sources.find(source(path=".", csv="t.csv"), tmp_path)
    with pytest.raises(ConfigError, match=r"'no\.csv' cannot be read \(it is not there\)"):
        sources.find(source(path=".", csv="no.csv"), tmp_path)


def test_what_no_row_names_is_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pair(tmp_path, name)
    (tmp_path / "notes.txt").write_text("x")
    write_table(tmp_path, ("1", "images/a.png", "labels/a.png"))
    assert sources.find(source(path=".", csv="t.csv"), tmp_path).left_out == {NOT_IN_TABLE: 2, NO_IMAGE: 1}


def test_image_with_several_masks_or_patients_in_the_table_is_not_taken_for_the_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pair(tmp_path, name)
    row = ("1", "images/a.png", "labels/a.png")
    write_table(tmp_path, row, ("1", "images/a.png", "labels/b.png"))
    assert problem_of(tmp_path).code is ErrorCode.UNSUPPORTED
    write_table(tmp_path, row, ("2", *row[1:]))
    assert problem_of(tmp_path).code is ErrorCode.UNSUPPORTED
    write_table(tmp_path, row, row)  # the same twice
    (study,) = read_all(source(path=".", csv="t.csv"), tmp_path)
    assert study.label is not None
