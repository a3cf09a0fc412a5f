"""The class of a DICOM image as a whole: an attribute that the site names, and coded findings of structured reports."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from client.data.cohort import Cohort
from client.data.dicom.image_class import tag_of
from client.data.isolate.isolation import Readers
from client.data.read import sources
from client.data.read.dicom_header import look
from client.data.study.labels import Vocabulary
from common.config import SiteConfig, SourceConfig
from common.errors import ConfigError, DataError
from tests.client.data.cohorts import load_cohort
from tests.client.data.studies import KEY, ct_slices
from tests.simulations.classed import classed_run

MASS, CYST, NORMAL = ("4147007", "SCT", "Mass"), ("441457006", "SCT", "Cyst"), ("17621005", "SCT", "Normal")
FINDING = ("121071", "DCM", "Finding")
MAP = {"SCT:4147007": "bright", "Cyst": "dark", "normal": "background"}
WANTED = Vocabulary(MAP, ("bright", "dark"), "CT", whole=True)
COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.33"


def code(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds


def coded(name: tuple[str, str, str], value: tuple[str, str, str]) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "CODE"
    item.ConceptNameCodeSequence, item.ConceptCodeSequence = Sequence([code(*name)]), Sequence([code(*value)])
    return item


def modified(item: Dataset, modifier: Dataset) -> Dataset:
    """A finding with what is said of it below it."""
    modifier.RelationshipType, item.ContentSequence = "HAS CONCEPT MOD", Sequence([modifier])
    return item


def image_item(instance: str) -> Dataset:
    item, image = Dataset(), Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "IMAGE"
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", instance
    item.ReferencedSOPSequence = Sequence([image])
    return item


def group(*items: Dataset) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "CONTAINER"
    item.ConceptNameCodeSequence = Sequence([code("125007", "DCM", "Measurement Group")])
    item.ContentSequence = Sequence(items)
    return item


def write_series(folder: Path, name: str, patient: str | None = None, **attributes: Any) -> list[Dataset]:
    """Three slices of 10 x 12."""
    rng = np.random.default_rng(list(name.encode()))
    slices = ct_slices(rng.integers(0, 2000, (3, 10, 12)), patient=patient or name)
    for number, ds in enumerate(slices):
        for keyword, value in attributes.items():
            setattr(ds, keyword, value[number] if isinstance(value, tuple) else value)
        path = folder / name / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
    return slices


def write_report(path: Path, series: list[Dataset], *items: Dataset, patient: str | None = None, **values: Any) -> None:
    """A report on a series, whose evidence are its images."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(COMPREHENSIVE), generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = COMPREHENSIVE, meta.MediaStorageSOPInstanceUID, "SR"
    ds.PatientID, ds.StudyInstanceUID = patient or series[0].PatientID, series[0].StudyInstanceUID
    ds.SeriesInstanceUID, ds.ValueType, ds.CompletionFlag = generate_uid(), "CONTAINER", "COMPLETE"
    evidence, of_series = Dataset(), Dataset()
    of_series.SeriesInstanceUID = series[0].SeriesInstanceUID
    of_series.ReferencedSOPSequence = Sequence(
        [image_item(one.SOPInstanceUID).ReferencedSOPSequence[0] for one in series]
    )
    evidence.StudyInstanceUID, evidence.ReferencedSeriesSequence = ds.StudyInstanceUID, Sequence([of_series])
    ds.CurrentRequestedProcedureEvidenceSequence = Sequence([evidence])
    ds.ContentSequence = Sequence(items)
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def source(folder: Path, **values: Any) -> SourceConfig:
    return SourceConfig(path=str(folder), kind="dicom", label_map=MAP, **values)


def findings(where: SourceConfig) -> dict[str, Any]:
    """By patient: the classes, or the code of what is wrong; through a child process."""
    with Readers(1) as readers:
        found = readers.find(where, Path("/"))
    told: dict[str, Any] = {}
    for reference in found.references:
        try:
            told[reference.patient] = sources.read(reference, WANTED).findings
        except DataError as error:
            told[reference.patient] = str(error.code)
    return told


