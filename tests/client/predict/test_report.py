"""`predict --report`: a structured report and a picture beside the segmentation, in DICOM.

Extents are counted here from Hounsfield values and the headers' spacing, not from the result; the report is read by
pydicom's tree and by highdicom, and judged by dicom3tools' dciodvfy.
"""

import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from typer.testing import CliRunner

import client.predict.prediction
from client.commands.main import app
from client.data.isolate.isolation import Readers
from client.predict.prediction import predict_study
from common.errors import ConfigError
from simulations.generators.phantoms import SCANNERS, WrittenSeries, write_study
from tests.client.predict.test_classification import save as save_classifier
from tests.client.predict.test_dicom_seg import needs_dciodvfy, projection
from tests.client.thresholds import WINDOW, run_for, save, threshold_network
from tests.simulations.classed import classed_run

CLASSES = ["liver", "strange-thing", "never-seen"]
THRESHOLDS = (60.25, 200.25, 5000.0)
NAMES = {"segmentation.dcm", "report.dcm", "capture.dcm", "overlay.png"}


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without a child process, which takes a second to start."""
    monkeypatch.setattr(client.predict.prediction, "Readers", lambda _count: Readers(0))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes by thresholds; nothing is bright enough for the last."""
    run = run_for(classes=CLASSES)
    network = threshold_network(run, THRESHOLDS, WINDOW)
    monkeypatch.setattr(client.predict.prediction, "build_model", lambda _run: network)
    return save(tmp_path / "model", run, network)


def a_series(folder: Path, scanner: str = "a") -> WrittenSeries:
    return write_study(folder, scanner=SCANNERS[scanner], seed=1, slices=5, rows=33, labelled=False)


def groups_of(report: Dataset) -> list[Dataset]:
    """The measurement groups, as pydicom reads the tree."""
    (measured,) = (item for item in report.ContentSequence if said(item) == "126010")  # Imaging Measurements
    return [item for item in measured.ContentSequence if said(item) == "125007"]  # Measurement Group


def said(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def under(group: Dataset, code: str) -> Dataset | None:
    return next((item for item in group.ContentSequence if said(item) == code), None)


def number(item: Dataset | None) -> tuple[float, str]:
    assert item is not None
    (value,) = item.MeasuredValueSequence
    return float(value.NumericValue), str(value.MeasurementUnitsCodeSequence[0].CodeValue)


def counted(series: WrittenSeries) -> list[int]:
    """Voxels of each class, from the files."""
    images = [pydicom.dcmread(path) for path in series.images]
    values = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in images])
    steps = (*THRESHOLDS, np.inf)
    return [int(np.count_nonzero((values > low) & (values <= high))) for low, high in itertools.pairwise(steps)]


def errors(path: Path, kind: str) -> list[str]:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any(line.strip() == kind for line in lines), lines
    return [line for line in lines if line.startswith("Error")]


