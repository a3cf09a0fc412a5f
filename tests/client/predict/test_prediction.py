"""A prediction comes back in the study's own format and geometry, voxel for voxel what the network said.

The network of most tests is a threshold (a 1x1 convolution whose largest logit is known), so that the expected
labels follow from the files alone.
"""

import errno
import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import ComputedRadiographyImageStorage
from torch import nn
from typer.testing import CliRunner

import client.predict.files
import client.predict.prediction
from client.commands.main import app
from client.data.isolate.isolation import Readers
from client.data.study.drawing import COLOURS
from client.predict.prediction import Prediction, Seconds, StudyResult, predict_study
from common.config import RunConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.learning.network import build_model
from common.system.files import write_atomically
from simulations.generators.phantoms import AXIAL, SCANNERS, WrittenSeries, write_study
from tests.client.data.studies import dice_between
from tests.client.thresholds import WINDOW, run_for, save, threshold_network
from tests.json_forms import conforms
from tests.patience import PATIENCE_S

TILT = ((0.8, 0.0, 0.6), (0.0, 1.0, 0.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
AXES = {"axial": AXIAL, "tilted": TILT, "sagittal": SAGITTAL}


@pytest.fixture(autouse=True)
def _in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without a child process, which takes a second to start."""
    if "child" not in request.node.name:
        monkeypatch.setattr(client.predict.prediction, "Readers", lambda _count: Readers(0))


@pytest.fixture
def threshold_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a model that thresholds; returns the path to give to `predict_study`."""

    def make(run: RunConfig, *thresholds: float, window: tuple[float, float] = WINDOW) -> Path:
        network = threshold_network(run, thresholds, window)
        monkeypatch.setattr(
            client.predict.prediction, "build_model", lambda run: threshold_network(run, thresholds, window)
        )
        return save(tmp_path / "model", run, network)

    return make


def _hounsfield(series: WrittenSeries) -> NDArray[np.float64]:
    images = [pydicom.dcmread(path) for path in series.images]
    return np.stack([image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept) for image in images])


def _labels_by_highdicom(segmentation: Path, series: WrittenSeries) -> NDArray[np.integer[Any]]:
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in series.images]
    labels = highdicom.seg.segread(segmentation).get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True, combine_segments=True
    )
    return np.asarray(labels)


def _labels_by_position(segmentation: Path, series: WrittenSeries) -> NDArray[np.uint8]:
    """Each frame put where it says it lies in the patient, with pydicom alone."""
    places = [tuple(pydicom.dcmread(path).ImagePositionPatient) for path in series.images]
    dataset = pydicom.dcmread(segmentation)
    labels = np.zeros(series.truth.shape, np.uint8)
    frames = dataset.pixel_array.reshape(-1, *labels.shape[1:])
    for item, frame in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        group = item if "SegmentIdentificationSequence" in item else dataset.SharedFunctionalGroupsSequence[0]
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[places.index(tuple(item.PlanePositionSequence[0].ImagePositionPatient))][frame > 0] = number
    return labels


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("scanner", "abc")
def test_dicom_seg_holds_the_labels_voxel_for_voxel(
    tmp_path: Path, threshold_model: Any, scanner: str, axes: str
) -> None:
    series = write_study(
        tmp_path / "study", scanner=SCANNERS[scanner], seed=1, slices=5, rows=33, labelled=False, axes=AXES[axes]
    )
    prediction = predict_study(threshold_model(run_for(), 60.25), tmp_path / "study", tmp_path / "out")
    expected = (_hounsfield(series) > 60.25).astype(np.uint8)
    segmentation = tmp_path / "out" / "segmentation.dcm"
    assert expected.any()
    assert np.array_equal(_labels_by_highdicom(segmentation, series), expected)
    assert np.array_equal(_labels_by_position(segmentation, series), expected)
    assert prediction.voxels == {"lesion": int(expected.sum())}
    assert prediction.files == (segmentation, tmp_path / "out" / "overlay.png")
    assert prediction.seconds > 0
    (study,) = prediction.studies
    assert 0 < study.seconds.all <= prediction.seconds