def test_an_attribute_that_the_site_names_tells_the_class(tmp_path: Path) -> None:
    write_series(tmp_path, "a", StudyDescription="cyst")
    write_series(tmp_path, "b", StudyDescription="Normal ")
    write_series(tmp_path, "c", StudyDescription="something else")
    write_series(tmp_path, "d", StudyDescription="")
    write_series(tmp_path, "e", StudyDescription=("cyst", "cyst", "normal"))
    write_series(tmp_path, "f")
    expected = {"a": (2,), "b": (), "c": "label-unknown", "d": "no-label", "e": "unsupported", "f": "no-label"}
    assert findings(source(tmp_path, class_attribute="StudyDescription")) == expected
    assert findings(source(tmp_path, class_attribute="(0008,1030)")) == expected
    for reference in sources.find(source(tmp_path, class_attribute="StudyDescription"), tmp_path).references[2:3]:
        with pytest.raises(DataError) as refused:
            sources.read(reference, WANTED)
        assert "something" not in str(refused.value)  # free text of a header


def test_a_coded_attribute_tells_by_its_code_or_its_meaning(tmp_path: Path) -> None:
    write_series(tmp_path, "a", ReasonForRequestedProcedureCodeSequence=Sequence([code(*MASS)]))
    write_series(tmp_path, "b", ReasonForRequestedProcedureCodeSequence=Sequence([code(*CYST), code(*MASS)]))
    told = findings(source(tmp_path, class_attribute="ReasonForRequestedProcedureCodeSequence"))
    assert told == {"a": (1,), "b": (1, 2)}


def test_a_code_that_is_longer_than_16_characters_tells_too(tmp_path: Path) -> None:
    """DICOM PS3.3 8.1: such a one stands in Long Code Value."""
    long = code("", "99OURS", "Something")
    del long.CodeValue
    long.LongCodeValue = "12345678901234567890"
    write_series(tmp_path, "a", ReasonForRequestedProcedureCodeSequence=Sequence([long]))
    where = source(tmp_path, class_attribute="ReasonForRequestedProcedureCodeSequence")
    (reference,) = sources.find(where, tmp_path).references
    wanted = Vocabulary({"99OURS:12345678901234567890": "dark"}, ("bright", "dark"), "CT", whole=True)
    assert sources.read(reference, wanted).findings == (2,)


@pytest.mark.parametrize("by", ["series", "instance"])
def test_a_report_refers_to_images_by_their_series_or_one_by_one(tmp_path: Path, by: str) -> None:
    series = write_series(tmp_path, "a")
    write_report(tmp_path / "r.dcm", series, coded(FINDING, MASS))
    report = pydicom.dcmread(tmp_path / "r.dcm")
    told = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    if by == "series":
        del told.ReferencedSOPSequence
    else:
        told.SeriesInstanceUID = generate_uid()
        del told.ReferencedSOPSequence[0]
    report.save_as(tmp_path / "r.dcm", enforce_file_format=True)
    assert findings(source(tmp_path, class_reports=True)) == {"a": (1,)}


def test_a_group_refers_to_a_series_by_its_uid(tmp_path: Path) -> None:
    """As TID 1500 does for the source of a segmentation; the other series of the report's evidence has no finding."""
    left, right = write_series(tmp_path, "left", patient="p"), write_series(tmp_path, "right", patient="p")
    item = Dataset()
    item.RelationshipType, item.ValueType, item.UID = "CONTAINS", "UIDREF", right[0].SeriesInstanceUID
    item.ConceptNameCodeSequence = Sequence([code("121232", "DCM", "Source series for segmentation")])
    write_report(tmp_path / "report.dcm", left, group(coded(FINDING, CYST), item))
    report = pydicom.dcmread(tmp_path / "report.dcm")
    more = Dataset()
    more.SeriesInstanceUID = right[0].SeriesInstanceUID
    report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence.append(more)
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    told = {}
    for one in sources.find(source(tmp_path, class_reports=True), tmp_path).references:
        try:
            told[one.images[0].parent.name] = sources.read(one, WANTED).findings
        except DataError as error:
            told[one.images[0].parent.name] = (str(error.code),)  # type: ignore[assignment]
    assert told == {"left": ("no-label",), "right": (2,)}


@pytest.mark.parametrize("name", ["StudyDescriptions", "12", "PixelData", "ImagePositionPatient", ""])
def test_an_attribute_that_names_no_class_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="class-attribute") as refused:
        sources.find(source(tmp_path, class_attribute=name), tmp_path)
    assert ("mean StudyDescription?" in str(refused.value)) == (name == "StudyDescriptions")
    assert tag_of("0008,1030") == tag_of("StudyDescription") == 0x00081030


