"""Classes of whole images, and regions: from a table or a map to what training sees, and what is refused."""

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from client.data.check.checkup import check_site
from client.data.check.tables import document, tables
from client.data.cohort import Cohort, read_studies
from client.data.isolate import answer_checks
from client.data.isolate.isolation import Job
from client.data.read import sources
from client.data.regions import centres, cut_regions
from client.data.study.labels import Vocabulary
from client.data.study.study import Reference
from client.home.sitefile import add_source
from common.config import RunConfig, SiteConfig, SourceConfig, load
from common.config.rundocument import issue
from common.errors import ConfigError, ErrorCode
from tests.client.data.cohorts import load_cohort
from tests.client.data.studies import KEY, write_pair, write_picture
from tests.simulations.classed import LABEL_MAP, WORDS, classed_run, classed_site, picture

RUN = classed_run()


def a_table(folder: Path, *rows: tuple[str, ...], label_map: dict[str, str] | None = None) -> SiteConfig:
    """A site whose table has these rows: picture, patient, word, and what is too much; the pictures differ."""
    rng = np.random.default_rng(len(rows))
    for name, _, word, *_ in rows:
        if name and not (folder / name).exists():
            write_picture(folder / name, picture(word, rng))
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "id", "finding"), *rows])
    source = SourceConfig(
        path=str(folder),
        csv="table.csv",
        class_column="finding",
        label_map=LABEL_MAP if label_map is None else label_map,
    )
    return SiteConfig(format=2, name="north", data=(source,))


def cohort_of(site: SiteConfig, run: RunConfig = RUN, **options: Any) -> Cohort:
    return load_cohort(site, run, root=Path("/"), site_key=KEY, **options)


def codes(cohort: Cohort) -> list[str]:
    return sorted(str(one.code) for one in cohort.quarantined)


def test_words_of_a_table_become_classes_at_every_voxel(tmp_path: Path) -> None:
    cohort = cohort_of(classed_site(tmp_path, "north"))
    assert codes(cohort) == []
    assert sorted(int(case.labels.max()) for case in cohort.cases) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(bool((case.labels == case.labels.max()).all()) for case in cohort.cases)
    assert {case.labels.dtype for case in cohort.cases} == {torch.uint8}


def test_a_child_process_and_the_cache_change_nothing(tmp_path: Path) -> None:
    site = classed_site(tmp_path / "pictures", "north")
    cold = cohort_of(site, cache=tmp_path / "cache", readers=1)
    for warm in (cohort_of(site, cache=tmp_path / "cache"), cohort_of(site)):
        for one, other in zip(cold.cases, warm.cases, strict=True):
            assert (one.patient, one.split) == (other.patient, other.split)
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


def test_a_cache_of_one_kind_of_label_is_none_of_another(tmp_path: Path) -> None:
    site = a_table(tmp_path / "p", ("a.png", "a", "bright|dark"), ("b.png", "b", "bright"))
    several = cohort_of(site, classed_run(task={"multi-label": True}), cache=tmp_path / "cache")
    assert [int(case.labels.max()) for case in several.cases] == [3, 1]
    assert codes(cohort_of(site, cache=tmp_path / "cache")) == ["unsupported"]


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([("a.png", "a", "")], ErrorCode.NO_LABEL),
        ([("a.png", "a", "suspicious")], ErrorCode.LABEL_UNKNOWN),
        ([("a.png", "a", "bright|suspicious")], ErrorCode.LABEL_UNKNOWN),
        ([("a.png", "a", "bright;dark")], ErrorCode.UNSUPPORTED),
        ([("a.png", "a", "bright"), ("a.png", "a", "dark")], ErrorCode.UNSUPPORTED),
        ([("a.png", "a", "bright"), ("a.png", "z", "bright")], ErrorCode.UNSUPPORTED),
        ([("a.png", "a", "bright"), ("./a.png", "a", "dark")], ErrorCode.UNSUPPORTED),
        ([("a.png", "a", "bright"), ("./a.png", "z", "bright")], ErrorCode.UNSUPPORTED),
        ([("a.png", "", "bright")], ErrorCode.UNSUPPORTED),
        ([("a.png", "a", "bright", "of 2 mm")], ErrorCode.UNSUPPORTED),
        ([("", "a", "bright")], ErrorCode.UNREADABLE),
    ],
)
def test_a_study_whose_class_nobody_can_tell_is_set_aside_and_the_others_stay(
    tmp_path: Path, rows: list[tuple[str, ...]], code: ErrorCode
) -> None:
    site = a_table(tmp_path, *rows, ("sound.png", "b", "dark"))
    cohort = cohort_of(site)
    assert codes(cohort) == [code]
    assert [int(case.labels.max()) for case in cohort.cases] == [2]
    assert "suspicious" not in "".join(one.reason for one in cohort.quarantined)  # free text of a file


