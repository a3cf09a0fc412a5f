"""A prediction comes back in the study's own format and geometry, voxel for voxel what the network said.

The network of most tests is a threshold (a 1x1 convolution whose largest logit is known), so that the expected
labels follow from the files alone.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import ComputedRadiographyImageStorage
from torch import nn

import client.predict
from client.predict import predict_study
from common.checkpoint import Manifest, pack, save_model, sha256
from common.config import RunConfig, canonical, sha256_of
from common.errors import ConfigError, DataError, ErrorCode
from common.models import build_model
from simulations.phantoms import AXIAL, SCANNERS, WrittenSeries, dice_between, write_study

WINDOW = (-100.0, 300.0)
TILT = ((0.8, 0.0, 0.6), (0.0, 1.0, 0.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
AXES = {"axial": AXIAL, "tilted": TILT, "sagittal": SAGITTAL}


def _run(dims: int = 2, patch: int = 16, **data: Any) -> RunConfig:
    values = {
        "name": "test",
        "model": {"dims": dims, "channels": [4, 8]},
        "data": {"modality": "CT", "classes": ["lesion"]} | data,
        "preprocessing": {"intensity": "window", "window": WINDOW},
        "training": {"patch-size": [patch] * dims},
        "federation": {"rounds": 1},
        "deterministic": True,  # float32 everywhere
    }
    return RunConfig.model_validate(values)


def _threshold_network(run: RunConfig, thresholds: tuple[float, ...], window: tuple[float, float]) -> nn.Module:
    """Class k where the first channel, in units of the image, lies above the k-th threshold (ascending)."""
    make = nn.Conv2d if run.model.dims == 2 else nn.Conv3d
    network = make(run.data.channels, 1 + len(thresholds), 1)
    scaled = [(value - window[0]) / (window[1] - window[0]) for value in thresholds]
    with torch.no_grad():
        network.weight.zero_()
        for k in range(1 + len(thresholds)):
            network.weight[k, 0] = k
            network.bias[k] = -sum(scaled[:k])
    return network


def _save(folder: Path, run: RunConfig, network: nn.Module) -> Path:
    weights = pack(network.state_dict())
    manifest = Manifest(canonical(run), sha256_of(run), 1, ("a",), sha256(weights))
    save_model(folder, weights, manifest)
    return folder


@pytest.fixture
def threshold_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a model that thresholds; returns the path to give to `predict_study`."""

    def make(run: RunConfig, *thresholds: float, window: tuple[float, float] = WINDOW) -> Path:
        network = _threshold_network(run, thresholds, window)
        monkeypatch.setattr(client.predict, "build_model", lambda run: _threshold_network(run, thresholds, window))
        return _save(tmp_path / "model", run, network)

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
    prediction = predict_study(threshold_model(_run(), 60.25), tmp_path / "study", tmp_path / "out")
    expected = (_hounsfield(series) > 60.25).astype(np.uint8)
    segmentation = tmp_path / "out" / "segmentation.dcm"
    assert expected.any()
    assert np.array_equal(_labels_by_highdicom(segmentation, series), expected)
    assert np.array_equal(_labels_by_position(segmentation, series), expected)
    assert prediction.voxels == {"lesion": int(expected.sum())}
    assert prediction.files == (segmentation, tmp_path / "out" / "overlay.png")
    assert prediction.seconds > 0
    assert prediction.per_slice_ms > 0