def test_dicom_seg_belongs_to_the_study_and_names_its_model(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    model = threshold_model(run_for(classes=["lesion", "bone"]), 60.25, 200.25)
    predict_study(model, tmp_path / "study", tmp_path / "out")
    image = pydicom.dcmread(series.images[0])
    segmentation = pydicom.dcmread(tmp_path / "out" / "segmentation.dcm")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "AccessionNumber"):
        assert segmentation[keyword].value == image[keyword].value
    assert segmentation.SeriesInstanceUID != image.SeriesInstanceUID
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == ["lesion", "bone"]
    weights_hash = json.loads((model / "model.json").read_text())["sha256"]
    for item in segmentation.SegmentSequence:
        algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("Wardround", weights_hash)
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert item.TrackingID
    assert len({item.TrackingUID for item in segmentation.SegmentSequence}) == 2
    hounsfield = _hounsfield(series)
    expected = (hounsfield > 60.25).astype(np.uint8) + (hounsfield > 200.25)
    assert np.array_equal(_labels_by_highdicom(tmp_path / "out" / "segmentation.dcm", series), expected)


def test_empty_dicom_prediction_is_a_readable_seg_and_is_said(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    prediction = predict_study(threshold_model(run_for(), 299.0), tmp_path / "study", tmp_path / "found")
    assert not prediction.notes
    # The window clips at 300 HU, so nothing can lie above it.
    prediction = predict_study(threshold_model(run_for(), 301.0), tmp_path / "study", tmp_path / "empty")
    assert prediction.voxels == {"lesion": 0}
    assert "found nothing" in prediction.notes[0]
    assert not _labels_by_highdicom(tmp_path / "empty" / "segmentation.dcm", series).any()


def test_one_slice_is_segmented(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=1, rows=32, labelled=False)
    predict_study(threshold_model(run_for(), 60.25), tmp_path / "study", tmp_path / "out")
    labels = _labels_by_highdicom(tmp_path / "out" / "segmentation.dcm", series)
    assert np.array_equal(labels, _hounsfield(series) > 60.25)


@pytest.mark.parametrize("axes", AXES)
def test_3d_model_segments_a_series(tmp_path: Path, threshold_model: Any, axes: str) -> None:
    series = write_study(
        tmp_path / "study", scanner=SCANNERS["b"], seed=1, slices=5, rows=31, labelled=False, axes=AXES[axes]
    )
    predict_study(threshold_model(run_for(dims=3), 60.25), tmp_path / "study", tmp_path / "out")
    labels = _labels_by_highdicom(tmp_path / "out" / "segmentation.dcm", series)
    assert np.array_equal(labels, _hounsfield(series) > 60.25)


def test_resampled_prediction_returns_to_the_grid_of_the_images(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=4, rows=64, labelled=False)
    run = run_for()
    run = run.model_copy(update={"preprocessing": run.preprocessing.model_copy(update={"spacing_mm": (3.1, 3.1)})})
    predict_study(threshold_model(run, 0.25), tmp_path / "study", tmp_path / "out")
    labels = _labels_by_highdicom(tmp_path / "out" / "segmentation.dcm", series)
    expected = _hounsfield(series) > 0.25
    assert 2 * (labels & expected).sum() / (labels.sum() + expected.sum()) > 0.95


def test_unet_from_its_file_predicts_what_it_predicts_in_memory(tmp_path: Path) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    run = run_for(patch=32)
    network = build_model(run).eval()
    torch.nn.init.normal_(next(network.parameters()), generator=torch.Generator().manual_seed(3))
    predict_study(save(tmp_path / "model", run, network), tmp_path / "study", tmp_path / "out")
    scaled = np.clip((_hounsfield(series) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
    with torch.no_grad():
        expected = network(torch.tensor(scaled, dtype=torch.float32)[:, None]).argmax(1).numpy()
    labels = _labels_by_highdicom(tmp_path / "out" / "segmentation.dcm", series)
    assert 0 < expected.sum() < expected.size
    assert (labels != expected).mean() < 1e-3  # ties and the order of summation


def test_dice_between_truth_and_prediction_is_that_of_the_masks(tmp_path: Path, threshold_model: Any) -> None:
    truth = tmp_path / "truth.dcm"
    series = write_study(
        tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=6, rows=48, labelled=False, truth=truth
    )
    prediction = predict_study(threshold_model(run_for(), 60.25), tmp_path / "study", tmp_path / "out")
    found = _hounsfield(series) > 60.25
    dice = 2 * (found & (series.truth > 0)).sum() / (found.sum() + series.truth.sum())
    assert dice_between(prediction.files[0], truth) == pytest.approx(dice)


def test_batch_reports_the_bad_study_and_goes_on(tmp_path: Path, threshold_model: Any) -> None:
    for number in (1, 2, 3):
        series = write_study(
            tmp_path / "studies" / f"{number}",
            scanner=SCANNERS["a"],
            seed=1,
            patient=number,
            slices=5,
            rows=32,
            labelled=False,
        )
        if number == 2:
            series.images[2].unlink()
    done: list[tuple[int, int]] = []
    prediction = predict_study(
        threshold_model(run_for(), 60.25),
        tmp_path / "studies",
        tmp_path / "out",
        progress=lambda count, total: done.append((count, total)),
    )
    assert len(prediction.studies) == 2
    (failure,) = prediction.failures
    assert failure.code == ErrorCode.MISSING_SLICES
    good = {1, 2, 3} - {failure.number}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"studies.json"} | {f"{n:03}" for n in good}
    assert done == [(0, 3), (1, 3), (2, 3), (3, 3)], "the total is known before the first study is done"
    assert "PHANTOM" not in failure.reason
    assert "PID-" not in failure.reason


def test_each_of_several_bad_studies_is_reported(tmp_path: Path, threshold_model: Any) -> None:
    for number in (1, 2):
        series = write_study(
            tmp_path / "s" / f"{number}", scanner=SCANNERS["a"], seed=1, patient=number, rows=32, labelled=False
        )
        series.images[2].unlink()
    prediction = predict_study(threshold_model(run_for(), 60.25), tmp_path / "s", tmp_path / "out")
    assert [failure.code for failure in prediction.failures] == [ErrorCode.MISSING_SLICES] * 2
    assert prediction.files == ()
    assert prediction.latency == ()


def test_nothing_to_segment_is_an_error(tmp_path: Path, threshold_model: Any) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError) as error:
        predict_study(threshold_model(run_for(), 60.25), tmp_path / "nothing", tmp_path / "out")
    assert error.value.code == ErrorCode.NO_DATA


def test_no_patient_attribute_is_in_file_names_or_pictures(tmp_path: Path, threshold_model: Any) -> None:
    for number in (1, 2):
        write_study(tmp_path / "PHANTOM^A" / f"{number}", scanner=SCANNERS["a"], seed=1, patient=number, labelled=False)
    out = tmp_path / "out"
    prediction = predict_study(threshold_model(run_for(), 60.25), tmp_path / "PHANTOM^A", out)
    for file in prediction.files:
        assert file.relative_to(out).as_posix() in {
            f"{number:03}/{name}" for number in (1, 2) for name in ("segmentation.dcm", "overlay.png")
        }
        if file.suffix == ".png":
            assert not Image.open(file).info
            for canary in (b"PHANTOM", b"A0001", b"A0002"):
                assert canary not in file.read_bytes()


def test_overlay_draws_a_contour_on_the_slice_with_the_largest_finding(tmp_path: Path, threshold_model: Any) -> None:
    volume = np.zeros((24, 20, 3), np.float32)  # (x, y, z)
    volume[4:8, 4:8, 0] = 200
    volume[4:16, 2:12, 1] = 200
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "scan.nii.gz")
    predict_study(threshold_model(run_for(), 100.0), tmp_path / "scan.nii.gz", tmp_path / "out")
    picture = np.asarray(Image.open(tmp_path / "out" / "scan-overlay.png"))
    factor = picture.shape[1] // 24
    assert picture.shape[1:] == (24 * factor, 3)
    drawn = (picture[: 20 * factor] == COLOURS[0]).all(-1)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    assert (rows[0], rows[-1] + 1) == (2 * factor, 12 * factor)
    assert (columns[0], columns[-1] + 1) == (4 * factor, 16 * factor)
    assert not drawn[7 * factor, 10 * factor], "a contour, not an area"


