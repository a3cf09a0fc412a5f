"""A check says of every study what became of it, reads only what changed, and its reports name nobody."""

import json
import logging
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.check.checkup import EMPTY_FOLDER, Checkup, check_site
from client.data.check.report import MOST_PICTURES, page, write_reports
from client.data.check.tables import document, tables
from client.data.deidentify.pseudonym import pseudonym
from client.data.keep import code
from client.data.keep.split import KeptSplits
from client.data.read import sources
from client.data.study.study import LONELY_LABEL, NO_IMAGE
from common.config import RunConfig, SiteConfig
from common.config.rundocument import issue
from common.errors import ConfigError, DataError, ErrorCode
from simulations.generators.phantoms import SCANNERS, write_study
from tests.client.data.cohorts import load_cohort
from tests.client.data.studies import (
    KEY,
    ct_slices,
    photo_run,
    run_config,
    save,
    segmentation,
    site,
    source,
    write_ct,
    write_pair,
    write_volume,
)

SCANNER = next(iter(SCANNERS.values()))


def check(home: Path, *sources: Any, run: RunConfig | None = None, readers: int = 0) -> Checkup:
    """A check in this process."""
    return check_site(home, site(*sources), KEY, None if run is None else issue(run), readers=readers)


def codes(checkup: Checkup) -> dict[str, int]:
    return dict(Counter(str(study.problem.code) for study in checkup.quarantined if study.problem is not None))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures with masks."""
    for name in ("a", "bb", "ccc"):
        write_pair(tmp_path / "pictures", name)
    return tmp_path / "pictures"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good series, one with a missing slice, one without a label, a PDF and an empty folder."""
    ward = tmp_path / "ward"
    for patient in (1, 2, 3, 4):
        written = write_study(
            ward / str(patient), scanner=SCANNER, seed=0, patient=patient, slices=7, rows=32, labelled=patient != 4
        )
        if patient == 3:
            written.images[3].unlink()
    (ward / "letter.pdf").write_bytes(b"%PDF-1.7\n")
    (ward / "empty" / "within").mkdir(parents=True)
    return ward


def test_folder_of_a_hospital_is_sorted_out(tmp_path: Path, folder: Path) -> None:
    checkup = check(tmp_path, source(path=str(folder)))
    assert codes(checkup) == {"missing-slices": 1, "no-label": 1}
    assert [study.number for study in checkup.usable] == [1, 2]
    assert checkup.left_out == {NO_IMAGE: 1, EMPTY_FOLDER: 1}
    assert [study.path for study in checkup.quarantined] == ["3/series-1", "4/series-1"]
    for study in checkup.usable:
        assert study.facts is not None
        assert (study.facts.modality, study.facts.shape, study.facts.has_foreground) == ("CT", (7, 32, 32), True)


def test_readers_in_other_processes_find_the_same(tmp_path: Path, folder: Path) -> None:
    here = check(tmp_path / "one", source(path=str(folder)))
    there = check(tmp_path / "two", source(path=str(folder)), readers=2)
    assert document(here)["studies"] == document(there)["studies"]
    assert [study.checked for study in here.usable] == [study.checked for study in there.usable]


def test_studies_are_numbered_over_all_sources_and_named_by_pseudonyms(tmp_path: Path, pictures: Path) -> None:
    write_pair(tmp_path / "more", "dddd")
    checkup = check(tmp_path, source(path="pictures"), source(path="more"))
    told = [(study.number, study.source, study.name, study.patient) for study in checkup.studies]
    places = ((1, 1, "a"), (2, 1, "bb"), (3, 1, "ccc"), (4, 2, "dddd"))
    assert told == [(number, at, pseudonym(KEY, key), pseudonym(KEY, key)) for number, at, key in places]


def test_labels_are_taken_as_found_without_a_run_and_as_the_run_reads_them_with_one(
    tmp_path: Path, pictures: Path
) -> None:
    mask = np.zeros((20, 31), np.uint8)
    mask[:4], mask[8:10] = 3, 9
    write_pair(tmp_path / "pictures", "dddd", mask=mask)
    assert codes(check(tmp_path, source(path="pictures"))) == {}
    facts = check(tmp_path, source(path="pictures")).usable[3].facts
    assert facts is not None
    assert facts.voxels == {"background": 20 * 31 - 6 * 31, "3": 4 * 31, "9": 2 * 31}
    two = photo_run().model_copy(update={"data": photo_run().data.model_copy(update={"classes": ("vessel", "disc")})})
    mapped = source(path="pictures", label_map={"255": "vessel", "3": "disc"})
    assert codes(check(tmp_path, mapped, run=two)) == {"label-unknown": 1}