def test_dicom_seg_belongs_to_the_study_and_names_its_model(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    model = threshold_model(_run(classes=["lesion", "bone"]), 60.25, 200.25)
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
    prediction = predict_study(threshold_model(_run(), 299.0), tmp_path / "study", tmp_path / "found")
    assert not prediction.notes
    # The window clips at 300 HU, so nothing can lie above it.
    prediction = predict_study(threshold_model(_run(), 301.0), tmp_path / "study", tmp_path / "empty")
    assert prediction.voxels == {"lesion": 0}
    assert "found nothing" in prediction.notes[0]
    assert not _labels_by_highdicom(tmp_path / "empty" / "segmentation.dcm", series).any()


def test_one_slice_is_segmented(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=1, rows=32, labelled=False)
    predict_study(threshold_model(_run(), 60.25), tmp_path / "study", tmp_path / "out")
    labels = _labels_by_highdicom(tmp_path / "out" / "segmentation.dcm", series)
    assert np.array_equal(labels, _hounsfield(series) > 60.25)


@pytest.mark.parametrize("axes", AXES)
def test_3d_model_segments_a_series(tmp_path: Path, threshold_model: Any, axes: str) -> None:
    series = write_study(
        tmp_path / "study", scanner=SCANNERS["b"], seed=1, slices=5, rows=31, labelled=False, axes=AXES[axes]
    )
    predict_study(threshold_model(_run(dims=3), 60.25), tmp_path / "study", tmp_path / "out")
    labels = _labels_by_highdicom(tmp_path / "out" / "segmentation.dcm", series)
    assert np.array_equal(labels, _hounsfield(series) > 60.25)


def test_resampled_prediction_returns_to_the_grid_of_the_images(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=4, rows=64, labelled=False)
    run = _run()
    run = run.model_copy(update={"preprocessing": run.preprocessing.model_copy(update={"spacing_mm": (3.1, 3.1)})})
    predict_study(threshold_model(run, 0.25), tmp_path / "study", tmp_path / "out")
    labels = _labels_by_highdicom(tmp_path / "out" / "segmentation.dcm", series)
    expected = _hounsfield(series) > 0.25
    assert 2 * (labels & expected).sum() / (labels.sum() + expected.sum()) > 0.95


def test_unet_from_its_file_predicts_what_it_predicts_in_memory(tmp_path: Path) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    run = _run(patch=32)
    network = build_model(run).eval()
    torch.nn.init.normal_(next(network.parameters()), generator=torch.Generator().manual_seed(3))
    predict_study(_save(tmp_path / "model", run, network), tmp_path / "study", tmp_path / "out")
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
    prediction = predict_study(threshold_model(_run(), 60.25), tmp_path / "study", tmp_path / "out")
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
        threshold_model(_run(), 60.25),
        tmp_path / "studies",
        tmp_path / "out",
        progress=lambda count, total: done.append((count, total)),
    )
    assert len(prediction.studies) == 2
    (failure,) = prediction.failures
    assert failure.code == ErrorCode.MISSING_SLICES
    good = {1, 2, 3} - {failure.number}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{number:03}" for number in good}
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert "PHANTOM" not in failure.reason
    assert "PID-" not in failure.reason


def test_nothing_usable_is_an_error(tmp_path: Path, threshold_model: Any) -> None:
    for number in (1, 2):
        series = write_study(
            tmp_path / "s" / f"{number}", scanner=SCANNERS["a"], seed=1, patient=number, rows=32, labelled=False
        )
        series.images[2].unlink()
    with pytest.raises(DataError, match="none of the 2 studies"):
        predict_study(threshold_model(_run(), 60.25), tmp_path / "s", tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError) as error:
        predict_study(threshold_model(_run(), 60.25), tmp_path / "nothing", tmp_path / "out")
    assert error.value.code == ErrorCode.NO_DATA


def test_no_patient_attribute_is_in_file_names_or_pictures(tmp_path: Path, threshold_model: Any) -> None:
    for number in (1, 2):
        write_study(tmp_path / "PHANTOM^A" / f"{number}", scanner=SCANNERS["a"], seed=1, patient=number, labelled=False)
    out = tmp_path / "out"
    prediction = predict_study(threshold_model(_run(), 60.25), tmp_path / "PHANTOM^A", out)
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
    predict_study(threshold_model(_run(), 100.0), tmp_path / "scan.nii.gz", tmp_path / "out")
    picture = np.asarray(Image.open(tmp_path / "out" / "scan-overlay.png"))
    factor = picture.shape[1] // 24
    assert picture.shape == (20 * factor, 24 * factor, 3)
    drawn = (picture == client.predict.COLOURS[0]).all(-1)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    assert (rows[0], rows[-1] + 1) == (2 * factor, 12 * factor)
    assert (columns[0], columns[-1] + 1) == (4 * factor, 16 * factor)
    assert not drawn[7 * factor, 10 * factor], "a contour, not an area"


def test_overlay_has_left_on_the_right_and_the_back_below(tmp_path: Path, threshold_model: Any) -> None:
    volume = np.zeros((16, 16, 1), np.float32)
    volume[12:, 12:] = 200  # RAS: towards the right and the front of the patient's index, see the affine
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii")
    predict_study(threshold_model(_run(), 100.0), tmp_path / "scan.nii", tmp_path / "out")
    drawn = (np.asarray(Image.open(tmp_path / "out" / "scan-overlay.png")) == client.predict.COLOURS[0]).all(-1)
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
    prediction = predict_study(threshold_model(_run(dims), 60.5), tmp_path / "scan.nii.gz", tmp_path / "out")
    result = nibabel.load(prediction.files[0])
    assert prediction.files[0].name == "scan-labels.nii.gz"
    assert np.array_equal(result.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)
    assert np.array_equal(np.asarray(result.dataobj), volume > 60.5)
    assert result.get_data_dtype() == np.uint8
    assert result.header.get_xyzt_units()[0] == "mm"
    assert b"DOE" not in result.header.binaryblock