def test_overlay_has_left_on_the_right_and_the_back_below(tmp_path: Path, threshold_model: Any) -> None:
    volume = np.zeros((16, 16, 1), np.float32)
    volume[12:, 12:] = 200  # RAS: towards the right and the front of the patient's index, see the affine
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii")
    predict_study(threshold_model(run_for(), 100.0), tmp_path / "scan.nii", tmp_path / "out")
    picture = np.asarray(Image.open(tmp_path / "out" / "scan-overlay.png"))
    drawn = (picture[: picture.shape[1]] == COLOURS[0]).all(-1)  # the square image without its legend
    half = drawn.shape[0] // 2
    assert drawn[:half, :half].any(), "high x is the patient's right: left in the picture; high y is the front: above"
    assert not drawn[half:].any()
    assert not drawn[:, half:].any()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "affine",
    [
        np.array([[-1.5, 0, 0, 10], [0, -1.25, 0, 20], [0, 0, 3, -5], [0, 0, 0, 1]]),
        np.array([[1.0, 0.2, 0, 7], [-0.2, 1.0, 0.1, 8], [0, -0.1, 2, 9], [0, 0, 0, 1]]),
        np.array([[0, 0, 2.5, 1], [0, -1, 0, 2], [1.5, 0, 0, 3], [0, 0, 0, 1]]),
    ],
    ids=["lps", "oblique", "permuted"],
)
def test_nifti_label_map_has_the_affine_and_the_labels(
    tmp_path: Path, threshold_model: Any, affine: NDArray[np.float64], dims: int
) -> None:
    volume = np.random.default_rng(0).integers(-100, 300, (11, 14, 9)).astype(np.int16)
    source = nibabel.Nifti1Image(volume, affine)
    source.header["descrip"] = b"DOE^JANE"
    source.header.set_xyzt_units("mm")
    nibabel.save(source, tmp_path / "scan.nii.gz")
    prediction = predict_study(threshold_model(run_for(dims), 60.5), tmp_path / "scan.nii.gz", tmp_path / "out")
    result = nibabel.Nifti1Image.from_filename(prediction.files[0])
    assert prediction.files[0].name == "scan-labels.nii.gz"
    assert np.array_equal(result.affine, nibabel.Nifti1Image.from_filename(tmp_path / "scan.nii.gz").affine)
    assert np.array_equal(np.asarray(result.dataobj), volume > 60.5)
    assert result.get_data_dtype() == np.uint8
    assert result.header.get_xyzt_units()[0] == "mm"
    assert b"DOE" not in result.header.binaryblock