def test_same_image_under_two_patients_counts_once(tmp_path: Path, folder: Path) -> None:
    ward = tmp_path / "twins"
    stored = np.random.default_rng(0).integers(0, 3000, (3, 20, 20))
    mask = np.zeros(stored.shape, bool)
    mask[1, 3:9, 3:9] = True
    for patient in ("SMITH-1", "SMITH-2"):
        slices = ct_slices(stored, patient=patient)
        save(ward / patient, [*slices, segmentation(slices, {"Lesion": mask})])
    checkup = check(tmp_path, source(path="twins"))
    assert codes(checkup) == {"duplicate": 1}
    assert [study.number for study in checkup.usable] == [1]
    assert "SMITH" not in str(checkup.quarantined[0].problem)


def test_folder_that_is_named_twice_counts_once(tmp_path: Path, pictures: Path) -> None:
    checkup = check(tmp_path, source(path="pictures"), source(path="pictures"))
    assert (len(checkup.usable), codes(checkup)) == (3, {"duplicate": 3})
    assert {study.source for study in checkup.usable} == {1}


def test_empty_label_is_set_aside_unless_the_source_says_it_is_negative(tmp_path: Path, pictures: Path) -> None:
    write_pair(pictures, "dddd", mask=np.zeros((20, 31), np.uint8))
    assert codes(check(tmp_path, source(path="pictures"))) == {"label-empty": 1}
    negative = check(tmp_path, source(path="pictures", empty_labels_are_negative=True))
    assert codes(negative) == {}
    assert document(negative)["counts"]["without-foreground"] == 1


@pytest.mark.parametrize("run", [run_config(dims=3), run_config(preprocessing={"spacing-mm": [1, 1]})])
def test_what_the_run_cannot_take_is_refused_as_training_refuses_it(
    tmp_path: Path, pictures: Path, run: RunConfig
) -> None:
    checkup = check(tmp_path, source(path="pictures"), run=run)
    assert codes(checkup) == {"unsupported": 3}
    with pytest.raises(DataError, match="3 unsupported"):
        load_cohort(site(source(path="pictures")), run, root=tmp_path, site_key=KEY)


def test_check_sets_aside_what_training_sets_aside(tmp_path: Path, pictures: Path) -> None:
    write_pair(pictures, "dddd", mask=np.zeros((20, 31), np.uint8))
    write_pair(pictures, "eeeee", mask=np.zeros((3, 3), np.uint8))
    (pictures / "labels" / "a.png").unlink()
    for kind in ("images", "labels"):
        shutil.copy(pictures / kind / "bb.png", pictures / kind / "zz.png")
        (tmp_path / "more" / kind).mkdir(parents=True)
        shutil.copy(pictures / kind / "ccc.png", tmp_path / "more" / kind / "ccc.png")
    (pictures / "images" / "broken.png").write_bytes(b"no picture")
    sources, run = (source(path="pictures"), source(path="more")), photo_run()
    checkup = check(tmp_path, *sources, run=run)
    cohort = load_cohort(site(*sources), run, root=tmp_path, site_key=KEY)
    there = {study.key: study.code for study in cohort.quarantined if study.key != pseudonym(KEY, "ccc")}
    here = {s.name: s.problem.code for s in checkup.quarantined if s.problem and s.name != pseudonym(KEY, "ccc")}
    assert here == there
    assert codes(checkup) == Counter(str(study.code) for study in cohort.quarantined)
    assert len(checkup.usable) == len(cohort.cases) == 2


def test_splits_are_those_of_training_and_looking_does_not_place_anybody(tmp_path: Path) -> None:
    for number in range(1, 11):
        write_pair(tmp_path / "pictures", "x" * number)
    run, places = photo_run(), tmp_path / "splits.sealed"
    checkup = check(tmp_path, source(path="pictures"), run=run)
    cohort = load_cohort(site(source(path="pictures")), run, root=tmp_path, site_key=KEY)
    assert {study.patient: study.split for study in checkup.usable} == {c.patient: c.split for c in cohort.cases}
    assert not places.exists()
    KeptSplits(places, KEY).split(run, [["x" * 3]])  # the first ever trains
    before = places.read_bytes()
    again = check(tmp_path, source(path="pictures"), run=run)
    assert {study.split for study in again.usable if study.patient == pseudonym(KEY, "xxx")} == {"train"}
    assert places.read_bytes() == before


