"""Which file is an image, which a label, and whose: by the names people give them, and never by choice in doubt."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.data.study.study import BESIDE, LONELY_LABEL, NO_IMAGE, TEST_SET, Found, Reference
from common.config import DataConfig
from common.errors import ConfigError, DataError, ErrorCode
from tests.client.data.studies import source, write_picture, write_volume

GREY = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
VESSEL = Vocabulary.of_run(DataConfig(modality="photo", classes=("vessel",)), {})


def touch(folder: Path, *names: str) -> None:
    """Files of these names, of which nothing is read here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def find(folder: Path, **options: object) -> Found:
    return sources.find(source(path=".", **options), folder)


def names(folder: Path, reference: Reference) -> tuple[list[str], list[str]]:
    """Relative names of the images and labels of a reference."""
    images, labels = ([path.relative_to(folder).as_posix() for path in paths] for paths in
                      (reference.images, reference.labels))  # fmt: skip
    return images, labels


@pytest.mark.parametrize(
    ("label", "image"),
    [
        ("x_seg.nii.gz", "x.nii.gz"),
        ("x_mask.nii", "x.nii.gz"),
        ("x-label.nii.gz", "x.nii.gz"),
        ("x.seg.nii.gz", "x.nii.gz"),
        ("x_GT.nii.gz", "x.nii"),
        ("mask_x.png", "x.png"),
        ("x_segmentation.png", "x.jpg"),
        ("p/x_labels.png", "p/x.png"),
        ("masks/x.png", "x.png"),
        ("masks/x_mask.png", "images/x.png"),
        ("p/masks/x.png", "p/images/x.png"),
        ("labelsTr/x.nii.gz", "imagesTr/x.nii.gz"),
        ("labelsTr/x.nii.gz", "imagesTr/x_0000.nii.gz"),
        ("Labels/x.nii.gz", "Images/x.nii.gz"),
        ("x_mask.gif", "x.tif"),
        ("p/mask.nii.gz", "p/ct.nii.gz"),
        ("p/lesion_seg.nii.gz", "p/ct.nii.gz"),
    ],
)
def test_a_label_goes_to_the_image_whose_name_it_bears_and_is_no_image(tmp_path: Path, label: str, image: str) -> None:
    touch(tmp_path, label, image)
    found = find(tmp_path)
    assert [names(tmp_path, one) for one in found.references] == [([image], [label])]
    assert found.references[0].problem is None
    assert found.left_out == {}
    assert found.assumed  # and what was assumed is said


def test_images_and_labels_in_the_two_folders_of_always_need_no_assumption(tmp_path: Path) -> None:
    touch(tmp_path, "images/a/x_seg.png", "labels/a/x_seg.png")
    found = find(tmp_path)
    assert [names(tmp_path, one) for one in found.references] == [(["images/a/x_seg.png"], ["labels/a/x_seg.png"])]
    assert found.assumed == {}


def test_several_images_are_said_to_be_of_a_patient_each(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/p1_{eye}.png" for kind in ("images", "labels") for eye in "LR"))
    (assumption,) = find(tmp_path).assumed.items()
    assert "patient-pattern" in assumption[0]
    assert assumption[1] == 2
    assert find(tmp_path, patient_pattern="(p1)").assumed == {}


@pytest.mark.parametrize("option", [{"images": ".", "labels": "."}, {"images": "pairs", "labels": "pairs"}])
def test_folder_that_is_named_for_both_is_sorted_by_names(tmp_path: Path, option: dict[str, str]) -> None:
    folder = option["images"]
    touch(tmp_path / folder, "x.nii.gz", "x_seg.nii.gz", "y.nii.gz")
    found = find(tmp_path, **option)
    by_key = {Path(one.key).name: [path.name for path in one.labels] for one in found.references}
    assert by_key == {"x": ["x_seg.nii.gz"], "y": []}


def test_flat_folder_is_read_with_its_own_labels(tmp_path: Path) -> None:
    """What was wrong: each file was its own label, and any value but 0 the class."""
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:20] = 255
    write_picture(tmp_path / "p.png", GREY)
    write_picture(tmp_path / "p_mask.png", mask)
    (reference,) = find(tmp_path).references
    study = sources.read(reference, VESSEL)
    assert study.label is not None
    assert (study.label == np.asarray(Image.open(tmp_path / "p_mask.png")) // 255).all()
    assert (study.image[0] == GREY).all()


def test_image_that_is_named_as_its_own_label_has_none(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "x.png", GREY % 2)  # two values, as a mask has
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "x.png").symlink_to("../images/x.png")
    (tmp_path / "t.csv").write_text("id,image,mask\n1,images/x.png,images/x.png\n")
    for options in ({}, {"csv": "t.csv"}):
        (reference,) = find(tmp_path, **options).references
        with pytest.raises(DataError, match="the image itself") as error:
            sources.read(reference, VESSEL)
        assert error.value.code is ErrorCode.NO_LABEL


