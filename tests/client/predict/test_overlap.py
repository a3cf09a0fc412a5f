"""Predictions of classes that overlap: a DICOM SEG whose segments do, a file of each class elsewhere, and pictures."""

import io
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from torch import nn

import client.predict.prediction
from client.data.read import sources
from client.data.study.drawing import COLOURS
from client.data.study.labels import Vocabulary
from client.data.study.study import Study
from client.predict.overlay import draw_overlay
from client.predict.prediction import predict_study
from common.config import RunConfig, validate
from common.errors import ConfigError
from tests.client import thresholds
from tests.client.data.studies import ct_slices, read_image, save, source, write_picture, write_volume

SHAPE = (4, 24, 31)
CLASSES = ("tissue", "bone")
THRESHOLDS_HU = (50.0, 300.0)  # bone is tissue too


def run_of(**data: Any) -> RunConfig:
    values = {
        "format": 2,
        "name": "test",
        "model": {"channels": [4, 8]},
        "data": {"modality": "CT", "classes": list(CLASSES), **data},
        "task": {"kind": "segmentation", "multi-label": True},
        "preprocessing": {"intensity": "window", "window": [-1000.0, 1000.0]},
        "training": {"patch-size": [16, 16]},
        "federation": {"rounds": 1},
        "deterministic": True,
    }
    return validate(RunConfig, values)


def model_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **data: Any) -> Path:
    """Class k where the image lies above the k-th threshold, whatever the other is."""
    network = nn.Conv2d(1, 2, 1)
    assert network.bias is not None
    with torch.no_grad():
        network.weight.fill_(1.0)
        network.bias.copy_(torch.tensor([-(value + 1000) / 2000 for value in THRESHOLDS_HU]))
    monkeypatch.setattr(client.predict.prediction, "build_model", lambda _run: network)
    return thresholds.save(folder / "model", run_of(**data), network)


def voxels() -> np.ndarray:
    """HU, with a round bone within tissue that touches the edge; the last slice shows air alone."""
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    tissue, bone = (y > 8) & (z < 3), (np.hypot(y - 15, x - 12) < 5) & (z < 2)
    return np.where(bone, 600, np.where(tissue, 100, -500))


EXPECTED = np.stack([voxels() > value for value in THRESHOLDS_HU], -1)


def test_segments_of_a_dicom_seg_overlap_voxel_for_voxel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = ct_slices(voxels() + 1024)
    save(tmp_path / "ct", slices)
    result = predict_study(model_in(tmp_path, monkeypatch), tmp_path / "ct", tmp_path / "out")
    path = tmp_path / "out" / "segmentation.dcm"
    found = highdicom.seg.segread(path).get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in slices],
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(found, EXPECTED)
    plain = pydicom.dcmread(path)
    assert (plain.SegmentationType, plain.SegmentsOverlap) == ("BINARY", "YES")
    assert [item.SegmentLabel for item in plain.SegmentSequence] == list(CLASSES)
    assert int(plain.NumberOfFrames) == 3 + 2  # of tissue and of bone
    assert result.voxels == {name: int(EXPECTED[..., k].sum()) for k, name in enumerate(CLASSES)}


def test_what_was_predicted_is_read_as_the_label_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "ct", ct_slices(voxels() + 1024))
    predict_study(model_in(tmp_path, monkeypatch), tmp_path / "ct", tmp_path / "out")
    (tmp_path / "out" / "segmentation.dcm").rename(tmp_path / "ct" / "segmentation.dcm")
    (reference,) = sources.find(source(path=str(tmp_path / "ct")), tmp_path).references
    run = run_of()
    study = sources.read(reference, Vocabulary.of_run(run.data, {}, overlap=run.task.overlaps))
    np.testing.assert_array_equal(study.label, EXPECTED @ np.array([1, 2], np.uint8))


def test_an_empty_answer_is_an_object_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "ct", ct_slices(np.random.default_rng(0).integers(900, 1000, SHAPE)))  # fat, below the first
    result = predict_study(model_in(tmp_path, monkeypatch), tmp_path / "ct", tmp_path / "out")
    segmentation = pydicom.dcmread(tmp_path / "out" / "segmentation.dcm")
    assert not segmentation.pixel_array.any()
    assert result.voxels == dict.fromkeys(CLASSES, 0)
    assert any("found nothing" in note for note in result.notes)


def test_a_volume_has_a_label_map_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine = np.diag([-0.7, -0.8, 3.0, 1.0])
    write_volume(tmp_path / "scan.nii.gz", voxels().transpose(2, 1, 0).astype(np.float32), affine)
    model = model_in(tmp_path, monkeypatch)
    result = predict_study(model, tmp_path / "scan.nii.gz", tmp_path / "out")
    names = [f"scan-labels-{name}.nii.gz" for name in CLASSES]
    assert [path.name for path in result.files] == [*names, "scan-overlay.png"]
    for number, path in enumerate(result.files[:2], start=1):
        image: Any = nib.load(path)
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(), EXPECTED[..., number - 1] * number)
        np.testing.assert_allclose(image.affine, affine)
    study, bits = read_image(tmp_path / "scan.nii.gz"), EXPECTED.astype(np.uint8) @ np.array([1, 2], np.uint8)
    drawn = draw_overlay(study, bits, CLASSES, (-1000.0, 1000.0), overlap=True)
    assert result.files[2].read_bytes() == drawn
    with pytest.raises(ConfigError, match="earlier prediction"):
        predict_study(model, tmp_path / "scan.nii.gz", tmp_path / "out")


@pytest.mark.parametrize("suffix", ["png", "pgm"])
def test_a_picture_has_a_mask_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    pixels = np.where(EXPECTED[0, ..., 1], 250, np.where(EXPECTED[0, ..., 0], 100, 10)).astype(np.uint8)
    write_picture(tmp_path / f"eye.{suffix}", pixels)
    model = model_in(tmp_path, monkeypatch, modality="photo")
    result = predict_study(model, tmp_path / f"eye.{suffix}", tmp_path / "out")
    assert [path.name for path in result.files] == [f"eye-labels-{name}.{suffix}" for name in CLASSES] + [
        "eye-overlay.png"
    ]
    for number, (path, threshold) in enumerate(zip(result.files, THRESHOLDS_HU, strict=False), start=1):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), (pixels > threshold) * number)


def test_an_overlay_draws_a_contour_around_each_class() -> None:
    """Where a bone ends within its tissue there is the bone's colour; the tissue's goes around both."""
    image = np.zeros((1, 40, 40), np.float32)
    labels = np.zeros((40, 40), np.uint8)
    labels[5:35, 5:35] += 1
    labels[10:20, 10:20] += 2
    study = Study(image, None, None, None, "", "p", "k", ())
    drawn = np.asarray(Image.open(io.BytesIO(draw_overlay(study, labels, CLASSES, (0.0, 1.0), overlap=True))))
    scale = 512 // 40 + 1
    picture = drawn[: 40 * scale, : 40 * scale]
    colours = {name: (picture == np.array(COLOURS[k])).all(axis=2) for k, name in enumerate(CLASSES)}
    rows, columns = np.nonzero(colours["bone"])
    assert (rows.min() // scale, rows.max() // scale, columns.min() // scale) == (10, 19, 10)
    rows, _ = np.nonzero(colours["tissue"])
    assert (rows.min() // scale, rows.max() // scale) == (5, 34)
    assert not colours["tissue"][12 * scale : 18 * scale, 12 * scale : 18 * scale].any()