def test_second_check_reads_nothing_and_finds_the_same(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = check(tmp_path, source(path=str(folder)))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a study was read again")

    monkeypatch.setattr(sources, "read", refuse)
    second = check(tmp_path, source(path=str(folder)))
    assert (first.remembered, second.remembered) == (0, 4)
    assert document(first)["studies"] == document(second)["studies"]
    assert [study.checked for study in first.usable] == [study.checked for study in second.usable]


def test_only_the_new_and_the_changed_are_read_again(tmp_path: Path, pictures: Path) -> None:
    def remembered() -> int:
        return check(tmp_path, source(path="pictures")).remembered

    assert (remembered(), remembered()) == (0, 3)
    write_pair(pictures, "dddd")
    assert remembered() == 3
    mask = np.zeros((20, 31), np.uint8)
    mask[:11] = 255
    write_pair(pictures, "bb", mask=mask)
    assert (remembered(), remembered()) == (3, 4)
    checkup = check(tmp_path, source(path="pictures"))
    assert [s.facts.voxels.get("255") for s in checkup.studies if s.facts][1] == 11 * 31


def test_label_that_comes_later_is_seen(tmp_path: Path, pictures: Path) -> None:
    label = (pictures / "labels" / "a.png").rename(tmp_path / "later.png")
    assert codes(check(tmp_path, source(path="pictures"))) == {"no-label": 1}
    label.rename(pictures / "labels" / "a.png")
    assert codes(check(tmp_path, source(path="pictures"))) == {}


def test_check_for_a_run_does_not_forget_the_check_without(tmp_path: Path, pictures: Path) -> None:
    for expected in (0, 3):
        assert check(tmp_path, source(path="pictures")).remembered == expected
        assert check(tmp_path, source(path="pictures"), run=photo_run()).remembered == expected


@pytest.mark.parametrize("change", [{"label_map": {"255": "vessel"}}, {"empty_labels_are_negative": True}])
def test_changed_site_file_makes_old_findings_void(tmp_path: Path, pictures: Path, change: dict[str, Any]) -> None:
    check(tmp_path, source(path="pictures"))
    assert check(tmp_path, source(path="pictures", **change)).remembered == 0


def test_new_version_of_the_program_makes_old_findings_void(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tmp_path, source(path="pictures"))
    monkeypatch.setattr(code, "code_digest", lambda *_: "another")
    assert check(tmp_path, source(path="pictures")).remembered == 0


def test_removed_study_and_leftovers_vanish_from_the_catalogue(tmp_path: Path, pictures: Path) -> None:
    check(tmp_path, source(path="pictures"))
    kept = tmp_path / "check" / "catalogue"
    (kept / "0123.partial").write_bytes(b"from a crash")
    assert len(list(kept.iterdir())) == 4
    (pictures / "images" / "a.png").unlink()
    checkup = check(tmp_path, source(path="pictures"))
    assert (checkup.remembered, checkup.left_out) == (2, {LONELY_LABEL: 1})
    assert len(list(kept.iterdir())) == 2


def test_study_that_could_not_be_read_is_tried_again(tmp_path: Path, pictures: Path) -> None:
    whole = (pictures / "images" / "a.png").read_bytes()
    (pictures / "images" / "a.png").write_bytes(whole[:60])
    assert codes(check(tmp_path, source(path="pictures"))) == {"unreadable": 1}
    assert check(tmp_path, source(path="pictures")).remembered == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 5000])
def test_damaged_catalogue_costs_time_and_nothing_else(tmp_path: Path, pictures: Path, damage: bytes) -> None:
    first = check(tmp_path, source(path="pictures"))
    for path in (tmp_path / "check" / "catalogue").iterdir():
        path.write_bytes(damage)
    second = check(tmp_path, source(path="pictures"))
    assert second.remembered == 0
    assert document(first)["studies"] == document(second)["studies"]


def test_catalogue_that_cannot_be_written_is_said_once(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "check").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(check(tmp_path, source(path="pictures")).usable) == 3
    assert sum("catalogue cannot be written" in record.message for record in caplog.records) == 1