@pytest.mark.parametrize(
    "twins",
    [
        ("labels/x.nii", "labels/x.nii.gz"),
        ("labels/x.nii.gz", "labels/x_seg.nii.gz"),
        ("images/x.nii", "images/x.nii.gz"),
    ],
)
def test_of_two_files_that_a_name_could_mean_none_is_chosen(tmp_path: Path, twins: tuple[str, str]) -> None:
    touch(tmp_path, "images/x.nii.gz", "labels/x.nii.gz", *twins)
    (reference,) = find(tmp_path).references
    with pytest.raises(DataError, match=r"2 (label files|images)") as error:
        sources.read(reference, VESSEL)
    assert error.value.code is ErrorCode.UNSUPPORTED


def test_two_pictures_of_one_name_are_two_and_none_is_chosen(tmp_path: Path) -> None:
    touch(tmp_path, "x.png", "x.jpg", "x_mask.png")
    (reference,) = find(tmp_path).references
    assert reference.problem is not None
    assert "2 images" in str(reference.problem)


def test_channels_of_an_image_come_in_their_order(tmp_path: Path) -> None:
    voxels = np.random.default_rng(5).normal(size=(3, 5, 6, 7)).astype(np.float32)
    for number in (2, 0, 1):
        write_volume(tmp_path / "imagesTr" / f"case_{number:04}.nii.gz", voxels[number], np.eye(4))
    write_volume(tmp_path / "labelsTr" / "case.nii.gz", np.ones((5, 6, 7), np.uint8), np.eye(4))
    touch(tmp_path, "dataset.json", "imagesTs/other_0000.nii.gz")
    found = find(tmp_path)
    (reference,) = found.references
    assert (reference.key, reference.patient) == ("case", "case")
    assert found.left_out == {TEST_SET: 1}
    study = sources.read(reference, Vocabulary.as_found({}))
    assert study.image.shape == (3, 7, 6, 5)
    for number in range(3):
        channel = nib.Nifti1Image.from_filename(tmp_path / "imagesTr" / f"case_{number:04}.nii.gz")
        expected = np.asarray(channel.dataobj).transpose()
        assert (study.image[number] == expected).all()
    chosen = find(tmp_path, channel=1).references[0]
    assert (sources.read(chosen, Vocabulary.as_found({})).image == study.image[1:2]).all()
    with pytest.raises(DataError, match=r"channel 3.*3 channels"):
        sources.read(find(tmp_path, channel=3).references[0], Vocabulary.as_found({}))


def test_channels_on_other_grids_than_the_first_are_refused(tmp_path: Path) -> None:
    shifted = np.eye(4)
    shifted[0, 3] = 9
    for shape, affine in (((5, 6, 8), np.eye(4)), ((5, 6, 7), shifted)):
        write_volume(tmp_path / "imagesTr" / "a_0000.nii.gz", np.ones((5, 6, 7), np.float32), np.eye(4))
        write_volume(tmp_path / "imagesTr" / "a_0001.nii.gz", np.ones(shape, np.float32), affine)
        write_volume(tmp_path / "labelsTr" / "a.nii.gz", np.ones((5, 6, 7), np.uint8), np.eye(4))
        (reference,) = find(tmp_path).references
        with pytest.raises(DataError, match="channels") as error:
            sources.read(reference, Vocabulary.as_found({}))
        assert error.value.code is ErrorCode.GEOMETRY_MISMATCH


def test_numbered_images_with_labels_of_their_own_are_no_channels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/scan_{n:04}.nii.gz" for kind in ("imagesTr", "labelsTr") for n in range(3)))
    touch(tmp_path, "dataset.json")
    assert [one.key for one in find(tmp_path).references] == ["scan_0000", "scan_0001", "scan_0002"]


def test_numbered_images_without_labels_are_images_and_only_in_nnunets_folders_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz")
    assert len(find(tmp_path).references) == 2
    touch(tmp_path, "dataset.json")
    assert len(find(tmp_path).references) == 1


def test_label_without_its_image_and_what_lies_elsewhere_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "labels/a.png", "labels/b.png", "labels/c.txt", "preview.png", "readme.md")
    assert find(tmp_path).left_out == {LONELY_LABEL: 1, NO_IMAGE: 2, BESIDE: 1}