def test_rows_that_write_one_image_in_two_ways_and_agree_are_one_study(tmp_path: Path) -> None:
    cohort = cohort_of(a_table(tmp_path, ("a.png", "a", "bright"), ("./a.png", "a", "bright")))
    assert (codes(cohort), len(cohort.cases)) == ([], 1)


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    site = a_table(tmp_path, ("a.png", "a", "bright"))
    (tmp_path / "table.csv").write_text("image,id,finding,finding\na.png,a,bright,dark\n")
    with pytest.raises(ConfigError, match="2 columns 'finding', and which of them class-column"):
        cohort_of(site)


def test_an_image_without_a_row_and_a_row_without_its_image_are_told(tmp_path: Path) -> None:
    site = a_table(tmp_path, ("a.png", "a", "bright"), ("b.png", "b", "dark"))
    (tmp_path / "b.png").unlink()
    write_picture(tmp_path / "c.png", picture("dark", np.random.default_rng(5)))
    assert codes(cohort_of(site)) == ["unreadable"]
    assert sources.find(site.data[0], tmp_path).ignored == 1


def test_a_word_for_none_of_them_is_a_finding_and_no_empty_label(tmp_path: Path) -> None:
    cohort = cohort_of(a_table(tmp_path, ("a.png", "a", "clear"), ("b.png", "b", "background")))
    assert [int(case.labels.max()) for case in cohort.cases] == [0, 0]


def test_a_map_tells_the_classes_that_it_marks(tmp_path: Path) -> None:
    mask = np.zeros((20, 31), np.uint8)
    mask[3:6, 4:9] = 2
    write_pair(tmp_path, "one", mask=mask)
    write_pair(tmp_path, "none", mask=np.zeros((20, 31), np.uint8))
    mask[10:, 4:9] = 1
    write_pair(tmp_path, "both", mask=mask)
    run = classed_run(data={"channels": 3, "classes": ["bright", "dark"]})
    site = SiteConfig(name="north", data=(SourceConfig(path=str(tmp_path), kind="images"),))
    cohort = cohort_of(site, run)
    assert [int(case.labels.max()) for case in cohort.cases] == [2]
    assert codes(cohort) == ["label-empty", "unsupported"]
    negative = SiteConfig(
        name="north", data=(SourceConfig(path=str(tmp_path), kind="images", empty_labels_are_negative=True),)
    )
    several = classed_run(task={"multi-label": True}, data={"channels": 3, "classes": ["bright", "dark"]})
    assert sorted(int(case.labels.max()) for case in cohort_of(negative, several).cases) == [0, 2, 3]