@pytest.mark.parametrize("shape", [(40, 33), (17, 50)])
def test_picture_gets_a_palette_mask_of_its_size(tmp_path: Path, threshold_model: Any, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "eye.png")
    run = run_for(modality="photo", channels=3, classes=["vessel", "disc"])
    run = run.model_copy(update={"preprocessing": run.preprocessing.model_copy(update={"window": (0.0, 255.0)})})
    model = threshold_model(run, 100.5, 200.5, window=(0.0, 255.0))
    prediction = predict_study(model, tmp_path / "eye.png", tmp_path / "out")
    red = pixels[..., 0]
    assert [file.name for file in prediction.files] == ["eye-labels.png", "eye-overlay.png"]
    mask = Image.open(prediction.files[0])
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), (red > 100.5).astype(int) + (red > 200.5))
    colours = np.asarray(mask.convert("RGB"))
    assert (colours[red <= 100] == 0).all()
    assert (colours[red > 200].max(axis=-1) > 200).all(), "a person sees it"


def test_pictures_of_the_same_name_do_not_overwrite_each_other(tmp_path: Path, threshold_model: Any) -> None:
    for folder in ("left", "right"):
        (tmp_path / "eyes" / folder).mkdir(parents=True)
        _picture(tmp_path / "eyes" / folder / "eye.png", 20, 20)
    run = run_for(modality="photo")
    prediction = predict_study(threshold_model(run, 60.5), tmp_path / "eyes", tmp_path / "out")
    assert len(set(prediction.files)) == 4
    assert prediction.voxels == {"lesion": 2 * 20 * 13}