def test_four_images_of_a_patient_and_one_label_are_not_guessed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"P1/P1_{name}.nii.gz" for name in ("t1", "t2", "flair", "seg")))
    found = find(tmp_path)
    assert [one.labels for one in found.references] == [()] * 3
    assert found.left_out == {LONELY_LABEL: 1}


def test_bids_labels_are_those_of_derivatives_and_subjects_are_patients(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "dataset_description.json",
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_T2w.nii.gz",
        "sub-2/ses-a/anat/sub-2_ses-a_FLAIR.nii.gz",
        "sub-2/ses-b/anat/sub-2_ses-b_FLAIR.nii.gz",
        "derivatives/manual/sub-1/anat/sub-1_T2w_label-lesion_seg.nii.gz",
        "derivatives/manual/sub-2/ses-b/anat/sub-2_ses-b_space-orig_desc-lesion_mask.nii.gz",
        "derivatives/prep/sub-2/ses-a/anat/sub-2_ses-a_space-MNI152_label-lesion_dseg.nii.gz",
        "derivatives/prep/sub-2/ses-a/anat/sub-2_ses-a_desc-brain_mask.nii.gz",
        "derivatives/prep/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz",
    )
    found = find(tmp_path)
    labels = {Path(one.key).name: [Path(*path.parts[-1:]).name for path in one.labels] for one in found.references}
    assert labels == {
        "sub-1_T1w": [],
        "sub-1_T2w": ["sub-1_T2w_label-lesion_seg.nii.gz"],
        "sub-2_ses-a_FLAIR": [],
        "sub-2_ses-b_FLAIR": ["sub-2_ses-b_space-orig_desc-lesion_mask.nii.gz"],
    }
    assert [one.patient for one in found.references] == ["sub-1", "sub-1", "sub-2", "sub-2"]
    # The label in another space and the mask of the brain; the program's own image; the description.
    assert found.left_out == {LONELY_LABEL: 2, BESIDE: 1, NO_IMAGE: 1}
    assert any("BIDS" in what for what in found.assumed)


def test_bids_label_that_two_images_could_own_goes_to_none(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_T2w.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_dseg.nii.gz",
    )
    found = find(tmp_path)
    assert [one.labels for one in found.references] == [(), ()]
    assert found.left_out == {LONELY_LABEL: 1}


def test_prediction_leaves_the_labels_of_a_folder_out(tmp_path: Path) -> None:
    touch(tmp_path, "x.nii.gz", "x_seg.nii.gz", "p/ct.nii.gz", "p/mask.nii.gz", "labels/y.nii.gz")
    assert [one.key for one in sources.find_images(tmp_path)] == ["p/ct.nii.gz", "x.nii.gz"]
    assert len(sources.find_images(tmp_path / "x_seg.nii.gz")) == 1  # asked for by name


def test_gif_mask_has_the_grey_levels_that_are_seen_whatever_its_palette(tmp_path: Path) -> None:
    seen = np.zeros((20, 30), np.uint8)
    seen[2:12, 5:25] = 255
    write_picture(tmp_path / "images" / "x.png", GREY)
    (tmp_path / "labels").mkdir()
    turned = Image.fromarray((seen == 0).astype(np.uint8), mode="P")  # index 0 is white, index 1 black
    turned.putpalette([255, 255, 255, 0, 0, 0])
    turned.save(tmp_path / "labels" / "x.gif")
    assert (np.asarray(Image.open(tmp_path / "labels" / "x.gif").convert("L")) == seen).all()
    (reference,) = find(tmp_path).references
    study = sources.read(reference, VESSEL)
    assert study.label is not None
    assert (study.label == (seen > 0)).all()


def test_gif_of_colours_or_of_several_pictures_is_no_mask_and_no_image(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "x.png", GREY)
    touch(tmp_path, "images/y.gif")
    (tmp_path / "labels").mkdir()
    coloured = Image.fromarray(GREY % 2, mode="P")
    coloured.putpalette([255, 0, 0, 0, 0, 255])
    moving = [Image.fromarray(GREY % 2 * np.uint8(value)) for value in (255, 128)]
    found = find(tmp_path)
    assert (len(found.references), found.left_out) == (1, {NO_IMAGE: 1})
    for save in (
        coloured.save,
        lambda path: moving[0].save(path, save_all=True, append_images=moving[1:]),
    ):
        save(tmp_path / "labels" / "x.gif")
        with pytest.raises(DataError) as error:
            sources.read(find(tmp_path).references[0], VESSEL)
        assert error.value.code is ErrorCode.UNSUPPORTED


PATTERNS = {"image_pattern": "(case-[0-9]+)/T1/.+_image", "label_pattern": "(case-[0-9]+)/label/.+_label"}