def test_a_run_that_wants_maps_is_told_that_there_are_none(tmp_path: Path) -> None:
    run = classed_run(task={"kind": "segmentation"}, model={"architecture": "unet", "channels": [4, 8]},
                      training={"patch-size": [20, 24]})  # fmt: skip
    site = classed_site(tmp_path, "north", patients=2)
    write_picture(tmp_path / "mask.png", np.pad(np.full((4, 4), 1, np.uint8), ((8, 8), (10, 10))))
    text = (tmp_path / "table.csv").read_text().splitlines()
    lines = [f"{text[0]},mask", f"{text[1]},mask.png", f"{text[2]},"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    assert codes(cohort_of(site, run)) == ["no-label"]
    assert len(cohort_of(site).cases) == 2  # the same source serves both


def test_volumes_of_a_table_are_classed_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(rng.normal(size=(12, 14, 9)), np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "table.csv").write_text("image,id,finding\na.nii.gz,a,dark\nb.nii.gz,b,clear\n")
    site = a_table(tmp_path / "none", ("x.png", "x", "bright"))
    source = site.data[0].model_copy(update={"path": str(tmp_path), "patients": ("a", "b")})
    run = classed_run(model={"architecture": "cnn", "dims": 3, "channels": [4, 8]}, training={"patch-size": [8, 8, 8]})
    cohort = cohort_of(site.model_copy(update={"data": (source,)}), run)
    assert [(case.images.shape, int(case.labels.max())) for case in cohort.cases] == [
        (torch.Size((1, 1, 9, 14, 12)), 2),
        (torch.Size((1, 1, 9, 14, 12)), 0),
    ]


def test_the_check_counts_classes_and_says_what_training_will_do(tmp_path: Path) -> None:
    rows = [(f"{name}.png", name, name) for name in (*WORDS, "odd", "bright|dark")]
    site = a_table(tmp_path / "p", *[(image.replace("|", "-"), patient, word) for image, patient, word in rows])
    checkup = check_site(tmp_path / "home", site, KEY, issue(RUN), readers=0)
    by_title = {table.title: table.rows for table in tables(checkup)}
    assert by_title["Classes of whole images"] == (("bright", 1), ("dark", 1), ("none of them", 1))
    assert [str(study.problem.code) for study in checkup.quarantined if study.problem] == codes(cohort_of(site))[::-1]
    assert document(checkup)["findings"][-1] == {"class": "none of them", "studies": 1}
    found = check_site(tmp_path / "home", site, KEY, None, readers=1)
    told = {table.title: table.rows for table in tables(found)}["Classes of whole images"]
    # Free text of a file may name a patient.
    assert set(told) == {("name 1", 2), ("name 2", 2), ("name 3", 1), ("none of them", 1)}


@pytest.mark.parametrize("found", [[3], [0], [1, 1], [2, 1], ["1"], [True], "1", None, {"1": 1}])
def test_findings_that_make_no_sense_are_a_child_that_crashed(found: Any) -> None:
    job = Job(Reference("images", "", "a", (Path("a"),)), Vocabulary(classes=("bright", "dark"), whole=True))
    header = {
        "spacing-mm": None,
        "affine": None,
        "modality": "",
        "order": [0],
        "classes": ["bright", "dark"],
        "labelling": None,
        "findings": found,
        "padded": False,
        "within": False,
        "digest": "",
        "label-digest": "",
    }
    image = np.zeros((1, 8, 8), np.float32)
    with pytest.raises((ValueError, TypeError)):
        answer_checks.reading(job, header, [image])
    assert answer_checks.reading(job, {**header, "findings": [1, 2]}, [image]).study.findings == (1, 2)
    assert answer_checks.reading(job, {**header, "findings": []}, [image]).study.findings == ()


def test_a_source_with_classes_makes_the_file_one_of_format_2(tmp_path: Path) -> None:
    path, source = tmp_path / "site.toml", SourceConfig(path="p", csv="t.csv", class_column="finding")
    path.write_text('# ours\nname = "north"\n')
    add_source(path, SourceConfig(path="q"))
    assert "format" not in path.read_text()
    add_source(path, source)
    assert path.read_text().startswith("format = 2\n# ours\n")
    assert load(SiteConfig, path).data[1] == source
    path.write_text('name = "north"\n[[data]]\npath = "p"\nclass-column = "finding"\n')
    with pytest.raises(ConfigError, match="class-column is a key of format 2"):
        load(SiteConfig, path)


def test_regions_are_cut_around_their_middle_with_their_class() -> None:
    run = classed_run(task={"of": "region"}, training={"patch-size": [8, 8]})
    labels = torch.zeros(1, 30, 40, dtype=torch.uint8)
    labels[0, 10:14, 20:26] = 1
    labels[0, 26:30, 0:3] = 2  # in the corner
    labels[0, 2:5, 2:5] = 1
    images = torch.arange(30 * 40, dtype=torch.float32).view(1, 1, 30, 40)
    windows, classes = cut_regions(images, labels, run, held_out=True)
    assert windows.shape == (3, 1, 8, 8)
    assert [int(one.unique()) for one in classes] == [1, 1, 2]
    assert torch.equal(windows[1, 0], images[0, 0, 8:16, 19:27])
    assert torch.equal(windows[2, 0, :6, 3:], images[0, 0, 24:30, :5])
    assert float(windows[2, 0, 6:].abs().sum() + windows[2, 0, :, :3].abs().sum()) == 0
    wide, marks = cut_regions(images, labels, run, held_out=False)
    assert wide.shape == (3, 1, 16, 16)
    assert torch.equal(wide[1, 0, 4:12, 4:12], windows[1, 0])
    assert centres(marks).tolist() == [8 * 16 + 8, 256 + 8 * 16 + 8, 512 + 8 * 16 + 8]


def test_voxels_that_touch_at_a_corner_are_one_region() -> None:
    run = classed_run(task={"of": "region"}, training={"patch-size": [8, 8]})
    labels = torch.zeros(1, 30, 40, dtype=torch.uint8)
    labels[0, 4:10, 4:10] = 1
    labels[0, 10:14, 10:16] = 1
    images = torch.arange(30 * 40, dtype=torch.float32).view(1, 1, 30, 40)
    windows, _ = cut_regions(images, labels, run, held_out=True)
    assert windows.shape == (1, 1, 8, 8)
    assert torch.equal(windows[0, 0], images[0, 0, 5:13, 6:14])  # around (9, 10), the middle of both


def test_of_a_region_through_several_slices_a_2d_model_sees_the_fullest() -> None:
    run = classed_run(task={"of": "region"}, training={"patch-size": [8, 8]})
    labels = torch.zeros(4, 20, 20, dtype=torch.uint8)
    labels[0, 9, 9] = 2
    labels[1, 9:11, 9:12] = 2
    labels[2, 10:12, 10:15] = 2
    images = torch.rand(4, 1, 20, 20)
    windows, classes = cut_regions(images, labels, run, held_out=True)
    assert [int(one.unique()) for one in classes] == [2]
    assert torch.equal(windows[0, 0], images[2, 0, 7:15, 8:16])


def test_specks_that_would_fill_the_memory_set_their_study_aside_and_no_other(tmp_path: Path) -> None:
    """160 specks of a small picture, each with a window of 1024 x 1024 in three channels, are 2 GiB."""
    specks, blocks = np.zeros((20, 31), np.uint8), np.zeros((20, 31), np.uint8)
    specks[::2, ::2], blocks[3:6, 4:9], blocks[12:15, 20:25] = 1, 1, 2
    for name in ("a", "b", "c"):
        write_pair(tmp_path, name, mask=blocks)
    write_pair(tmp_path, "specks", mask=specks)
    site = SiteConfig(name="north", data=(SourceConfig(path=str(tmp_path), kind="images"),))
    data, cache = {"channels": 3, "classes": ["bright", "dark"]}, tmp_path / "cache"
    for patch, left_out in ((512, ["unsupported"]), (8, []), (512, ["unsupported"])):
        run = classed_run(task={"of": "region"}, training={"patch-size": [patch, patch]}, data=data)
        studies = read_studies(site, run, root=tmp_path, site_key=KEY, cache=cache)
        assert [str(problem.code) for _, problem in studies.refused] == left_out


def test_a_cohort_of_regions_leaves_out_who_has_none(tmp_path: Path) -> None:
    mask = np.zeros((20, 31), np.uint8)
    mask[3:6, 4:9], mask[12:15, 20:25] = 2, 1
    for name in ("a", "b", "c", "d", "e"):
        write_pair(tmp_path, name, mask=mask)
    write_pair(tmp_path, "none", mask=np.zeros((20, 31), np.uint8))
    source = SourceConfig(path=str(tmp_path), kind="images", empty_labels_are_negative=True)
    site = SiteConfig(name="north", data=(source,))
    run = classed_run(
        task={"of": "region"}, training={"patch-size": [8, 8]}, data={"channels": 3, "classes": ["bright", "dark"]}
    )
    cohort = cohort_of(site, run)
    assert {tuple(case.images.shape) for case in cohort.cases if case.split == "train"} == {(2, 3, 16, 16)}
    assert {tuple(case.images.shape) for case in cohort.cases if case.split != "train"} == {(2, 3, 8, 8)}
    assert codes(cohort) == ["label-empty"]
    checkup = check_site(tmp_path / "home", site, KEY, issue(run), readers=0)
    assert [str(study.problem.code) for study in checkup.quarantined if study.problem] == ["label-empty"]


@pytest.mark.parametrize(("word", "code"), [("bright", "duplicate"), ("dark", "label-conflict")])
def test_one_picture_with_two_classes_contradicts_itself(tmp_path: Path, word: str, code: str) -> None:
    site = a_table(tmp_path, ("a.png", "1", "bright"), ("b.png", "2", "dark"))
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    site = a_table(tmp_path, ("a.png", "1", "bright"), ("b.png", "2", "dark"), ("c.png", "3", word))
    assert codes(cohort_of(site)) == [code]
    checkup = check_site(tmp_path / "home", site, KEY, issue(RUN), readers=0)
    assert [str(study.problem.code) for study in checkup.quarantined if study.problem] == [code]