@pytest.mark.parametrize("shape", [(40, 33), (17, 50)])
def test_picture_gets_a_palette_mask_of_its_size(tmp_path: Path, threshold_model: Any, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "eye.png")
    run = _run(modality="photo", channels=3, classes=["vessel", "disc"])
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
        Image.fromarray(np.full((20, 20), 90, np.uint8)).save(tmp_path / "eyes" / folder / "eye.png")
    run = _run(modality="photo")
    prediction = predict_study(threshold_model(run, 60.5), tmp_path / "eyes", tmp_path / "out")
    assert len(set(prediction.files)) == 4
    assert prediction.voxels == {"lesion": 800}


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
    predict_study(threshold_model(_run(modality="CR"), 60.25), tmp_path / "study", tmp_path / "out")
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
        predict_study(threshold_model(_run(), 60.25), tmp_path / "study", tmp_path / "out")
    assert "MUSTERMANN" not in caplog.text
    assert str(pydicom.dcmread(tmp_path / "out" / "segmentation.dcm").PatientName) == "MUSTERMANN"


def test_series_whose_images_name_several_studies_is_refused(tmp_path: Path, threshold_model: Any) -> None:
    series = write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    _edit(series, StudyInstanceUID=["1.2.3", "1.2.4", "1.2.5"])
    with pytest.raises(DataError, match="3 different values of StudyInstanceUID") as error:
        predict_study(threshold_model(_run(), 60.25), tmp_path / "study", tmp_path / "out")
    assert error.value.code == ErrorCode.GEOMETRY_MISMATCH


@pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set")
def test_real_volumes_keep_their_grid(tmp_path: Path, threshold_model: Any) -> None:
    data = Path(os.environ["WARDROUND_DATA"])
    volume = sorted((data / "hippocampus").rglob("*.nii*"))[0]
    prediction = predict_study(threshold_model(_run(modality="MR"), 60.25), volume, tmp_path / "out")
    source, result = nibabel.load(volume), nibabel.load(prediction.files[0])
    assert np.array_equal(result.affine, source.affine)
    assert np.array_equal(np.asarray(result.dataobj), np.asarray(source.dataobj) > 60.25)

    prediction = predict_study(threshold_model(_run(), 60.25), data / "dicom_labelled", tmp_path / "series")
    assert len(prediction.studies) >= 5
    for file in prediction.files:
        if file.suffix == ".dcm":
            assert highdicom.seg.segread(file).number_of_segments == 1


def test_results_among_the_images_are_refused(tmp_path: Path, threshold_model: Any) -> None:
    write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=2, rows=32, labelled=False)
    with pytest.raises(ConfigError, match="outside"):
        predict_study(threshold_model(_run(), 60.25), tmp_path / "study", tmp_path / "study" / "out")


def test_unwritable_out_is_a_clear_error(tmp_path: Path, threshold_model: Any) -> None:
    write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=2, rows=32, labelled=False)
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="--out"):
        predict_study(threshold_model(_run(), 60.25), tmp_path / "study", tmp_path / "out")


def test_study_of_another_modality_is_refused(tmp_path: Path, threshold_model: Any) -> None:
    write_study(tmp_path / "study", scanner=SCANNERS["a"], seed=1, slices=2, rows=32, labelled=False)
    with pytest.raises(DataError, match=r"CT.*MR") as error:
        predict_study(threshold_model(_run(modality="MR"), 60.25), tmp_path / "study", tmp_path / "out")
    assert error.value.code == ErrorCode.UNSUPPORTED


def test_3d_model_refuses_a_picture(tmp_path: Path, threshold_model: Any) -> None:
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "eye.png")
    with pytest.raises(DataError, match="2D model") as error:
        predict_study(threshold_model(_run(dims=3, modality="photo"), 60.25), tmp_path / "eye.png", tmp_path / "out")
    assert error.value.code == ErrorCode.UNSUPPORTED


def test_model_without_manifest_is_refused(tmp_path: Path, threshold_model: Any) -> None:
    model = threshold_model(_run(), 60.25)
    (model / "model.json").unlink()
    with pytest.raises(ConfigError, match=r"model\.json"):
        predict_study(model, tmp_path, tmp_path / "out")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    model = _save(tmp_path / "model", _run(), nn.Conv2d(1, 2, 1))
    with pytest.raises(ConfigError, match="do not fit"):
        predict_study(model, tmp_path, tmp_path / "out")
