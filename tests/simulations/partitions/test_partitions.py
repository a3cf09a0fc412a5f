"""An archive is dealt patient by patient, the same everywhere, and as unlike as its partition says."""

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from client.data.study.study import Reference
from common.config import SourceConfig, validate
from common.errors import ConfigError
from simulations.generators.phantoms import SCANNERS, write_hospital
from simulations.partitions import PARTITION_CHOICE, Archive, Partition
from tests.simulations.classed import classed_site

SITES = ("x", "y", "z")
PATIENTS = [f"p{number:03}" for number in range(240)]
CLASSES = {one: "abcd"[number % 4] for number, one in enumerate(PATIENTS)}


class Told(Archive):
    """An archive of which all is known."""

    def strata(self, count: int) -> Mapping[str, str]:
        return CLASSES


ARCHIVE = Told(SourceConfig(path="."), Path())


def partition(kind: str, **settings: object) -> Partition:
    values = {"kind": kind, "sites": SITES, "source": {"path": "."}, **settings}
    member = PARTITION_CHOICE.by_name[kind]
    assert issubclass(member, Partition)
    return validate(member, values)


def dealt(one: Partition, patients: list[str] = PATIENTS) -> dict[str, set[str]]:
    return {site: set(members) for site, members in one.deal(patients, ARCHIVE).items()}


DRAWN = ("equal", "quantity-skew", "label-skew", "shards")


def test_these_are_all_that_draw() -> None:
    assert set(PARTITION_CHOICE.by_name) == {*DRAWN, "by-value"}


@pytest.mark.parametrize("kind", DRAWN)
def test_each_patient_is_at_one_site(kind: str) -> None:
    counts = Counter(one for members in dealt(partition(kind)).values() for one in members)
    assert counts == dict.fromkeys(PATIENTS, 1)


@pytest.mark.parametrize("kind", DRAWN)
def test_the_order_of_the_patients_plays_no_part_and_the_seed_does(kind: str) -> None:
    assert dealt(partition(kind)) == dealt(partition(kind), PATIENTS[::-1])
    assert dealt(partition(kind)) != dealt(partition(kind, seed=1))


@pytest.mark.parametrize("kind", DRAWN)
def test_names_that_follow_each_other_are_not_kept_together(kind: str) -> None:
    places = [sorted(map(PATIENTS.index, members)) for members in dealt(partition(kind, seed=3)).values()]
    assert all(mine[-1] - mine[0] >= len(mine) for mine in places)


def spread(kind: str, concentration: float) -> float:
    """Mean over seeds of the largest site's share of the patients."""
    shares = []
    for seed in range(40):
        sizes = list(map(len, dealt(partition(kind, concentration=concentration, seed=seed)).values()))
        shares.append(max(sizes) / sum(sizes))
    return float(np.mean(shares))


def test_sizes_are_less_alike_the_smaller_the_concentration() -> None:
    alike, unlike, most_unlike = (spread("quantity-skew", one) for one in (1000.0, 1.0, 0.05))
    assert alike == pytest.approx(1 / 3, abs=0.02)
    assert alike < unlike - 0.1
    assert unlike < most_unlike - 0.1


@pytest.mark.parametrize("seed", range(8))
def test_the_smallest_site_has_the_fewest_that_are_asked_for(seed: int) -> None:
    for kind in ("quantity-skew", "label-skew"):
        sizes = list(map(len, dealt(partition(kind, concentration=0.1, fewest=9, seed=seed)).values()))
        assert min(sizes) >= 9


@pytest.mark.parametrize("kind", ["quantity-skew", "label-skew"])
@pytest.mark.parametrize("concentration", [1e-300, 1e9])
def test_nobody_is_lost_at_either_end_of_the_concentration(kind: str, concentration: float) -> None:
    counts = Counter(one for members in dealt(partition(kind, concentration=concentration)).values() for one in members)
    assert counts == dict.fromkeys(PATIENTS, 1)