def test_label_map_that_cannot_be_read_stops_the_check(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match="no label value"):
        check(tmp_path, source(path="pictures", label_map={"white": "vessel"}))


def test_pictures_that_a_table_finds_elsewhere_are_read(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "table").mkdir()
    table = f"id,image,mask\n1,../pictures/images/a.png,{pictures}/labels/a.png\n2,{pictures}/images/bb.png,\n"
    (tmp_path / "table" / "list.csv").write_text(table)
    checkup = check(tmp_path, source(path="table", csv="list.csv"))
    assert (len(checkup.usable), codes(checkup)) == (1, {"no-label": 1})
    assert [study.path for study in checkup.studies] == ["../pictures/images/a.png", "../pictures/images/bb.png"]


def test_label_whose_name_cannot_be_printed_is_read_by_another_process_too(tmp_path: Path) -> None:
    slices = ct_slices(np.random.default_rng(0).integers(0, 3000, (3, 20, 20)))
    mask = np.zeros((3, 20, 20), bool)
    mask[1, 3:9, 3:9] = True
    labels = segmentation(slices, {"Lesion": mask})
    labels.SpecificCharacterSet = labels.SegmentSequence[0].SpecificCharacterSet = "ISO_IR 192"
    labels.SegmentSequence[0].SegmentLabel = "Tumeur\xa0\x85 1"
    save(tmp_path / "data", [*slices, labels])
    (study,) = check(tmp_path, source(path="data"), readers=1).studies
    assert study.facts is not None
    assert list(study.facts.voxels) == ["background", r"Tumeur\xa0\x85 1"]


def test_site_with_nothing_usable_still_gets_its_report(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "labels").mkdir()
    checkup = check(tmp_path, source(path="data", kind="images"))
    assert (checkup.studies, checkup.left_out) == ((), {EMPTY_FOLDER: 1})
    write_reports(tmp_path / "check", checkup)
    assert [table.title for table in tables(checkup)] == ["Sources", "Ignored"]


def test_statistics_are_those_of_the_studies(tmp_path: Path) -> None:
    for number, shape in enumerate(((9, 10, 11), (12, 10, 13))):
        voxels = np.random.default_rng(number).normal(100, 20, shape).astype(np.float32)
        label = np.zeros(shape, np.uint8)
        label[: number + 2, 0, 0] = 1
        write_volume(tmp_path / "data" / "images" / f"{number}.nii", voxels, np.diag([1.0, 1.0, 2.0 + number, 1]))
        write_volume(tmp_path / "data" / "labels" / f"{number}.nii", label, np.diag([1.0, 1.0, 2.0 + number, 1]))
    made = {table.title: table for table in tables(check(tmp_path, source(path="data", label_map={"1": "lesion"})))}
    (row,) = made["Images"].rows
    assert row[1:4] == (2, "11-13 x 10 x 9-12", "2-3 x 1 x 1")
    total = 9 * 10 * 11 + 12 * 10 * 13
    assert made["Classes"].rows == (
        ("background", 2, f"{100 * (total - 5) / total:.3g} %"),
        ("lesion", 2, f"{100 * 5 / total:.3g} %"),
    )


CANARIES = ("CANARYNAME", "CANARYID", "CANARYPATH", "CANARYLABEL")


@pytest.fixture
def canaries(tmp_path: Path) -> SiteConfig:
    """One good series and one without label; name, id, path and segment label could all name a patient."""
    stored = np.random.default_rng(0).integers(0, 3000, (3, 20, 20))
    mask = np.zeros(stored.shape, bool)
    mask[1, 3:9, 3:9] = True
    for number in (1, 2):
        slices = ct_slices(stored + number, patient=f"CANARYID{number}")
        for one in slices:
            one.PatientName = "CANARYNAME^JOHN"
        labels = [segmentation(slices, {"CANARYLABEL": mask})] if number == 1 else []
        save(tmp_path / "data" / f"CANARYPATH{number}", [*slices, *labels])
    return site(source(path="data"))