def _picture(path: Path, rows: int, columns: int, channels: int | None = None) -> NDArray[np.uint8]:
    """Write a picture that grows brighter from the left, 10 a column, and return its pixels."""
    values = np.minimum(10 * np.arange(columns), 255).astype(np.uint8)
    pixels = np.broadcast_to(values, (rows, columns))
    pixels = pixels if channels is None else np.stack([pixels] * channels, axis=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return pixels


def _edit(series: WrittenSeries, **values: Any) -> None:
    """Set attributes of every image; None removes one, a list gives one value per image."""
    for number, path in enumerate(series.images):
        image = pydicom.dcmread(path)
        for keyword, value in values.items():
            if value is None:
                del image[keyword]
            else:
                setattr(image, keyword, value[number] if isinstance(value, list) else value)
        image.save_as(path)


def test_projection_without_geometry_is_segmented(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=1, rows=40, labelled=False)
    _edit(
        series,
        Modality="CR",
        SOPClassUID=ComputedRadiographyImageStorage,
        FrameOfReferenceUID=None,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=[["0", "0"]],  # seen on real devices
    )
    predict_study(threshold_model(run_for(modality="CR"), 60.25), tmp_path / "study", tmp_path / "out")
    segmentation = pydicom.dcmread(tmp_path / "out" / "segmentation.dcm")
    assert np.array_equal(segmentation.pixel_array, _hounsfield(series)[0] > 60.25)


def test_odd_header_is_accepted_and_no_warning_quotes_the_name(
    tmp_path: Path, threshold_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    _edit(
        series,
        PatientName="MUSTERMANN",  # one component, which highdicom warns about
        PatientBirthDate=None,
        StudyTime=None,
        ReferringPhysicianName=None,
        SeriesNumber=None,
        PatientSex="W",
        SpecificCharacterSet="",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict_study(threshold_model(run_for(), 60.25), tmp_path / "study", tmp_path / "out")
    assert "MUSTERMANN" not in caplog.text
    assert str(pydicom.dcmread(tmp_path / "out" / "segmentation.dcm").PatientName) == "MUSTERMANN"


def test_series_whose_images_name_several_studies_is_refused(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    _edit(series, StudyInstanceUID=["1.2.3", "1.2.4", "1.2.5"])
    with pytest.raises(DataError, match="3 different values of StudyInstanceUID") as error:
        predict_study(threshold_model(run_for(), 60.25), tmp_path / "study", tmp_path / "out")
    assert error.value.code == ErrorCode.GEOMETRY_MISMATCH


@pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set")
def test_real_volumes_keep_their_grid(tmp_path: Path, threshold_model: Any) -> None:
    data = Path(os.environ["WARDROUND_DATA"])
    volume = sorted((data / "hippocampus").rglob("*.nii*"))[0]
    prediction = predict_study(threshold_model(run_for(modality="MR"), 60.25), volume, tmp_path / "out")
    source, result = (nibabel.Nifti1Image.from_filename(path) for path in (volume, prediction.files[0]))
    assert np.array_equal(result.affine, source.affine)
    assert np.array_equal(np.asarray(result.dataobj), np.asarray(source.dataobj) > 60.25)

    prediction = predict_study(threshold_model(run_for(), 60.25), data / "dicom_labelled", tmp_path / "series")
    assert len(prediction.studies) >= 4
    for file in prediction.files:
        if file.suffix == ".dcm":
            assert highdicom.seg.segread(file).number_of_segments == 1


def test_results_among_the_images_are_refused(tmp_path: Path, threshold_model: Any) -> None:
    write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=2, rows=32, labelled=False)
    with pytest.raises(ConfigError, match="outside"):
        predict_study(threshold_model(run_for(), 60.25), tmp_path / "study", tmp_path / "study" / "out")


def test_unwritable_out_is_a_clear_error(tmp_path: Path, threshold_model: Any) -> None:
    write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=2, rows=32, labelled=False)
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="--out"):
        predict_study(threshold_model(run_for(), 60.25), tmp_path / "study", tmp_path / "out")


def test_study_of_another_modality_is_refused(tmp_path: Path, threshold_model: Any) -> None:
    write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=2, rows=32, labelled=False)
    with pytest.raises(DataError, match=r"CT.*MR") as error:
        predict_study(threshold_model(run_for(modality="MR"), 60.25), tmp_path / "study", tmp_path / "out")
    assert error.value.code == ErrorCode.UNSUPPORTED


