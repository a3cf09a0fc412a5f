"""What the command writes: maps in the study's geometry, pictures, valid Secondary Captures, a report with caveats."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.uid import SecondaryCaptureImageStorage
from typer.testing import CliRunner

import client.predict.prediction
from client.commands.main import app
from client.data.isolate.isolation import Readers
from client.explain.files import CAVEATS, REPORT_NAME
from common.learning.network import build_model
from simulations.generators.phantoms import SCANNERS, WrittenSeries, write_study
from tests.client.thresholds import WINDOW, run_for, save, threshold_network
from tests.json_forms import conforms

needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.predict.prediction, "Readers", lambda _count: Readers(0))


@pytest.fixture
def series(tmp_path: Path) -> WrittenSeries:
    return write_study(tmp_path / "ct", scanner=SCANNERS["a"], seed=1, slices=5, rows=40, labelled=False)


@pytest.fixture
def threshold_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Brighter than 60: the answer follows from the image."""
    monkeypatch.setattr(client.predict.prediction, "build_model", lambda run: threshold_network(run, (60.25,), WINDOW))
    return save(tmp_path / "model", run_for(), threshold_network(run_for(), (60.25,), WINDOW))


def explained(model: Path, study: Path, out: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["explain", str(model), str(study), "--out", str(out), "--device", "cpu", *options])


def test_map_has_the_studys_geometry_and_says_nothing_of_slices_that_were_not_asked(
    tmp_path: Path, series: WrittenSeries, threshold_model: Path
) -> None:
    out = tmp_path / "why"
    result = explained(threshold_model, tmp_path / "ct", out, "--method", "occlusion", "--slices", "2")
    assert result.exit_code == 0, result.output
    volume = nibabel.Nifti1Image.from_bytes(gzip.decompress((out / "occlusion-lesion.nii.gz").read_bytes()))
    values = np.asarray(volume.dataobj).transpose(2, 1, 0)
    assert values.shape == series.truth.shape
    hounsfield = np.stack([pydicom.dcmread(path).pixel_array for path in series.images]).astype(float)
    first = pydicom.dcmread(series.images[0])
    found = hounsfield * float(first.RescaleSlope) + float(first.RescaleIntercept) > 60.25
    largest = set(np.argsort(found.sum((1, 2)))[-2:])
    assert {z for z in range(len(values)) if np.isfinite(values[z]).all()} == largest
    assert all(np.isnan(values[z]).all() for z in set(range(len(values))) - largest)
    # Voxel (column 3, row 2, slice 4) in RAS millimetres, by DICOM's own formula (PS3.3 C.7.6.2.1.1).
    image = pydicom.dcmread(series.images[4])
    position, across = np.array(image.ImagePositionPatient), np.array(image.ImageOrientationPatient)
    place = position + 3 * image.PixelSpacing[1] * across[:3] + 2 * image.PixelSpacing[0] * across[3:]
    np.testing.assert_allclose((volume.affine @ [3, 2, 4, 1])[:3], place * [-1, -1, 1], atol=1e-3)
    told = json.loads((out / REPORT_NAME).read_bytes())
    assert told["samples"] == {"explained": 2, "of": 5}
    assert told["voxels"] == {"lesion": int(found.sum())}
    assert told["methods"][0]["passes"] <= 512 + 10
    (one,) = told["methods"][0]["maps"]
    seen = np.isfinite(values)
    assert one["mean-inside"] == pytest.approx(values[seen & found].mean(), rel=1e-3)
    assert one["mean-outside"] == pytest.approx(values[seen & ~found].mean(), rel=1e-3)
    with Image.open(out / "occlusion-lesion.png") as picture:
        assert picture.width >= 2 * 512


def test_caveats_are_printed_each_time_and_results_are_not_overwritten(
    tmp_path: Path, series: WrittenSeries, threshold_model: Path
) -> None:
    for options in ((), ("--overwrite", "--json")):
        result = explained(threshold_model, tmp_path / "ct", tmp_path / "why", "--method", "occlusion", *options)
        assert result.exit_code == 0, result.output
        assert all(text in result.stderr for text in CAVEATS)
    conforms("wardround-client explain", json.loads(result.stdout))
    assert json.loads(result.stdout)["files"] == sorted(path.name for path in (tmp_path / "why").iterdir())
    again = explained(threshold_model, tmp_path / "ct", tmp_path / "why", "--method", "occlusion")
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr


@needs_dciodvfy
def test_secondary_captures_are_valid_and_belong_to_the_study(tmp_path: Path, series: WrittenSeries) -> None:
    run = run_for()
    model = save(tmp_path / "model", run, build_model(run))
    out = tmp_path / "why"
    result = explained(model, tmp_path / "ct", out, "--dicom", "--slices", "2", "--method", "occlusion")
    assert result.exit_code == 0, result.output
    captures = sorted(out.glob("*.dcm"))
    assert [path.name for path in captures] == ["occlusion-lesion-001.dcm", "occlusion-lesion-002.dcm"]
    sources = {pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path) for path in series.images}
    seen = []
    for path in captures:
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        assert any(line.strip() == "SCImage" for line in lines)
        assert [line for line in lines if line.startswith("Error")] == []
        image = pydicom.dcmread(path)
        source = sources[image.SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert image.SOPClassUID == SecondaryCaptureImageStorage
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate"):
            assert image[keyword].value == source[keyword].value
        assert image.SeriesInstanceUID != source.SeriesInstanceUID
        assert "not for diagnosis" in image.SeriesDescription
        assert "occlusion of lesion" in image.DerivationDescription
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert list(image.PatientOrientation) == ["L", "P"]
        assert image.pixel_array.shape[2] == 3
        seen += [image.SOPInstanceUID, image.SeriesInstanceUID]
    assert len(set(seen)) == 3  # two images, one series


def test_a_secondary_capture_names_its_own_slice_and_tells_what_its_pixels_went_through(
    tmp_path: Path, series: WrittenSeries, threshold_model: Path
) -> None:
    sources = []
    for path in series.images:
        source = pydicom.dcmread(path)
        source.BurnedInAnnotation, source.LossyImageCompression = "YES", "01"
        source.LossyImageCompressionRatio, source.LossyImageCompressionMethod = "12.5", "ISO_10918_1"
        source.save_as(path)
        sources.append(source)
    out = tmp_path / "why"
    done = explained(threshold_model, tmp_path / "ct", out, "--dicom", "--slices", "2", "--method", "occlusion")
    assert done.exit_code == 0, done.output
    found = [(one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) > 60.25).sum() for one in sources]
    for path, place in zip(sorted(out.glob("*.dcm")), sorted(np.argsort(found)[-2:]), strict=True):
        image = pydicom.dcmread(path)
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == sources[place].SOPInstanceUID
        assert (image.BurnedInAnnotation, image.LossyImageCompression) == ("YES", "01")
        assert (image.LossyImageCompressionRatio, image.LossyImageCompressionMethod) == (12.5, "ISO_10918_1")


def test_picture_has_its_map_as_an_array_and_no_part_of_a_dicom_study(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (21, 34), np.uint8)).save(tmp_path / "eye.png")
    run = run_for(modality="photo")
    model = save(tmp_path / "model", run, build_model(run))
    result = explained(model, tmp_path / "eye.png", tmp_path / "why")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "why").iterdir()}
    assert names == {"eye-grad-cam-lesion.png", "eye-grad-cam-lesion.npz", "eye-explain.json"}
    with np.load(tmp_path / "why" / "eye-grad-cam-lesion.npz", allow_pickle=False) as arrays:
        assert arrays["map"].shape == (21, 34)
    refused = explained(model, tmp_path / "eye.png", tmp_path / "dicom", "--dicom")
    assert refused.exit_code == 1
    assert "--dicom" in refused.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--method", "gradcam"), "Did you mean grad-cam?"),
        (("--class", "bone"), "It has: lesion"),
        (("--layer", "first"), "deepest, last"),
        (("--member", "model"), "uncertainty-ensemble"),
        (("--method", "uncertainty-ensemble"), "--member"),
        (("--method", "attention"), "no attention gates"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_can(
    tmp_path: Path, series: WrittenSeries, options: tuple[str, ...], told: str
) -> None:
    run = run_for()
    model = save(tmp_path / "model", run, build_model(run))
    result = explained(model, tmp_path / "ct", tmp_path / "why", *options)
    assert result.exit_code == 1
    assert told in result.stderr
    assert not (tmp_path / "why").exists()


def test_member_of_another_network_is_refused_and_one_of_another_seed_is_taken(
    tmp_path: Path, series: WrittenSeries
) -> None:
    run, other = run_for(), run_for().model_copy(update={"seed": 7})
    wider = run_for().model_copy(update={"model": run.model.model_copy(update={"channels": (4, 16)})})
    paths = [
        save(tmp_path / f"model-{number}", one, build_model(one)) for number, one in enumerate((run, other, wider))
    ]
    ensemble = ("--method", "uncertainty-ensemble", "--slices", "1", "--member")
    refused = explained(paths[0], tmp_path / "ct", tmp_path / "no", *ensemble, str(paths[2]))
    assert refused.exit_code == 1
    assert "--member" in refused.stderr
    taken = explained(paths[0], tmp_path / "ct", tmp_path / "yes", *ensemble, str(paths[1]), "--json")
    assert taken.exit_code == 0, taken.output
    conforms("wardround-client explain", json.loads(taken.stdout))
    assert json.loads(taken.stdout)["methods"][0]["settings"] == {"members": 2}


def test_several_studies_are_one_too_many(tmp_path: Path, threshold_model: Path) -> None:
    for seed in (1, 2):
        write_study(tmp_path / "two" / str(seed), scanner=SCANNERS["a"], seed=seed, slices=3, rows=20, labelled=False)
    result = explained(threshold_model, tmp_path / "two", tmp_path / "why")
    assert result.exit_code == 1
    assert "there are 2 studies" in result.stderr


def test_what_a_map_does_not_say_is_nan_for_nibabel_and_0_for_itk(tmp_path: Path) -> None:
    """docs/explanation.md warns of it: when ITK reads NaN as NaN, the warning goes."""
    path, values = tmp_path / "map.nii.gz", np.ones((2, 2, 2), np.float32)
    values[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    assert np.isnan(nibabel.Nifti1Image.from_filename(path).get_fdata()).sum() == 1
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).min() == 0
    told = (Path(__file__).parents[3] / "docs" / "explanation.md").read_text(encoding="utf-8")
    assert "reads NaN in a NIfTI file as 0" in told