@pytest.mark.parametrize(
    "values",
    [
        {"class_attribute": "StudyDescription", "class_reports": True},
        {"class_attribute": "StudyDescription", "kind": "nifti"},
        {"class_column": "finding"},
    ],
)
def test_places_that_do_not_go_together_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="class-"):
        sources.find(SourceConfig(path=str(tmp_path), **{"kind": "dicom", **values}), tmp_path)


def test_a_report_tells_the_class_of_the_images_it_refers_to_and_of_no_others(tmp_path: Path) -> None:
    with_, without = write_series(tmp_path, "a"), write_series(tmp_path, "b")
    write_report(tmp_path / "a.dcm", with_, coded(FINDING, MASS))
    assert findings(source(tmp_path, class_reports=True)) == {"a": (1,), "b": "no-label"}
    # Of another study, whose images are not here; and one whose patient is another.
    lost = write_series(tmp_path / "elsewhere", "x")
    write_report(tmp_path / "lost.dcm", lost, coded(FINDING, CYST))
    write_report(tmp_path / "wrong.dcm", without, coded(FINDING, CYST), patient="a")
    for path in (tmp_path / "elsewhere" / "x").iterdir():
        path.unlink()
    found = sources.find(source(tmp_path, class_reports=True), tmp_path)
    assert sum(found.left_out.values()) == 2
    assert findings(source(tmp_path, class_reports=True)) == {"a": (1,), "b": "no-label"}


def test_a_finding_of_a_group_is_of_the_images_that_the_group_refers_to(tmp_path: Path) -> None:
    """One report on two series of a patient, each with a finding of its own."""
    left, right = write_series(tmp_path, "left", patient="p"), write_series(tmp_path, "right", patient="p")
    groups = [
        group(coded(FINDING, MASS), image_item(left[1].SOPInstanceUID)),
        group(coded(FINDING, CYST), image_item(right[0].SOPInstanceUID)),
    ]
    write_report(tmp_path / "report.dcm", left, group(*groups))
    report = pydicom.dcmread(tmp_path / "report.dcm")
    more = Dataset()
    more.SeriesInstanceUID = right[0].SeriesInstanceUID
    report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence.append(more)
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    references = sources.find(source(tmp_path, class_reports=True), tmp_path).references
    told = {one.images[0].parent.name: sources.read(one, WANTED).findings for one in references}
    assert told == {"left": (1,), "right": (2,)}


def radiographs(folder: Path) -> list[Dataset]:
    """Three single images of one series, each a study of its own."""
    return write_series(folder, "p", SOPClassUID="1.2.840.10008.5.1.4.1.1.1", Modality="CR")


def of_each(folder: Path) -> list[Any]:
    """What reports say of each of them."""
    told: dict[str, Any] = {}
    for reference in sources.find(source(folder, class_reports=True), folder).references:
        try:
            told[reference.images[0].name] = sources.read(reference, replace(WANTED, modality="CR")).findings
        except DataError as error:
            told[reference.images[0].name] = str(error.code)
    return [told[f"{number}.dcm"] for number in range(3)]


def test_a_report_on_one_image_of_a_series_says_nothing_of_the_others(tmp_path: Path) -> None:
    write_report(tmp_path / "r.dcm", radiographs(tmp_path)[:1], coded(FINDING, MASS))
    assert of_each(tmp_path) == [(1,), "no-label", "no-label"]


def test_a_finding_that_names_its_image_is_of_that_one_alone(tmp_path: Path) -> None:
    images, items = radiographs(tmp_path), []
    for image, finding in zip(images, (MASS, NORMAL, CYST), strict=True):
        items.append(coded(FINDING, finding))
        items[-1].ContentSequence = Sequence([image_item(image.SOPInstanceUID)])
        items[-1].ContentSequence[0].RelationshipType = "INFERRED FROM"
    write_report(tmp_path / "r.dcm", images, *items)
    assert of_each(tmp_path) == [(1,), (), (2,)]


def test_a_group_without_images_is_of_those_of_the_container_around_it(tmp_path: Path) -> None:
    images = radiographs(tmp_path)
    left, right = (
        group(image_item(image.SOPInstanceUID), group(coded(FINDING, finding)))
        for image, finding in zip(images, (MASS, CYST), strict=False)
    )
    write_report(tmp_path / "r.dcm", images, group(left, right))
    assert of_each(tmp_path) == [(1,), (2,), "no-label"]