def test_3d_model_refuses_a_picture(tmp_path: Path, threshold_model: Any) -> None:
    _picture(tmp_path / "eye.png", 20, 20)
    with pytest.raises(DataError, match="dims = 2") as error:
        predict_study(threshold_model(run_for(dims=3, modality="photo"), 60.25), tmp_path / "eye.png", tmp_path / "out")
    assert error.value.code == ErrorCode.UNSUPPORTED


def test_model_without_manifest_is_refused(tmp_path: Path, threshold_model: Any) -> None:
    model = threshold_model(run_for(), 60.25)
    (model / "model.json").unlink()
    with pytest.raises(ConfigError, match=r"model\.json"):
        predict_study(model, tmp_path, tmp_path / "out")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    model = save(tmp_path / "model", run_for(), nn.Conv2d(1, 2, 1))
    with pytest.raises(ConfigError, match="do not fit"):
        predict_study(model, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("film.pgm", "film-labels.pgm"),
        ("film.PGM", "film-labels.pgm"),
        ("film.ppm", "film-labels.png"),
        ("film.tif", "film-labels.png"),
        ("film.jpg", "film-labels.png"),
        ("film.bmp", "film-labels.png"),
    ],
)
def test_picture_comes_back_in_a_format_without_loss(
    tmp_path: Path, threshold_model: Any, name: str, result: str
) -> None:
    colour = 3 if name.endswith(".ppm") else None
    pixels = _picture(tmp_path / name, 9, 24, colour)
    model = threshold_model(run_for(modality="photo", channels=colour or 1), 60.25)
    prediction = predict_study(model, tmp_path / name, tmp_path / "out")
    labels, overlay = prediction.files
    assert (labels.name, overlay.name) == (result, "film-overlay.png")
    found = Image.open(labels)
    assert found.format == ("PPM" if result.endswith("pgm") else "PNG")
    wanted = pixels[..., 0] > 60.25 if colour else pixels > 60.25
    assert np.array_equal(np.asarray(found), wanted) or name.endswith(".jpg")
    assert (np.asarray(found) != wanted).mean() < 0.05
    assert not prediction.notes


def test_grey_picture_for_a_colour_model_is_done_and_said(tmp_path: Path, threshold_model: Any) -> None:
    pixels = _picture(tmp_path / "eye.png", 12, 17)
    prediction = predict_study(
        threshold_model(run_for(modality="photo", channels=3), 60.25), tmp_path / "eye.png", tmp_path / "out"
    )
    assert prediction.voxels == {"lesion": int((pixels > 60.25).sum())}
    assert "is grey" in prediction.notes[0]


@pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set")
def test_mammogram_comes_back_as_pgm_and_its_archive_tells_its_spacing(tmp_path: Path, threshold_model: Any) -> None:
    archive = Path(os.environ["WARDROUND_DATA"]) / "mini_mias"
    film = sorted(archive.glob("mdb*.pgm"))[0]
    run = run_for(modality="MG")
    # Twice as coarse as the films' 0.2 mm; only the archive's reader knows that.
    run = run.model_copy(update={"preprocessing": run.preprocessing.model_copy(update={"spacing_mm": (0.4, 0.4)})})
    prediction = predict_study(threshold_model(run, 150.25), film, tmp_path / "out")
    labels = np.asarray(Image.open(prediction.files[0]))
    expected = np.asarray(Image.open(film)) > 150.25
    assert prediction.files[0].name == f"{film.stem}-labels.pgm"
    assert 2 * (labels & expected).sum() / (labels.sum() + expected.sum()) > 0.95
    with pytest.raises(DataError, match=r"MG.*CT"):
        predict_study(threshold_model(run_for(), 150.25), film, tmp_path / "other")


@pytest.mark.parametrize("descending", [False, True])
def test_multi_frame_image_gets_a_seg_in_the_order_of_its_frames(
    tmp_path: Path, threshold_model: Any, descending: bool
) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=4, rows=24, labelled=False)
    slices = [pydicom.dcmread(path) for path in series.images]
    slices.sort(key=lambda image: image.ImagePositionPatient[2], reverse=descending)
    for image in slices:
        image.PositionReferenceIndicator = ""
    converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        legacy_datasets=slices,
        series_instance_uid=pydicom.uid.generate_uid(),
        series_number=2,
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
    )
    # Frames may come in any order.
    turn = [2, 0, 3, 1]
    groups, pixels = converted.PerFrameFunctionalGroupsSequence, converted.pixel_array
    converted.PerFrameFunctionalGroupsSequence = [groups[index] for index in turn]
    converted.PixelData = pixels[turn].tobytes()
    (tmp_path / "enhanced").mkdir()
    converted.save_as(tmp_path / "enhanced" / "image.dcm")
    predict_study(threshold_model(run_for(), 60.25), tmp_path / "enhanced", tmp_path / "out")
    segmentation = highdicom.seg.segread(tmp_path / "out" / "segmentation.dcm")
    frames = segmentation.get_pixels_by_source_frame(
        converted.SOPInstanceUID,
        [1, 2, 3, 4],
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
        combine_segments=True,
    )
    expected = pydicom.dcmread(tmp_path / "enhanced" / "image.dcm").pixel_array
    stored = float(slices[0].RescaleSlope) * expected + float(slices[0].RescaleIntercept) > 60.25
    assert len({frame.tobytes() for frame in stored}) == 4
    assert np.array_equal(frames, stored)


def test_results_are_not_overwritten_unless_asked(tmp_path: Path, threshold_model: Any) -> None:
    for number in (1, 2):
        _picture(tmp_path / "eyes" / f"{number}.png", 9, 24)
    model, out = threshold_model(run_for(modality="photo"), 60.25), tmp_path / "out"
    predict_study(model, tmp_path / "eyes" / "1.png", out)
    predict_study(model, tmp_path / "eyes" / "2.png", out)
    with pytest.raises(ConfigError, match="--overwrite"):
        predict_study(model, tmp_path / "eyes" / "2.png", out)
    predict_study(model, tmp_path / "eyes", out)
    (out / "001" / "1-labels.png").write_bytes(b"old")
    (out / "002" / "2-labels.png").rename(out / "002" / "other-labels.png")  # of a batch whose second study was another
    with pytest.raises(ConfigError, match=r"already \(2\)"):
        predict_study(model, tmp_path / "eyes", out)
    assert (out / "001" / "1-labels.png").read_bytes() == b"old"
    predict_study(model, tmp_path / "eyes", out, overwrite=True)
    assert Image.open(out / "001" / "1-labels.png").size == (24, 9)


def test_full_disk_is_said_leaves_no_half_result_and_keeps_the_finished(
    tmp_path: Path, threshold_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        _picture(tmp_path / "eyes" / f"{number}.png", 9, 24)
    written: list[Path] = []

    def filling(path: Path, data: bytes) -> None:
        if len(written) == 3:  # the second file of the second study
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, data)
        written.append(path)

    monkeypatch.setattr(client.predict.files, "write_atomically", filling)
    with pytest.raises(ConfigError, match=r"study 2 of 3.*No space left.*Finished and kept: 1") as error:
        predict_study(threshold_model(run_for(modality="photo"), 60.25), tmp_path / "eyes", tmp_path / "out")
    assert error.value.code == ErrorCode.DISK_FULL
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"studies.json", "001/1-labels.png", "001/1-overlay.png"}


