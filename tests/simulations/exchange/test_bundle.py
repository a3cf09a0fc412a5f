"""A MONAI bundle stands by itself and says what the model says; one that does not is not written."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.config_parser import ConfigParser

from client.predict.prediction import predict_study
from common.errors import ConfigError
from common.learning.network import build_model
from simulations.exchange import bundle, gate, inference
from simulations.exchange.bundle import export_bundle
from simulations.exchange.inference import config_of, differences
from tests.patience import PATIENCE_S
from tests.simulations.exchange.models import finished, run_of

# A program that has MONAI, and to which Wardround is not installed.
ALONE = """
import sys
for name in ("client", "common", "server", "simulations"):
    sys.modules[name] = None
sys.path.insert(0, ".")
from monai.bundle import ConfigParser
parser = ConfigParser()
parser.read_config("configs/inference.json")
parser["device"] = "cpu"
parser.get_parsed_content("run")
"""


def _volume(path: Path) -> None:
    rng = np.random.default_rng(0)
    waves = np.add.outer(np.add.outer(np.sin(np.arange(31) / 4), np.cos(np.arange(27) / 5)), np.sin(np.arange(9)))
    voxels = (100 * waves + rng.normal(0, 40, waves.shape)).astype(np.float32)
    affine = np.array([[0, -1.1, 0, 5.0], [0.9, 0, 0, -7.0], [0, 0, 2.5, 3.0], [0, 0, 0, 1.0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def test_a_bundle_labels_a_volume_as_predict_does_in_a_process_without_wardround(tmp_path: Path) -> None:
    run = run_of(preprocessing={"spacing-mm": [1.5, 1.2]}, model={"norm": "group"}, training={"patch-size": [8, 8]})
    model = finished(tmp_path / "model", run)
    done = export_bundle(model, tmp_path / "bundle")
    assert done.agreement.labels == 0
    _volume(done.path / "images" / "case.nii.gz")
    ours = predict_study(model, done.path / "images" / "case.nii.gz", tmp_path / "ours")
    subprocess.run(
        [sys.executable, "-I", "-c", ALONE], cwd=done.path, check=True, capture_output=True, timeout=PATIENCE_S
    )
    (theirs,) = (done.path / "eval").rglob("*.nii.gz")
    (file,) = [path for path in ours.files if path.name.endswith(".nii.gz")]
    one: Any = nib.load(file)
    other: Any = nib.load(theirs)
    assert len(np.unique(one.dataobj)) > 1
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)
    said = json.loads((done.path / "configs" / "metadata.json").read_text())
    assert said["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "lesion"
    assert said["wardround"]["differences"] == list(done.differences)
    assert said["wardround"]["largest-difference"]["outputs"] < 1e-5
    assert (done.path / "scripts" / "layers.py").exists()  # MONAI's U-Net takes no groups


def test_a_bundle_that_says_another_thing_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(model={"norm": "instance"})
    model = finished(tmp_path / "model", run)
    config = config_of(run)
    (window,) = [one for one in config["preprocessing"]["transforms"] if "a_min" in one]
    window["a_min"] += 20
    monkeypatch.setattr(bundle, "config_of", lambda _run: config)
    with pytest.raises(ConfigError, match=r"prepared image differs by 0\.0"):
        export_bundle(model, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_bundle_of_classes_that_overlap_writes_the_sum_of_their_bits(tmp_path: Path) -> None:
    run = run_of(task={"kind": "segmentation", "multi-label": True})
    done = export_bundle(finished(tmp_path / "model", run), tmp_path / "bundle")
    assert done.agreement.labels == 0
    parser = ConfigParser(config_of(run))
    first, *rest = parser.get_parsed_content("postprocessing").transforms[:3]
    outputs_ = torch.tensor([[0.5, -0.5, 3.0, -3.0], [2.0, 2.0, -1.0, -1.0]]).view(2, 2, 2)
    item = first({"pred": outputs_})
    for transform in rest:
        item = transform(item)
    assert item["pred"].tolist() == [[[3, 2], [1, 0]]]
    said = json.loads((done.path / "configs" / "metadata.json").read_text())
    assert said["pred_classes"] == "0: background, 1: liver, 2: lesion"
    outputs = said["network_data_format"]["outputs"]["pred"]
    assert (outputs["num_channels"], outputs["channel_def"]) == (2, {"0": "liver", "1": "lesion"})
    assert "Classes may overlap" in (done.path / "docs" / "README.md").read_text()


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="new or empty folder"):
        export_bundle(tmp_path, tmp_path / "bundle")


def test_a_step_without_equivalent_is_told() -> None:
    run = run_of(preprocessing={"steps": [{"kind": "gaussian"}]})
    assert any("gaussian" in sentence for sentence in differences(run))
    assert not inference.prepares_alike(run)
    assert not any("gaussian" in sentence for sentence in differences(run_of()))


def test_an_inference_follows_from_the_run() -> None:
    photo: dict[str, Any] = {"modality": "photo", "channels": 3, "classes": ["vessel"]}
    config = config_of(run_of(data=photo, preprocessing={"intensity": "percentile", "window": None, "rows": 40}))
    named = {one["_target_"].rpartition(".")[2]: one for one in config["preprocessing"]["transforms"]}
    assert named["Resampled"]["rows"] == 40
    assert (named["ScaleIntensityRangePercentilesd"]["lower"], named["SpatialPadd"]["spatial_size"]) == (0.5, [12, 16])
    assert "Orientationd" not in named
    assert config["network_def"]["in_channels"] == 3
    assert config["inferer_windows"]["roi_size"] == [12, 16]


@pytest.mark.parametrize(
    ("intensity", "transform"),
    [
        ("percentile", "ScaleIntensityRangePercentilesd"),
        ("min-max", "ScaleIntensityd"),
        ("zscore", "NormalizeIntensityd"),
    ],
)
def test_intensities_are_scaled_by_what_monai_has_for_them_or_refused(intensity: str, transform: str) -> None:
    steps = config_of(run_of(preprocessing={"intensity": intensity, "window": None}))["preprocessing"]["transforms"]
    assert [one["_target_"] for one in steps if "ntensity" in one["_target_"]] == [f"monai.transforms.{transform}"]
    with pytest.raises(ConfigError, match="'zscore-foreground' has no equivalent"):
        config_of(run_of(preprocessing={"intensity": "zscore-foreground", "window": None}))


@pytest.mark.parametrize(
    ("apart", "what"),
    [
        ((2e-4, 0.0, 0.0), "output of the network"),
        ((0.0, 2e-4, 0.0), "prepared"),
        ((0.0, 0.0, 2e-3), "labels"),
        ((math.nan, 0.0, 0.0), "output of the network"),
        ((0.0, math.nan, 0.0), "prepared"),
    ],
)
def test_whatever_of_the_three_differs_stops_the_export(
    apart: tuple[float, float, float], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of()
    monkeypatch.setattr(gate, "_outside", lambda _bundle, paths, _weights: [{} for _ in paths])
    for first in (gate.Agreement(0.0, None, None), gate.Agreement(0.0, 0.0, 0.0)):
        found = iter([first, gate.Agreement(*apart)])
        monkeypatch.setattr(gate, "_compared", lambda *_, found=found: next(found))
        with pytest.raises(ConfigError, match=f"{what}.*differs by"):
            gate.compare(tmp_path, run, build_model(run))