def all_items(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in item.get("ContentSequence", ()):
        yield from all_items(child)


@pytest.mark.parametrize("scanner", "abc")
def test_report_has_the_volume_of_each_class_and_names_its_segment(tmp_path: Path, model: Path, scanner: str) -> None:
    series, out = a_series(tmp_path / "study", scanner), tmp_path / "out"
    prediction = predict_study(model, tmp_path / "study", out, reports=True)
    assert {path.name for path in prediction.files} == NAMES == {path.name for path in out.iterdir()}
    report, segmentation = (pydicom.dcmread(out / name) for name in ("report.dcm", "segmentation.dcm"))
    first, second = (pydicom.dcmread(path) for path in series.images[:2])
    distance = np.linalg.norm(np.subtract(first.ImagePositionPatient, second.ImagePositionPatient))
    ml = float(distance) * float(first.PixelSpacing[0]) * float(first.PixelSpacing[1]) / 1000
    voxels = counted(series)
    assert voxels[0] > 0
    assert voxels[1] > 0
    assert voxels[2] == 0
    for group, count in zip(groups_of(report), voxels, strict=True):
        value, unit = number(under(group, "118565006"))  # Volume
        assert unit == "ml"
        assert value == pytest.approx(count * ml, rel=1e-6)
    for place, (group, segment) in enumerate(zip(groups_of(report)[:2], segmentation.SegmentSequence, strict=False), 1):
        region = under(group, "121191")  # Referenced Segment
        assert region is not None
        (reference,) = region.ReferencedSOPSequence
        assert reference.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == place
        tracking = under(group, "112040")  # Tracking Unique Identifier
        assert tracking is not None
        assert segment.TrackingUID == tracking.UID
    assert under(groups_of(report)[2], "121191") is None, "what was not found has no segment"


def test_a_single_class_has_a_report_too_of_a_volume_and_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_for(classes=CLASSES[:1])
    network = threshold_network(run, THRESHOLDS[:1], WINDOW)
    monkeypatch.setattr(client.predict.prediction, "build_model", lambda _run: network)
    model = save(tmp_path / "one", run, network)
    series = a_series(tmp_path / "volume")
    (tmp_path / "image").mkdir()
    shutil.copy(series.images[2], tmp_path / "image")
    for study, code, region in (("volume", "118565006", "121191"), ("image", "42798000", "121214")):
        predict_study(model, tmp_path / study, tmp_path / f"{study}-out", reports=True)
        report, segmentation = (
            pydicom.dcmread(tmp_path / f"{study}-out" / name) for name in ("report.dcm", "segmentation.dcm")
        )
        (found,) = groups_of(report)
        assert number(under(found, code))[0] > 0
        named = under(found, region)
        assert named is not None
        assert named.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        # And the segmentation is as it was: what is of all its frames stands once.
        assert "SegmentIdentificationSequence" in segmentation.SharedFunctionalGroupsSequence[0]
        assert "SegmentIdentificationSequence" not in segmentation.PerFrameFunctionalGroupsSequence[0]


def test_report_says_what_it_is_of_and_that_nobody_has_verified_it(tmp_path: Path, model: Path) -> None:
    series, out = a_series(tmp_path / "study"), tmp_path / "out"
    predict_study(model, tmp_path / "study", out, reports=True)
    report, image = pydicom.dcmread(out / "report.dcm"), pydicom.dcmread(series.images[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        assert report[keyword].value == image[keyword].value
    assert report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.33"  # Comprehensive SR
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    names = [under(group, "121071") for group in groups_of(report)]  # Finding
    kinds = [one.ConceptCodeSequence[0] for one in names if one is not None]
    assert [(one.CodingSchemeDesignator, one.CodeMeaning) for one in kinds] == [
        ("SCT", "Liver"),
        ("99WARDROUND", "strange-thing"),
        ("99WARDROUND", "never-seen"),
    ]
    digest = json.loads((model / "model.json").read_text())["sha256"]
    texts = {str(item.TextValue) for item in all_items(report) if "TextValue" in item}
    assert digest in texts
    named = {str(one.ReferencedSOPInstanceUID) for one in _referred(report)}
    assert {str(pydicom.dcmread(path).SOPInstanceUID) for path in series.images} <= named
    assert str(pydicom.dcmread(out / "segmentation.dcm").SOPInstanceUID) in named
    content: Any = highdicom.sr.srread(out / "report.dcm").content
    assert content.get_volumetric_roi_measurement_groups()


def _referred(report: Dataset) -> list[Dataset]:
    """All objects that the report names as its evidence."""
    studies = [
        *report.get("CurrentRequestedProcedureEvidenceSequence", ()),
        *report.get("PertinentOtherEvidenceSequence", ()),
    ]
    return [
        one for study in studies for series in study.ReferencedSeriesSequence for one in series.ReferencedSOPSequence
    ]


@needs_dciodvfy
@pytest.mark.parametrize("scanner", "abc")
def test_report_and_picture_are_valid(tmp_path: Path, model: Path, scanner: str) -> None:
    a_series(tmp_path / "study", scanner)
    predict_study(model, tmp_path / "study", tmp_path / "out", reports=True)
    assert errors(tmp_path / "out" / "report.dcm", "ComprehensiveSR") == []
    assert errors(tmp_path / "out" / "capture.dcm", "SCImage") == []


def test_picture_is_the_overlay_and_names_the_slices_that_it_shows(tmp_path: Path, model: Path) -> None:
    series, out = a_series(tmp_path / "study"), tmp_path / "out"
    predict_study(model, tmp_path / "study", out, reports=True)
    capture = pydicom.dcmread(out / "capture.dcm")
    assert np.array_equal(capture.pixel_array, np.asarray(Image.open(out / "overlay.png").convert("RGB")))
    named = [str(one.ReferencedSOPInstanceUID) for one in capture.SourceImageSequence]
    assert len(named) == len(set(named))
    assert set(named) <= {str(pydicom.dcmread(path).SOPInstanceUID) for path in series.images}
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in series.images]
    images = [pydicom.dcmread(path) for path in series.images]
    areas = [
        np.count_nonzero(one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) > 200.25)
        for one in images
    ]
    assert uids[int(np.argmax(areas))] in named, "the largest finding of a class is shown"
    assert capture.StudyInstanceUID == images[0].StudyInstanceUID
    others = {str(pydicom.dcmread(out / name).SeriesInstanceUID) for name in ("report.dcm", "segmentation.dcm")}
    assert len({str(capture.SeriesInstanceUID), str(images[0].SeriesInstanceUID), *others}) == 4


@needs_dciodvfy
@pytest.mark.parametrize(("spacing", "unit", "size"), [((0.5, 0.25), "mm2", 0.125), (None, "pixels", 1.0)])
def test_a_single_image_has_an_area(
    tmp_path: Path, model: Path, spacing: Sequence[float] | None, unit: str, size: float
) -> None:
    image = projection("CR")
    image.Modality, image.RescaleSlope, image.RescaleIntercept = "CT", "1", "0"
    pixels = np.zeros((12, 17), np.int16)
    pixels[3:7, 5:10] = 100
    image.PixelData = pixels.tobytes()
    if spacing is not None:
        image.PixelSpacing = list(spacing)
    (tmp_path / "study").mkdir()
    image.save_as(tmp_path / "study" / "one.dcm", enforce_file_format=True)
    predict_study(model, tmp_path / "study", tmp_path / "out", reports=True)
    report = pydicom.dcmread(tmp_path / "out" / "report.dcm")
    found, *_ = groups_of(report)
    value, told = number(under(found, "42798000"))  # Area
    assert value == pytest.approx(20 * size)
    assert told.strip("{}") == unit
    plane = under(found, "121214")  # Referenced Segmentation Frame
    assert plane is not None
    segmentation = pydicom.dcmread(tmp_path / "out" / "segmentation.dcm")
    frame = segmentation.PerFrameFunctionalGroupsSequence[plane.ReferencedSOPSequence[0].ReferencedFrameNumber - 1]
    assert frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1
    content: Any = highdicom.sr.srread(tmp_path / "out" / "report.dcm").content
    assert content.get_planar_roi_measurement_groups()
    assert errors(tmp_path / "out" / "report.dcm", "ComprehensiveSR") == []


def test_a_classification_has_a_report_of_its_probabilities(tmp_path: Path) -> None:
    run = classed_run(data={"modality": "CR"})
    folder, _, _ = save_classifier(tmp_path / "classifier", run)
    image = projection("CR")
    image.PixelData = np.arange(12 * 17, dtype=np.int16).tobytes()
    (tmp_path / "study").mkdir()
    image.save_as(tmp_path / "study" / "one.dcm", enforce_file_format=True)
    out = tmp_path / "out"
    prediction = predict_study(folder, tmp_path / "study", out, reports=True)
    assert {path.name for path in prediction.files} == {"scores.json", "report.dcm"}
    scores = json.loads((out / "scores.json").read_text())
    groups = groups_of(pydicom.dcmread(out / "report.dcm"))
    told: dict[str, tuple[float, str]] = {}
    for group in groups:
        finding, answer = under(group, "121071"), under(group, "answer")
        assert finding is not None
        assert answer is not None
        name = str(finding.ConceptCodeSequence[0].CodeMeaning)
        told[name] = number(under(group, "122157"))[0], str(answer.ConceptCodeSequence[0].CodeMeaning)  # Probability
    expected = dict(scores["chances"]) | ({} if scores["none"] is None else {"None of the classes": scores["none"]})
    assert {name: value for name, (value, _) in told.items()} == pytest.approx(expected, rel=1e-5)
    answered = scores["answer"] or ([] if scores["none"] is None else ["None of the classes"])
    assert [name for name, (_, yes) in told.items() if yes == "Yes"] == answered


def test_what_is_no_dicom_has_none(tmp_path: Path, model: Path) -> None:
    import nibabel  # noqa: PLC0415 - of this test alone

    nibabel.save(
        nibabel.Nifti1Image(np.arange(8 * 9 * 3, dtype=np.int16).reshape(8, 9, 3), np.eye(4)), tmp_path / "one.nii.gz"
    )
    predict_study(model, tmp_path / "one.nii.gz", tmp_path / "out", reports=True)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".gz", ".png"}


def test_an_earlier_report_is_not_overwritten(tmp_path: Path, model: Path) -> None:
    a_series(tmp_path / "study")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.dcm").write_bytes(b"of somebody")
    with pytest.raises(ConfigError, match="earlier"):
        predict_study(model, tmp_path / "study", tmp_path / "out", reports=True)
    assert (tmp_path / "out" / "report.dcm").read_bytes() == b"of somebody"


def test_it_is_asked_for_on_the_command_line(tmp_path: Path, model: Path) -> None:
    a_series(tmp_path / "study")

    def done(*more: Any) -> set[str]:
        out = tmp_path / f"out{len(more)}"
        words = ["predict", str(model), str(tmp_path / "study"), "--out", str(out), "--device", "cpu", *more]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return {path.name for path in out.iterdir()}

    assert done("--report") == NAMES
    assert done() == {"segmentation.dcm", "overlay.png"}