def test_latency_is_of_every_part_by_volume_and_by_slice() -> None:
    def done(slices: int, seconds: float) -> StudyResult:
        return StudyResult(1, (), slices, {}, Seconds(seconds, 2 * seconds, 3 * seconds))

    rows = Prediction((done(10, 0.1), done(20, 0.4), done(40, 0.2)), (), 1.0).latency
    assert [row.part for row in rows] == ["reading", "network", "writing", "all"]
    assert [row.volume_median for row in rows] == pytest.approx([200, 400, 600, 1200])
    assert [row.slice_median for row in rows] == pytest.approx([10, 20, 30, 60])
    assert rows[0].volume_95 == pytest.approx(380)  # between the second and the largest, nine tenths up
    assert rows[0].slice_95 == pytest.approx(19)


def test_relative_paths_and_a_picture_too_large_for_the_child_that_reads(
    tmp_path: Path, threshold_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _picture(tmp_path / "eyes" / "1.png", 9, 24)
    os.mkfifo(tmp_path / "eyes" / "2.png")  # opening it never ends; no file, so it is not looked at
    monkeypatch.setattr(
        client.predict.prediction, "Readers", lambda count: Readers(count, memory=1 << 30, file_limit_s=PATIENCE_S)
    )
    # More than the child may hold once it is decoded.
    bomb = Image.new("L", (12_000, 12_000))
    bomb.putpixel((1, 1), 255)
    bomb.save(tmp_path / "eyes" / "3.png", compress_level=1)
    prediction = predict_study(threshold_model(run_for(modality="photo"), 60.25), Path("eyes"), Path("out"))
    assert [study.number for study in prediction.studies] == [1]
    assert prediction.files[0] == Path("out/001/1-labels.png")
    assert [failure.code for failure in prediction.failures] == [ErrorCode.OUT_OF_MEMORY]


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_command_says_all_and_fails_when_one_study_failed(tmp_path: Path, threshold_model: Any) -> None:
    _picture(tmp_path / "eyes" / "1.png", 9, 24)
    (tmp_path / "eyes" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.fromarray(_picture(tmp_path / "eyes" / "3.png", 9, 24) // 10).save(tmp_path / "eyes" / "3.png")
    model = threshold_model(run_for(modality="photo"), 60.25)
    result = _call(model, tmp_path / "eyes", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "study 2: unreadable: " in result.stderr
    assert "1 of 3 studies failed" in result.stderr
    assert "study 3: the model found nothing" in result.stderr
    assert all(word in result.stdout for word in ("Latency", "reading", "network", "writing", "001/1-labels.png"))
    (tmp_path / "eyes" / "2.png").unlink()
    result = _call(model, tmp_path / "eyes", "--out", tmp_path / "out", "--overwrite", "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    conforms("wardround-client predict", values)
    assert [study["files"][0] for study in values["studies"]] == ["001/1-labels.png", "002/3-labels.png"]
    assert [study["voxels"] for study in values["studies"]] == [{"lesion": 9 * 17}, {"lesion": 0}]
    assert values["failures"] == []
    assert {row["part"] for row in values["latency-ms"]} == {"reading", "network", "writing", "all"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [(("--watch", "--json"), "--watch"), (("--watch",), "folder"), (("--device", "abacus"), "abacus")],
)
def test_options_that_do_not_fit_are_explained(
    tmp_path: Path, threshold_model: Any, options: tuple[str, ...], expected: str
) -> None:
    _picture(tmp_path / "eye.png", 9, 24)
    model = threshold_model(run_for(modality="photo"), 60.25)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        result = _call(model, tmp_path / "eye.png", "--out", tmp_path / "out", *options)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert (result.exit_code, result.stderr.count("error: ")) == (1, 1)
    assert expected in result.stderr