@pytest.mark.parametrize(
    ("items", "values", "expected"),
    [
        ([coded(FINDING, NORMAL)], {}, ()),
        ([coded(FINDING, MASS), coded(FINDING, CYST)], {}, (1, 2)),
        ([coded(FINDING, ("1", "99OURS", "Opacity"))], {}, "label-unknown"),
        ([coded(("121073", "DCM", "Impression"), MASS)], {}, "no-label"),
        ([coded(FINDING, MASS)], {"CompletionFlag": "PARTIAL"}, "label-doubtful"),
        ([coded(FINDING, MASS)], {"CompletionFlag": ""}, (1,)),
        ([group(coded(FINDING, MASS), coded(("705057003", "SCT", "Presence"), ("2667000", "SCT", "Absent")))], {},
         "label-doubtful"),
        ([modified(coded(FINDING, MASS), coded(("705057003", "SCT", "Presence"), ("2667000", "SCT", "Absent")))], {},
         "label-doubtful"),
        ([], {}, "no-label"),
    ],
)  # fmt: skip
def test_only_coded_findings_of_complete_reports_count(
    tmp_path: Path, items: list[Dataset], values: dict[str, Any], expected: object
) -> None:
    write_report(tmp_path / "r.dcm", write_series(tmp_path, "a"), *items, **values)
    assert findings(source(tmp_path, class_reports=True)) == {"a": expected}


def test_two_reports_that_differ_are_for_a_person_to_look_at(tmp_path: Path) -> None:
    series = write_series(tmp_path, "a")
    write_report(tmp_path / "1.dcm", series, coded(FINDING, MASS))
    write_report(tmp_path / "2.dcm", series, coded(FINDING, MASS))
    assert findings(source(tmp_path, class_reports=True)) == {"a": (1,)}
    write_report(tmp_path / "3.dcm", series, coded(FINDING, CYST))
    assert findings(source(tmp_path, class_reports=True)) == {"a": "label-doubtful"}


def test_two_reports_that_name_the_same_in_another_order_agree(tmp_path: Path) -> None:
    series = write_series(tmp_path, "a")
    write_report(tmp_path / "1.dcm", series, coded(FINDING, MASS), coded(FINDING, CYST))
    write_report(tmp_path / "2.dcm", series, coded(FINDING, CYST), coded(FINDING, MASS))
    assert findings(source(tmp_path, class_reports=True)) == {"a": (1, 2)}


def test_reports_are_not_looked_at_where_the_site_does_not_say_so(tmp_path: Path) -> None:
    write_report(tmp_path / "r.dcm", write_series(tmp_path, "a"), coded(FINDING, MASS))
    found = sources.find(source(tmp_path), tmp_path)
    assert sum(found.left_out.values()) == 1
    assert findings(source(tmp_path)) == {"a": "no-label"}


def test_a_report_that_changes_is_read_again(tmp_path: Path) -> None:
    series = write_series(tmp_path / "data", "a")
    where = SiteConfig(format=2, name="north", data=(source(tmp_path / "data", class_reports=True),))
    run = classed_run(data={"modality": "CT"}, training={"patch-size": [8, 8]})

    def cohort() -> Cohort:
        return load_cohort(where, run, root=Path("/"), site_key=KEY, cache=tmp_path / "cache")

    for finding, mark in ((MASS, 1), (CYST, 2)):
        write_report(tmp_path / "data" / "r.dcm", series, coded(FINDING, finding))
        assert [int(case.labels.max()) for case in cohort().cases] == [mark]


def test_a_report_that_nests_without_end_is_nobodys(tmp_path: Path) -> None:
    deep = coded(FINDING, MASS)
    for _ in range(40):
        deep = group(deep)
    write_report(tmp_path / "r.dcm", write_series(tmp_path, "a"), deep)
    assert findings(source(tmp_path, class_reports=True)) == {"a": "no-label"}


@pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set")
def test_reports_of_other_programs_are_understood() -> None:
    """dcmqi's TID 1500 and highdicom's, read with pydicom alone for what they must say."""
    data = Path(os.environ["WARDROUND_DATA"]) / "dicom_labelled"
    for path in (data / "dcmqi" / "sr-example" / "sr.dcm", *(data / "highdicom").glob("sr_document*.dcm")):
        entry = look(path)
        assert entry is not None
        assert entry.references, path.name
