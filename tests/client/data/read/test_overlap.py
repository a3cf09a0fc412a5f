"""Labels whose classes overlap, in every way a site may have them: each class keeps all of its voxels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.cohort import prepared
from client.data.isolate.answering import Job, Reading, read_study
from client.data.isolate.isolation import Readers
from client.data.prepare.preprocess import preprocess, restore
from client.data.read import sources
from client.data.study.drawing import COLOURS, contours, outlines
from client.data.study.labels import Vocabulary
from client.data.survey import job_of
from common.config import DataConfig, RunConfig, SourceConfig
from common.errors import DataError, ErrorCode
from tests.client.data.read.test_rtstruct import structure_set
from tests.client.data.studies import ct_slices, run_config, save, segmentation, source, write_picture, write_volume

SHAPE = (5, 24, 31)
SPACING_MM = (4.0, 0.9, 0.5)
LIVER, LESION = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
LIVER[1:4, 4:16, 5:25] = True
LESION[2:4, 6:10, 8:14] = True
LESION[3, 14:18, 20:27] = True  # reaches out of the liver
BITS = (LIVER + 2 * LESION).astype(np.uint8)
TWO = DataConfig(modality="CT", classes=("liver", "lesion"))
BOTH, ONE = (Vocabulary.of_run(TWO, {}, overlap=overlap) for overlap in (True, False))


def ct(folder: Path, *labels: Any) -> None:
    """A series, and beside it what each of the functions makes of its slices."""
    slices = ct_slices(np.random.default_rng(1).integers(0, 3000, SHAPE), spacing_mm=SPACING_MM)
    save(folder, slices)
    save(folder, [make(slices) for make in labels], "label{}.dcm")


def found(folder: Path, wanted: Vocabulary = BOTH, **values: Any) -> np.ndarray:
    (reference,) = sources.find(source(path=str(folder), **values), folder).references
    label = sources.read(reference, wanted).label
    assert label is not None
    return label


def box(mask: np.ndarray) -> list[tuple[int, list[tuple[float, float]]]]:
    """Contours around a box on each slice."""
    contours_ = []
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        y, x = (np.flatnonzero(mask[z].any(axis=axis)) for axis in (1, 0))
        low, high = (y[0] - 0.5, x[0] - 0.5), (y[-1] + 0.5, x[-1] + 0.5)
        contours_.append((int(z), [low, (low[0], high[1]), high, (high[0], low[1])]))
    return contours_


def test_segments_of_a_dicom_seg_overlap(tmp_path: Path) -> None:
    for order in (("liver", "lesion"), ("lesion", "liver")):
        masks = {"liver": LIVER, "lesion": LESION}
        ct(
            tmp_path / order[0],
            lambda slices, order=order, masks=masks: segmentation(slices, {k: masks[k] for k in order}),
        )
        np.testing.assert_array_equal(found(tmp_path / order[0]), BITS)
        later_wins = np.where(LESION, 2, LIVER).astype(np.uint8)
        np.testing.assert_array_equal(found(tmp_path / order[0], ONE), later_wins)


def test_a_labelmap_gives_each_voxel_the_bit_of_its_one_class(tmp_path: Path) -> None:
    apart = LESION & ~LIVER
    ct(tmp_path, lambda slices: segmentation(slices, {"liver": LIVER, "lesion": apart}, "LABELMAP"))
    np.testing.assert_array_equal(found(tmp_path), LIVER + 2 * apart)


def test_regions_of_a_structure_set_overlap(tmp_path: Path) -> None:
    inner = LESION.copy()
    inner[3, 14:18] = False
    ct(tmp_path, lambda slices: structure_set(slices, {"liver": box(LIVER), "lesion": box(inner)}))
    np.testing.assert_array_equal(found(tmp_path), LIVER + 2 * inner)


def test_files_of_one_series_overlap_and_their_names_join(tmp_path: Path) -> None:
    """A segmentation and a structure set; a second lesion by another name goes to the same class."""
    far = np.zeros(SHAPE, bool)
    far[1, 5:8, 20:24] = True
    ct(
        tmp_path,
        lambda slices: structure_set(slices, {"liver": box(LIVER)}),
        lambda slices: segmentation(slices, {"lesion": LESION}),
        lambda slices: segmentation(slices, {"met": far}),
    )
    wanted = Vocabulary.of_run(TWO, {"met": "lesion"}, overlap=True)
    label = found(tmp_path, wanted, label_map={"met": "lesion"})
    np.testing.assert_array_equal(label, LIVER + 2 * (LESION | far))


def test_a_class_within_another_is_there_though_named_first(tmp_path: Path) -> None:
    """Where classes may not overlap it would be gone, and the study is set aside."""
    first = DataConfig(modality="CT", classes=("lesion", "liver"))
    inner = LESION & LIVER
    ct(tmp_path, lambda slices: segmentation(slices, {"liver": LIVER, "lesion": inner}))
    np.testing.assert_array_equal(found(tmp_path, Vocabulary.of_run(first, {}, overlap=True)), inner + 2 * LIVER)
    with pytest.raises(DataError, match="lies wholly under a class") as refused:
        found(tmp_path, Vocabulary.of_run(first, {}))
    assert refused.value.code is ErrorCode.LABEL_DOUBTFUL


def test_two_versions_of_one_class_are_asked_about_as_ever(tmp_path: Path) -> None:
    moved = np.roll(LESION, 3, axis=2)
    ct(
        tmp_path,
        lambda slices: segmentation(slices, {"liver": LIVER, "lesion": LESION}),
        lambda slices: segmentation(slices, {"lesion": moved}),
    )
    with pytest.raises(DataError, match="draw the same class at the same place and differently") as refused:
        found(tmp_path)
    assert refused.value.code is ErrorCode.LABEL_DOUBTFUL


def write_table(folder: Path, cell: str, *, volume: bool = False) -> SourceConfig:
    """An image, a mask of each class, and a table of them."""
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    if volume:
        affine = np.diag([-0.5, -0.9, 4.0, 1.0])
        for name, voxels in (("image", image.astype(np.float32)), ("a", LIVER), ("b", LESION)):
            stored = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
            write_volume(folder / f"{name}.nii.gz", stored.transpose(2, 1, 0), affine)
    else:
        for name, pixels in (("image", image[3]), ("a", LIVER[3] * np.uint8(255)), ("b", LESION[3] * np.uint8(1))):
            write_picture(folder / f"{name}.png", pixels)
    suffix = "nii.gz" if volume else "png"
    (folder / "table.csv").write_text(f"image,id,mask\nimage.{suffix},p1,{cell.replace('*', suffix)}\n")
    return source(path=str(folder), csv="table.csv")


CELL = "liver=a.*|lesion=b.*"


@pytest.mark.parametrize("volume", [False, True])
def test_a_table_names_a_mask_of_each_class(tmp_path: Path, volume: bool) -> None:
    (reference,) = sources.find(write_table(tmp_path, CELL, volume=volume), tmp_path).references
    assert reference.problem is None
    study = sources.read(reference, BOTH)
    np.testing.assert_array_equal(study.label, BITS if volume else BITS[3])
    assert study.labelling is not None
    assert study.labelling.files == 2
    only = sources.read(reference, ONE).label
    np.testing.assert_array_equal(only, np.where(LESION, 2, LIVER) if volume else np.where(LESION, 2, LIVER)[3])
    assert sources.read(reference, Vocabulary.as_found({})).classes == ("liver", "lesion")


def test_local_names_of_masks_go_through_the_label_map(tmp_path: Path) -> None:
    config = write_table(tmp_path, "Leber = a.*| rest=b.*")
    (reference,) = sources.find(config, tmp_path).references
    wanted = Vocabulary.of_run(TWO, {"leber": "liver", "rest": "background"}, overlap=True)
    np.testing.assert_array_equal(sources.read(reference, wanted).label, LIVER[3])
    with pytest.raises(DataError, match="mask 1 is labelled with a name that is no class") as refused:
        sources.read(reference, BOTH)
    assert refused.value.code is ErrorCode.LABEL_UNKNOWN


@pytest.mark.parametrize(
    ("cell", "code", "says"),
    [
        (
            "liver=a.*|lesion=c.*",
            ErrorCode.NO_LABEL,
            "line 2 of the table, column mask: the file it names is not there",
        ),
        ("liver=a.*|liver=b.*", ErrorCode.UNSUPPORTED, "two masks have one name"),
        ("liver=a.*|lesion=image.*", ErrorCode.NO_LABEL, "is the image itself"),
        ("liver=a.*|" + "|".join(f"n{number}=b.png" for number in range(80)), None, ""),
    ],
)
def test_what_a_cell_of_masks_may_not_say(tmp_path: Path, cell: str, code: ErrorCode | None, says: str) -> None:
    (reference,) = sources.find(write_table(tmp_path, cell), tmp_path).references
    problem = reference.problem
    assert (None if problem is None else problem.code) == code
    assert says in str(problem or "")


def test_a_mask_of_one_class_has_one_value(tmp_path: Path) -> None:
    config = write_table(tmp_path, CELL)
    write_picture(tmp_path / "b.png", BITS[3] // 2 + LIVER[3] * np.uint8(2))
    (reference,) = sources.find(config, tmp_path).references
    with pytest.raises(DataError, match="is to mark one class, and holds 3 values"):
        sources.read(reference, BOTH)


def test_a_plain_map_gives_each_value_its_bit(tmp_path: Path) -> None:
    numbers = np.where(LESION, 2, LIVER).astype(np.uint8)
    image = np.random.default_rng(0).integers(0, 256, SHAPE[1:], dtype=np.uint8)
    write_picture(tmp_path / "images" / "1.png", image)
    write_picture(tmp_path / "labels" / "1.png", numbers[3])
    np.testing.assert_array_equal(found(tmp_path), numbers[3])  # 2 is the bit of class 2
    three = DataConfig(modality="CT", classes=("liver", "vessel", "lesion"))
    wanted = Vocabulary.of_run(three, {"1": "liver", "2": "lesion"}, overlap=True)
    np.testing.assert_array_equal(
        found(tmp_path, wanted, label_map={"1": "liver", "2": "lesion"}), np.where(numbers[3] == 2, 4, numbers[3])
    )


def run_of(**tables: Any) -> RunConfig:
    return run_config(
        **{"format": 2, "data": TWO.model_dump(), "task": {"kind": "segmentation", "multi-label": True}, **tables}
    )


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    ct(tmp_path, lambda slices: segmentation(slices, {"liver": LIVER, "lesion": LESION}))
    config = source(path=str(tmp_path))
    with Readers(1) as readers:
        (reference,) = readers.find(config, tmp_path).references
        (reading,) = readers.read([job_of(reference, config, run_of(), labels=True)])
    assert isinstance(reading, Reading)
    assert reading.study.overlap
    np.testing.assert_array_equal(reading.study.label, BITS)


def test_facts_count_each_class(tmp_path: Path) -> None:
    ct(tmp_path, lambda slices: segmentation(slices, {"liver": LIVER, "lesion": LESION}))
    (reference,) = sources.find(source(path=str(tmp_path)), tmp_path).references
    with Readers(0) as readers:
        (checked,) = readers.check([Job(reference, BOTH)])
    assert not isinstance(checked, DataError)
    voxels = {"background": int((BITS == 0).sum()), "liver": int(LIVER.sum()), "lesion": int(LESION.sum())}
    assert checked.facts.voxels == voxels


def test_slices_that_lack_a_class_are_told_though_another_is_on_them(tmp_path: Path) -> None:
    """Every second slice of the lesion is missing, within a liver that is on all of them."""
    whole, holes = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    whole[:, 4:16, 5:25] = True
    holes[::2, 6:10, 8:14] = True
    ct(tmp_path, lambda slices: segmentation(slices, {"liver": whole, "lesion": holes}))
    (reference,) = sources.find(source(path=str(tmp_path)), tmp_path).references
    with pytest.raises(DataError, match="40% of the slices that a class") as refused:
        read_study(Job(reference, BOTH))
    assert refused.value.code is ErrorCode.LABEL_DOUBTFUL


def test_a_prepared_label_is_made_of_the_classes_voxels_and_goes_back(tmp_path: Path) -> None:
    ct(tmp_path, lambda slices: segmentation(slices, {"liver": LIVER, "lesion": LESION}))
    config = source(path=str(tmp_path))
    (reference,) = sources.find(config, tmp_path).references
    run = run_of(preprocessing={"spacing-mm": [0.45, 1.0]})
    reading = read_study(job_of(reference, config, run, labels=True))
    done = prepared(reading, run)
    assert not isinstance(done, DataError)
    for number, name in enumerate(TWO.classes, start=1):
        alone = run_config(data={"modality": "CT", "classes": [name]}, preprocessing={"spacing-mm": [0.45, 1.0]})
        words = {other: "background" for other in TWO.classes if other != name}
        one = read_study(Job(reference, Vocabulary.of_run(alone.data, words)))
        of_one = prepared(one, alone)
        assert not isinstance(of_one, DataError)
        np.testing.assert_array_equal(run.task.marks(done.labels, number).numpy(), of_one.labels.numpy() > 0)
    same = preprocess(reading.study, run_of())
    assert same.label is not None
    np.testing.assert_array_equal(restore(same.label, same.way), BITS)


def test_a_step_that_cuts_one_class_of_several_is_told_by_class(tmp_path: Path) -> None:
    """All of the liver stays; of the lesion, which reaches out of it, a part would be cut."""
    stored = np.where(np.broadcast_to(LIVER.any(0), SHAPE), 2000, 10)
    slices = ct_slices(stored, spacing_mm=SPACING_MM)
    save(tmp_path, slices)
    save(tmp_path, [segmentation(slices, {"liver": LIVER, "lesion": LESION})], "seg{}.dcm")
    config, run = source(path=str(tmp_path)), run_of(preprocessing={"steps": [{"kind": "crop-to-foreground"}]})
    (reference,) = sources.find(config, tmp_path).references
    refused = prepared(read_study(job_of(reference, config, run, labels=True)), run)
    assert isinstance(refused, DataError)
    cut = 1 - (LESION & np.broadcast_to(LIVER.any(0), SHAPE))[:, :16, :25].sum() / LESION.sum()
    assert f"cut off {cut:.0%} of a class" in str(refused)


def test_each_class_has_its_contour() -> None:
    drawn = outlines(BITS[3], overlap=True)
    lesion, liver = (contours(mask[3].astype(np.uint8)) for mask in (LESION, LIVER))
    np.testing.assert_array_equal(drawn == 2, lesion)
    np.testing.assert_array_equal(drawn == 1, liver & ~lesion)
    assert len(COLOURS) < 8
    plain = np.where(LESION, 2, LIVER)[3].astype(np.uint8)
    np.testing.assert_array_equal(outlines(plain, overlap=False), plain * contours(plain))