def purity(one: Partition) -> float:
    """The share of a site's patients that are of its most frequent class, mean over sites."""
    found = [Counter(map(CLASSES.__getitem__, members)) for members in dealt(one).values()]
    return float(np.mean([max(counts.values()) / counts.total() for counts in found]))


def test_classes_are_less_alike_the_smaller_the_concentration() -> None:
    alike = np.mean([purity(partition("label-skew", concentration=1e5, seed=seed)) for seed in range(10)])
    unlike = np.mean([purity(partition("label-skew", concentration=0.1, seed=seed)) for seed in range(10)])
    assert alike == pytest.approx(0.25, abs=0.02)
    assert unlike > 0.5


def test_a_site_has_no_more_classes_than_shards() -> None:
    classes = [set(map(CLASSES.__getitem__, members)) for members in dealt(partition("shards", per_site=1)).values()]
    # 240 patients in 3 shards of 80, over classes of 60: a shard reaches into two of them.
    assert list(map(len, classes)) == [2, 2, 2]
    assert purity(partition("shards", per_site=1)) >= 0.5
    assert purity(partition("shards", per_site=20)) < 0.4


def test_too_few_patients_are_an_error() -> None:
    for kind in ("quantity-skew", "label-skew"):
        with pytest.raises(ConfigError, match=r"5 patients cannot be dealt so that each of 3 sites has 2"):
            partition(kind).deal(PATIENTS[:5], ARCHIVE)


def discs(folder: Path, areas: list[int]) -> Archive:
    """Pictures of 20 x 20 with so many pixels marked."""
    for number, area in enumerate(areas):
        label = np.zeros(400, np.uint8)
        label[:area] = 255
        for kind, pixels in (("images", np.full(400, 90, np.uint8)), ("labels", label)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels.reshape(20, 20)).save(folder / kind / f"p{number}.png")
    return Archive(SourceConfig(path=str(folder), kind="images", patient_pattern=r"(p\d+)"), folder)


def test_patients_are_grouped_by_how_much_of_their_images_is_marked(tmp_path: Path) -> None:
    archive = discs(tmp_path, [90, 10, 50, 60, 20, 80])
    assert archive.strata(3) == {"p1": "0", "p4": "0", "p2": "1", "p3": "1", "p5": "2", "p0": "2"}


def test_labels_that_cannot_be_read_are_a_group_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = discs(tmp_path, [90, 10, 50])
    (tmp_path / "labels" / "p2.png").write_bytes(b"no picture")
    assert archive.strata(2) == {"p1": "0", "p0": "1", "p2": "unread"}
    assert "1 patients have no label that can be read" in caplog.text


def test_groups_by_share_have_their_order_however_many_they_are(tmp_path: Path) -> None:
    strata = discs(tmp_path, list(range(10, 70, 5))).strata(11)
    # Twelve patients in eleven groups, the last of whom have most marked.
    assert sorted(strata, key=lambda one: (strata[one], int(one[1:]))) == [f"p{number}" for number in range(12)]
    assert len(set(strata.values())) == 11


def test_classes_of_whole_images_are_the_groups(tmp_path: Path) -> None:
    source = classed_site(tmp_path, "c", patients=6, words=("bright", "dark", "plain")).data[0]
    strata = Archive(source, tmp_path).strata(3)
    named = source.label_map
    assert strata == {
        f"c-{number}": named.get(word, word) for number, word in enumerate(["bright", "dark", "plain"] * 2)
    }


def test_an_image_whose_class_cannot_be_read_is_of_a_group_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, (first, *others) = hospital(tmp_path)
    said(first, "General", "St. Mary")
    for reference in others:
        said(reference, "General")
    classed = source.model_copy(update={"class_attribute": "InstitutionName"})
    assert Archive(classed, tmp_path).strata(3) == {
        first.patient: "unread",
        **{one.patient: "General" for one in others},
    }
    assert "1 patients have no label that can be read" in caplog.text


def table(folder: Path, rows: list[tuple[str, ...]]) -> SourceConfig:
    """A CSV, and a picture for each of its rows."""
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "id", "finding", "ward"), *rows])
    for name, *_ in rows:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(folder / name)
    return SourceConfig(path=str(folder), csv="table.csv", class_column="finding")


