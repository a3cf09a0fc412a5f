"""Labels that say less than was drawn: parts outside of the image, empty slices between drawn ones, two versions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from client.data.check.checkup import Checkup, check_site
from client.data.check.tables import document, tables
from client.data.isolate.answering import Job, check_study
from client.data.quality.quality import Facts, examine
from client.data.read import sources
from client.data.study.label_checks import holes
from client.data.study.labels import Vocabulary
from client.data.study.study import Study
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.read.test_rtstruct import structure_set
from tests.client.data.studies import KEY, ct_slices, save, segmentation, site, source

SHAPE = (12, 20, 24)


def ct(shape: tuple[int, int, int] = SHAPE, seed: int = 1, **options: object) -> list[Dataset]:
    return ct_slices(np.random.default_rng(seed).integers(0, 3000, shape), **options)  # type: ignore[arg-type]


def box(where: tuple[slice, slice, slice], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[where] = 1
    return mask


def facts_of(folder: Path, **options: object) -> Facts:
    """As `data check` looks at the only study of a folder, without a run."""
    (reference,) = sources.find(source(path=".", **options), folder).references
    return check_study(Job(reference, Vocabulary.as_found(reference.label_map))).facts


def assert_doubtful(folder: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as error:
        facts_of(folder)
    assert error.value.code is ErrorCode.LABEL_DOUBTFUL
    assert "labels-checked" in str(error.value)


def square(z: int, size: float = 6.0) -> tuple[int, list[tuple[float, float]]]:
    return z, [(4.0, 4.0), (4.0, 4.0 + size), (4.0 + size, 4.0 + size), (4.0 + size, 4.0)]


def check(home: Path, *folders: str, **options: object) -> Checkup:
    sources_of_site = [source(path=folder, **options) for folder in folders]
    return check_site(home, site(*sources_of_site), KEY, None, readers=0)


@pytest.mark.parametrize(
    ("drawn", "share"),
    [
        ([2, 3, 4], 0.0),
        ([2, 4, 6, 8], 3 / 7),
        ([0, 3, 6, 9], 6 / 10),
        ([2, 3, 4, 5, 7, 8], 1 / 7),
        ([0, 5, 10], 8 / 11),  # four empty ones between
        ([0, 6], 0.0),  # five: two lesions, one above the other
        ([7], 0.0),
    ],
)
def test_holes_are_the_empty_slices_between_drawn_ones(drawn: list[int], share: float) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[drawn, 4:9, 4:9] = 2
    label[:, 15:, 15:] = 1  # another class has none
    assert holes(label) == pytest.approx(share)


def test_two_lesions_side_by_side_are_no_hole() -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[2, 4:9, 4:9] = label[4, 12:16, 12:16] = 1
    assert holes(label) == 0
    assert holes(label[0]) == 0  # a picture has no slices


def test_contours_on_every_second_slice_are_asked_about(tmp_path: Path) -> None:
    slices = ct()
    save(tmp_path, [*slices, structure_set(slices, {"lesion": [square(z) for z in (2, 4, 6, 8)]})])
    assert_doubtful(tmp_path, "43% of the slices")
    assert facts_of(tmp_path, labels_checked=True).holes == pytest.approx(3 / 7)


def test_one_forgotten_slice_is_told_and_taken(tmp_path: Path) -> None:
    slices = ct()
    save(tmp_path / "ct", [*slices, structure_set(slices, {"lesion": [square(z) for z in (2, 3, 4, 6, 7)]})])
    told = check(tmp_path, "ct")
    assert document(told)["studies"][0]["labels"]["holes"] == pytest.approx(1 / 6)
    (table,) = (table for table in tables(told) if table.title == "Labels")
    assert [(row[1], row[2]) for row in table.rows if "holes" in str(row[0])] == [(1, "17% of a class's slices")]


def resampled(tmp_path: Path, mask: np.ndarray, shift_mm: tuple[float, float, float], step_mm: float = 0.8) -> Path:
    """A study whose label was drawn on a grid of its own in the same frame of reference."""
    slices, others = ct(spacing_mm=(2.0, 0.8, 0.8)), ct(mask.shape, spacing_mm=(2.0, step_mm, step_mm))
    for ds in others:
        ds.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
        ds.ImagePositionPatient = [float(x) for x in np.array(ds.ImagePositionPatient, float) + shift_mm]
    seg = segmentation(others, {"lesion": mask})
    del seg.ReferencedSeriesSequence
    save(tmp_path / "ct", [*slices, seg])
    return tmp_path / "ct"


def test_label_of_which_a_part_lies_outside_of_the_image_is_asked_about(tmp_path: Path) -> None:
    # 8 columns of 0.8 mm, moved by 5.2 mm over the right edge: columns 14.. lie at 20.5.. of 24, four are outside.
    folder = resampled(tmp_path, box((slice(2, 9), slice(4, 10), slice(14, 22))), (5.2, 0.0, 0.0))
    assert_doubtful(folder, "50% of a class of the label lie outside")
    facts = facts_of(folder, labels_checked=True)
    assert facts.resampled == 1
    assert facts.lost == pytest.approx(0.5)


def test_class_that_is_too_small_for_the_images_voxels_is_not_lost_in_silence(tmp_path: Path) -> None:
    shape = (12, 80, 96)
    organ, lesion = box((slice(2, 9), slice(20, 60), slice(20, 60)), shape), np.zeros(shape, np.uint8)
    lesion[5, 30, 30] = 1  # between the centres of the image's voxels, which are four times as large
    slices, fine = ct(spacing_mm=(2.0, 0.8, 0.8)), ct(shape, spacing_mm=(2.0, 0.2, 0.2))
    for ds in fine:
        ds.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    seg = segmentation(fine, {"organ": organ, "lesion": lesion})
    del seg.ReferencedSeriesSequence
    save(tmp_path, [*slices, seg])
    assert_doubtful(tmp_path, "100% of a class")


def test_label_that_was_resampled_whole_is_told_and_taken(tmp_path: Path) -> None:
    folder = resampled(tmp_path, box((slice(2, 9), slice(4, 10), slice(4, 12))), (0.3, 0.2, 0.0))
    facts = facts_of(folder)
    assert (facts.labels, facts.resampled, facts.lost) == (1, 1, 0.0)
    titles = [row[0] for table in tables(check(tmp_path, "ct")) if table.title == "Labels" for row in table.rows]
    assert titles == ["name no image, placed by the frame of reference", "resampled to the image's grid"]


def test_label_on_the_images_own_voxels_is_not_called_resampled(tmp_path: Path) -> None:
    folder = resampled(tmp_path, box((slice(2, 9), slice(4, 10), slice(4, 12))), (1.6, 0.8, 0.0))
    facts = facts_of(folder)
    assert (facts.resampled, facts.lost) == (0, 0.0)
    assert facts.voxels["lesion"] == 7 * 6 * 8


def versions(folder: Path, *masks: np.ndarray, name: str = "lesion") -> Path:
    slices = ct()
    save(folder, slices)
    save(folder, [segmentation(slices, {name: mask}) for mask in masks], "seg{}.dcm")
    return folder


def test_two_versions_of_a_label_are_not_united(tmp_path: Path) -> None:
    first, corrected = (box((slice(2, 9), slice(4, 10), slice(4, end))) for end in (14, 9))
    assert_doubtful(versions(tmp_path, first, corrected), "420 and 210 voxels, 210 in common")
    facts = facts_of(tmp_path, labels_checked=True)
    assert (facts.labels, facts.voxels["lesion"]) == (2, 420)


def test_two_lesions_in_two_files_and_a_copy_are_drawn_together_and_told(tmp_path: Path) -> None:
    one, other = box((slice(2, 9), slice(4, 10), slice(4, 9))), box((slice(2, 9), slice(12, 18), slice(12, 18)))
    facts = facts_of(versions(tmp_path, one, other, one))
    assert (facts.labels, facts.voxels["lesion"]) == (3, 7 * 6 * 5 + 7 * 6 * 6)


def test_lesion_that_its_organ_covers_does_not_vanish_in_silence(tmp_path: Path) -> None:
    slices = ct()
    organ, lesion = (box((slice(2, 9), slice(4, end), slice(4, end))) for end in (14, 8))
    save(tmp_path, slices)
    save(tmp_path, [segmentation(slices, {"organ": organ, "lesion": lesion})], "seg{}.dcm")
    (reference,) = sources.find(source(path="."), tmp_path).references
    for classes, left in ((("lesion", "organ"), None), (("organ", "lesion"), lesion.sum())):
        wanted = Vocabulary.of_run(DataConfig(modality="CT", classes=classes), {})
        if left is None:
            with pytest.raises(DataError, match="lesion lies wholly under a class") as error:
                sources.read(reference, wanted)
            assert error.value.code is ErrorCode.LABEL_DOUBTFUL
        else:
            label = sources.read(reference, wanted).label
            assert label is not None
            assert (label == 2).sum() == left
    assert facts_of(tmp_path).has_foreground


def test_two_names_that_the_label_map_joins_may_lie_over_each_other(tmp_path: Path) -> None:
    slices = ct()
    whole, core = (box((slice(2, 9), slice(4, end), slice(4, end))) for end in (14, 8))
    save(tmp_path, slices)
    save(tmp_path, [segmentation(slices, {n: m}) for n, m in (("whole", whole), ("core", core))], "seg{}.dcm")
    facts = facts_of(tmp_path, label_map={"whole": "tumour", "core": "tumour"})
    assert facts.voxels["tumour"] == whole.sum()


@pytest.mark.parametrize(("share", "doubted"), [(0.79, False), (0.81, True), (1.0, True)])
def test_label_of_one_class_that_marks_nearly_everything_is_asked_about(share: float, doubted: bool) -> None:
    study = _pictured(share)
    if not doubted:
        assert examine(study, empty_is_negative=False).voxels["lesion"] == round(share * 10_000)
        return
    with pytest.raises(DataError, match="inverted") as error:
        examine(study, empty_is_negative=False)
    assert error.value.code is ErrorCode.LABEL_DOUBTFUL
    assert "labels-checked = true" in str(error.value)
    examine(study, empty_is_negative=False, labels_checked=True)


def test_label_of_two_classes_may_fill_the_image() -> None:
    study = _pictured(1.0)
    assert study.label is not None
    study.label[50:] = 2
    assert examine(replace(study, classes=("liver", "lesion")), empty_is_negative=False)


def _pictured(share: float) -> Study:
    """A picture of 100 x 100 whose label marks a share of it."""
    image = np.arange(10_000, dtype=np.float32).reshape(1, 100, 100)
    label = (np.arange(10_000) < round(share * 10_000)).astype(np.uint8).reshape(100, 100)
    return Study(image, label, None, None, "", "p", "k", (), ("lesion",))