def test_nothing_that_names_a_patient_is_in_reports_catalogue_or_log(
    tmp_path: Path, canaries: SiteConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        checkup = check_site(tmp_path, canaries, KEY, None, readers=0)
        write_reports(tmp_path / "check", checkup)
    assert (len(checkup.usable), codes(checkup)) == (1, {"no-label": 1})
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.parts]
    assert len(written) >= 5
    text = "\n".join((repr(checkup), repr(tables(checkup)), caplog.text, *(str(data) for data in written)))
    assert not [canary for canary in CANARIES if canary in text]
    assert ("name 1", 1) in [row[:2] for table in tables(checkup) for row in table.rows]


def test_paths_and_labels_names_are_told_who_asks(tmp_path: Path, canaries: SiteConfig) -> None:
    checkup = check_site(tmp_path, canaries, KEY, None, readers=0)
    assert "CANARYLABEL" in repr(tables(checkup, names=True))
    assert "CANARYPATH2" in repr(tables(checkup, paths=True))


def test_class_that_the_label_map_names_goes_by_that_name(tmp_path: Path) -> None:
    write_ct(tmp_path / "data")
    assert "tumour" in repr(tables(check(tmp_path, source(path="data", label_map={"Lesion": "tumour"}))))


class Page(HTMLParser):
    """Tags and attributes of a page, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_is_whole_and_takes_nothing_from_elsewhere(tmp_path: Path, folder: Path) -> None:
    text = page(check(tmp_path, source(path=str(folder))))
    read = Page(text)
    assert read.open == []
    assert not read.named("script")
    assert not read.named("link")
    assert "default-src 'none'" in text
    assert "http:" not in text
    assert "https:" not in text
    assert len(read.named("img")) == 2
    for image in read.named("img"):
        assert str(image["src"]).startswith("data:image/png;base64,")
        assert image["alt"]
    assert all(heading["scope"] == "col" for heading in read.named("th"))
    for sentence in ("stays at the site", "Faces in head scans are not removed", "missing-slices", "empty folder"):
        assert sentence in " ".join(read.words.split())


def test_hostile_words_stay_words_in_the_page(tmp_path: Path, pictures: Path) -> None:
    checkup = check(tmp_path, source(path="pictures"))
    (study, *others) = checkup.studies
    assert study.checked is not None
    facts = replace(study.checked.facts, modality="<script>x</script>", voxels={"background": 1, '"><img src=x>': 1})
    hostile = replace(study, checked=replace(study.checked, facts=facts))
    angry = replace(study, checked=None, problem=DataError("<b>", ErrorCode.UNREADABLE))
    words = frozenset({'"><img src=x>'})
    read = Page(page(replace(checkup, studies=(hostile, angry, *others), own_words=words)))
    assert not read.named("script")
    assert not read.named("b")
    assert len(read.named("img")) == 3
    assert "<script>x</script>" in read.words
    assert '"><img src=x>' in read.words


def test_page_of_very_many_studies_shows_some(tmp_path: Path, pictures: Path) -> None:
    checkup = check(tmp_path, source(path="pictures"))
    many = replace(checkup, studies=checkup.studies * MOST_PICTURES)
    text = page(many)
    assert text.count("<img") == MOST_PICTURES
    assert f"The first {MOST_PICTURES} of {3 * MOST_PICTURES}" in text


def test_reports_are_for_their_owner_only_and_replace_the_old_ones(tmp_path: Path, pictures: Path) -> None:
    checkup = check(tmp_path, source(path="pictures"))
    for _ in range(2):
        path = write_reports(tmp_path / "check", checkup)
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (path.parent / "report.json").stat().st_mode & 0o777 == 0o600
    told = json.loads((path.parent / "report.json").read_text())
    assert told["counts"] == {
        "usable": 3, "quarantined": 0, "ignored": 0, "patients": 3, "without-foreground": 0
    }  # fmt: skip
    assert sorted(file.name for file in path.parent.iterdir()) == ["catalogue", "report.html", "report.json"]


def test_empty_folders_count_once_each_and_hidden_files_do_not_fill_them(tmp_path: Path, pictures: Path) -> None:
    (pictures / "empty" / "deeper" / "still").mkdir(parents=True)
    (pictures / "labels" / "hollow").mkdir()
    (pictures / "labels" / "hollow" / ".DS_Store").write_bytes(b"x")
    (pictures / ".hidden" / "empty").mkdir(parents=True)
    assert check(tmp_path, source(path="pictures")).left_out == {EMPTY_FOLDER: 2}
    shutil.rmtree(pictures / "empty")
    assert check(tmp_path, source(path="pictures")).left_out == {EMPTY_FOLDER: 1}