def test_patterns_say_which_file_is_what_where_names_do_not(tmp_path: Path) -> None:
    touch(tmp_path, "case-1/T1/a_image.nii.gz", "case-1/T2/a_image.nii.gz", "case-1/label/a_label.nii.gz")
    touch(tmp_path, "case-2/T1/b_image.nii.gz", "case-3/label/c_label.nii.gz", "notes.txt")
    touch(tmp_path, "case-2/label/b_label_old.nii.gz")  # the whole name counts
    found = find(tmp_path, kind="nifti", **PATTERNS)
    assert [names(tmp_path, one) for one in found.references] == [
        (["case-1/T1/a_image.nii.gz"], ["case-1/label/a_label.nii.gz"]),
        (["case-2/T1/b_image.nii.gz"], []),
    ]
    assert [one.patient for one in found.references] == ["case-1", "case-2"]
    assert found.left_out == {LONELY_LABEL: 1, NO_IMAGE: 3}
    named = find(tmp_path, kind="nifti", **PATTERNS, patient_pattern="case-([0-9])")
    assert [one.patient for one in named.references] == ["1", "2"]


def test_several_images_of_a_case_are_channels_and_one_that_lacks_one_is_set_aside(tmp_path: Path) -> None:
    for case, contrasts in (("a", ("t2", "flair")), ("b", ("flair",))):
        touch(tmp_path, f"{case}_seg.nii.gz", *(f"{case}_{contrast}.nii.gz" for contrast in contrasts))
    patterns = {"image_pattern": "(.+)_(?:flair|t2)", "label_pattern": "(.+)_seg"}
    whole, lacking = find(tmp_path, kind="nifti", **patterns).references
    assert names(tmp_path, whole) == (["a_flair.nii.gz", "a_t2.nii.gz"], ["a_seg.nii.gz"])
    assert whole.problem is None
    assert lacking.problem is not None
    assert "finds 1 files of this image, and 2 of others" in str(lacking.problem)
    first, second = find(tmp_path, kind="nifti", **patterns, channel=1).references
    assert names(tmp_path, first)[0] == ["a_t2.nii.gz"]
    assert second.problem is not None


def test_a_case_with_a_file_too_many_does_not_set_the_others_aside(tmp_path: Path) -> None:
    for case in "abc":
        touch(tmp_path, f"{case}_seg.nii.gz", f"{case}_flair.nii.gz", f"{case}_t2.nii.gz")
    touch(tmp_path, "a_old_t2.nii.gz")
    patterns = {"image_pattern": "([a-z]).*_(?:flair|t2)", "label_pattern": "(.+)_seg"}
    problems = [one.problem for one in find(tmp_path, kind="nifti", **patterns).references]
    assert "finds 3 files of this image, and 2 of others" in str(problems[0])
    assert problems[1:] == [None, None]


def test_one_file_with_two_endings_is_no_second_channel(tmp_path: Path) -> None:
    touch(tmp_path, "a_seg.nii.gz", "a_flair.nii.gz", "a_flair.nii", "b_seg.nii.gz", "b_flair.nii.gz", "b_t2.nii.gz")
    patterns = {"image_pattern": "(.+)_(?:flair|t2)", "label_pattern": "(.+)_seg"}
    twice, whole = find(tmp_path, kind="nifti", **patterns).references
    assert "2 images have the same name" in str(twice.problem)
    assert whole.problem is None


def test_a_pattern_whose_group_takes_no_part_finds_no_case(tmp_path: Path) -> None:
    touch(tmp_path, "a_image.nii.gz", "b_image.nii.gz", "a_label.nii.gz")
    patterns = {"image_pattern": "(?:(a)|b)_image", "label_pattern": "(.+)_label"}
    found = find(tmp_path, kind="nifti", **patterns)
    assert [one.key for one in found.references] == ["a"]
    assert found.left_out == {NO_IMAGE: 1}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"image_pattern": "(.+)"}, "label-pattern is missing"),
        ({"label_pattern": "(.+)"}, "image-pattern is missing"),
        ({"image_pattern": "(.+", "label_pattern": "(.+)"}, "image-pattern .* is no regular expression"),
        ({"image_pattern": "(.+)", "label_pattern": ".+"}, "label-pattern .* has no group"),
    ],
)
def test_patterns_that_are_none_say_what_to_do(tmp_path: Path, patterns: dict[str, str], message: str) -> None:
    touch(tmp_path, "a.nii.gz")
    with pytest.raises(ConfigError, match=message):
        find(tmp_path, kind="nifti", **patterns)