def test_patients_go_where_their_table_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = table(
        tmp_path,
        [
            ("1.png", "p1", "m", "x"),
            ("2.png", "p2", "b", "y"),
            ("3.png", "p3", "m", "old y"),
            ("4.png", "p4", "b", "q"),
        ],
    )
    one = partition("by-value", sites=("x", "y"), column="ward", values={"y": ("y", "old y")})
    with caplog.at_level(logging.WARNING):
        assert one.deal(["p1", "p2", "p3", "p4"], Archive(source, tmp_path)) == {"x": ["p1"], "y": ["p2", "p3"]}
    assert "1 patients are at no site: it is said of them: q" in caplog.text
    empty = partition("by-value", sites=("x", "w"), column="ward")
    with pytest.raises(ConfigError, match=r"no patient belongs to w\. 'ward' says .*old y \(1\), q \(1\), x \(1\), y"):
        empty.deal(["p1", "p2", "p3", "p4"], Archive(source, tmp_path))


def test_a_value_may_be_called_as_that_of_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is at no site is counted, whatever the values are."""
    source = table(tmp_path, [("1.png", "p1", "m", "nothing"), ("2.png", "p2", "b", ""), ("3.png", "p3", "b", "y")])
    one = partition("by-value", sites=("nothing", "y"), column="ward")
    assert one.deal(["p1", "p2", "p3"], Archive(source, tmp_path)) == {"nothing": ["p1"], "y": ["p3"]}
    assert "1 patients are at no site: it is said of them: nothing" in caplog.text


def test_a_table_of_patients_says_where_they_belong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = table(tmp_path, [(f"{number}.png", f"p{number}", "m", "z") for number in range(1, 5)])
    sites = tmp_path / "sites.csv"
    sites.write_text("case,where\np1,0\np2,1\np2,1\np3,\np9,0\n")
    one = partition(
        "by-value", sites=("x", "y"), table="sites.csv", patient_column="case", column="where",
        values={"x": ("0",), "y": ("1",)},
    )  # fmt: skip
    archive = Archive(source, tmp_path)
    assert one.deal(["p1", "p2", "p3", "p4"], archive) == {"x": ["p1"], "y": ["p2"]}
    assert "2 patients are at no site: it is said of them: nothing" in caplog.text
    sites.write_text("case,where\np1,0\np1,1\n")
    with pytest.raises(ConfigError, match="1 patients of the archive have two values of 'where'"):
        one.deal(["p1"], archive)
    sites.write_text("case,site\np1,0\n")
    with pytest.raises(ConfigError, match="has no column 'where'; it has case, site"):
        one.deal(["p1"], archive)
    with pytest.raises(ConfigError, match="by-value with a table needs its column"):
        partition("by-value", sites=("x",), table="sites.csv", pattern="(.)")


def test_patient_of_two_hospitals_is_an_error(tmp_path: Path) -> None:
    source = table(tmp_path, [("1.png", "p1", "m", "x"), ("2.png", "p1", "m", "y"), ("3.png", "p3", "m", "y")])
    with pytest.raises(ConfigError, match=r"1 patients of the archive have two values of 'ward'"):
        partition("by-value", sites=("x", "y"), column="ward").deal(["p1", "p3"], Archive(source, tmp_path))


def test_patients_go_where_the_folder_of_their_images_says(tmp_path: Path) -> None:
    source = table(tmp_path, [("x/1.png", "p1", "m", ""), ("y/2.png", "p2", "b", ""), ("y/3.png", "p3", "b", "")])
    one = partition("by-value", sites=("x", "y"), pattern=r"^(\w+)/")
    assert one.deal(["p1", "p2", "p3"], Archive(source, tmp_path)) == {"x": ["p1"], "y": ["p2", "p3"]}


def test_an_image_outside_the_folder_has_no_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive, elsewhere = tmp_path / "archive", tmp_path / "x" / "2.png"
    archive.mkdir()
    source = table(archive, [("x/1.png", "p1", "m", ""), (str(elsewhere), "p2", "b", ""), ("y/3.png", "p3", "b", "")])
    one = partition("by-value", sites=("x", "y"), pattern=r"(\w+)/")
    assert one.deal(["p1", "p2", "p3"], Archive(source, tmp_path)) == {"x": ["p1"], "y": ["p3"]}
    assert "1 patients are at no site: it is said of them: nothing" in caplog.text


def test_a_study_in_the_folders_of_two_hospitals_is_an_error(tmp_path: Path) -> None:
    source, (first, *_) = hospital(tmp_path)
    for name, path in zip(("x", "y"), first.images, strict=True):
        (tmp_path / name).mkdir()
        path.rename(tmp_path / name / path.name)
    one = partition("by-value", sites=("x", "y"), pattern=r"^(x|y)/")
    with pytest.raises(ConfigError, match="1 patients of the archive have two values of"):
        one.deal([first.patient], Archive(source, tmp_path))


def hospital(folder: Path) -> tuple[SourceConfig, Sequence[Reference]]:
    """A DICOM archive of three patients, and their series of two files each."""
    write_hospital(folder, scanner=SCANNERS["a"], patients=3, seed=0, slices=2, rows=16)
    source = SourceConfig(path=str(folder), kind="dicom")
    return source, Archive(source, folder)._references(source)


def said(reference: Reference, *institutions: str) -> None:
    """Write into the files of a series where they come from, by turns."""
    for path, institution in zip(reference.images, cycle(institutions), strict=False):
        header = pydicom.dcmread(path)
        header.InstitutionName = institution
        header.save_as(path)


def test_patients_go_where_their_dicom_files_say(tmp_path: Path) -> None:
    source, (first, *others) = hospital(tmp_path)
    said(first, "St. Mary")
    for reference in others:
        said(reference, "General")
    one = partition(
        "by-value", sites=("x", "y"), attribute="InstitutionName", values={"x": ("General",), "y": ("St. Mary",)}
    )
    patients = [reference.patient for reference in (first, *others)]
    assert one.deal(patients, Archive(source, tmp_path)) == {"x": patients[1:], "y": patients[:1]}


def test_whose_files_do_not_agree_where_they_come_from_is_at_no_site(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, (first, second, third) = hospital(tmp_path)
    said(first, "x", "y")
    said(second, "x")
    said(third, "y")
    one = partition("by-value", sites=("x", "y"), attribute="InstitutionName")
    patients = [reference.patient for reference in (first, second, third)]
    assert one.deal(patients, Archive(source, tmp_path)) == {"x": patients[1:2], "y": patients[2:]}
    assert "of 1 patients a file cannot be read that should say where they belong" in caplog.text
    assert "1 patients are at no site: it is said of them: nothing" in caplog.text


def test_a_coded_attribute_may_have_an_entry_without_a_code(tmp_path: Path) -> None:
    source, references = hospital(tmp_path)
    for reference in references:
        for path in reference.images:
            header = pydicom.dcmread(path)
            header.AnatomicRegionSequence = [pydicom.Dataset()]
            header.save_as(path)
    assert Archive(source, tmp_path).values(attribute="AnatomicRegionSequence") == {}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "exactly one of column, attribute and pattern"),
        ({"column": "a", "pattern": "(b)"}, "exactly one of column, attribute and pattern"),
        ({"pattern": "b"}, "has no group"),
        ({"pattern": "(b"}, "is no regular expression"),
        ({"column": "a", "values": {"x": ["1"], "y": ["1"]}}, "belong to two sites"),
        ({"column": "a", "values": {"w": ["1"]}}, "not among"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        partition("by-value", **settings)


@pytest.mark.parametrize("kind", DRAWN)
def test_what_nothing_can_be_drawn_from_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"seed is -1, must be at least 0"):
        partition(kind, seed=-1)
    if kind.endswith("-skew"):
        with pytest.raises(ConfigError, match=r"concentration is 1e\+308, must be at most 1e\+09"):
            partition(kind, concentration=1e308)
