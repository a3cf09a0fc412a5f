"""What `predict` writes of a model that classifies: scores.json, whatever the study, and what it refuses."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import client.predict.prediction
from client.commands.main import app
from client.data.isolate.isolation import Readers
from client.data.prepare.preprocess import as_samples, preprocess
from client.data.read import sources
from client.predict.prediction import predict_study
from client.predict.service import watch
from common.config import RunConfig, canonical
from common.errors import ConfigError
from common.learning.checkpoint import Manifest, pack, save_model, sha256
from common.learning.network import build_model, weights_of
from common.tasks.classification import Classification
from tests.json_forms import conforms
from tests.simulations.classed import classed_run, picture


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without a child process, which takes a second to start."""
    monkeypatch.setattr(client.predict.prediction, "Readers", lambda _count: Readers(0))


def save(folder: Path, run: RunConfig) -> tuple[Path, str, dict[str, Tensor]]:
    """A model with its first weights."""
    state = weights_of(build_model(run))
    weights = pack(state)
    save_model(folder, weights, Manifest(canonical(run), "0" * 64, 1, ("north",), sha256(weights)))
    return folder, sha256(weights), state


def a_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture("bright", np.random.default_rng(0))).save(path)
    return path


def expected(run: RunConfig, state: dict[str, Tensor], path: Path) -> list[float]:
    """By the network alone, the mean over slices first."""
    (reference,) = sources.find_images(path)
    image, _, _ = preprocess(sources.read(reference, None), run)
    model = build_model(run).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        logits: Tensor = model(as_samples(image, run.model.dims)).double().mean(0)
    chances = logits.sigmoid() if run.task == Classification(multi_label=True) else logits.softmax(0)
    return [float(one) for one in chances]


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_picture_has_its_probabilities_and_the_model_that_said_them(tmp_path: Path, multi_label: bool) -> None:
    run = classed_run(task={"multi-label": multi_label})
    model, digest, state = save(tmp_path / "model", run)
    result = predict_study(model, a_picture(tmp_path / "one.png"), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "one-scores.json").read_text())
    assert told["model-sha256"] == digest
    assert told["run"] == run.name
    chances = expected(run, state, tmp_path / "one.png")
    assert list(told["chances"].values()) == pytest.approx(chances[-2:], abs=1e-6)
    assert list(told["chances"]) == ["bright", "dark"]
    if multi_label:
        assert told["none"] is None
        assert told["answer"] == [name for name, one in zip(("bright", "dark"), chances, strict=True) if one >= 0.5]
    else:
        assert told["none"] == pytest.approx(chances[0], abs=1e-6)
        assert told["answer"] == [[], ["bright"], ["dark"]][int(np.argmax(chances))]
    assert [file.name for file in result.files] == ["one-scores.json"]
    assert result.voxels == {}
    with pytest.raises(ConfigError, match="results of an earlier prediction"):
        predict_study(model, tmp_path / "one.png", tmp_path / "out")


def test_a_volume_by_a_2d_model_is_the_mean_over_its_slices(tmp_path: Path) -> None:
    run = classed_run(data={"modality": "MR"})
    model, _, state = save(tmp_path / "model", run)
    voxels = np.random.default_rng(1).normal(size=(24, 20, 5))
    path = tmp_path / "volume.nii"
    nib.save(nib.Nifti1Image(voxels, np.diag([-1, -1, 1, 1])), path)
    predict_study(model, path, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "volume-scores.json").read_text())
    assert [told["none"], *told["chances"].values()] == pytest.approx(expected(run, state, path), abs=1e-5)


def test_the_command_tells_it_as_data(tmp_path: Path) -> None:
    model, _, _ = save(tmp_path / "model", classed_run())
    call = ["predict", str(model), str(a_picture(tmp_path / "one.png")), "--device", "cpu"]
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    conforms("wardround-client predict", json.loads(result.stdout))
    (study,) = json.loads(result.stdout)["studies"]
    assert study["told"]["chances"] == json.loads((tmp_path / "out" / "one-scores.json").read_text())["chances"]
    shown = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "again")])
    assert "bright 0." in shown.output


def test_what_arrives_in_a_folder_is_classified(tmp_path: Path) -> None:
    model, _, _ = save(tmp_path / "model", classed_run())
    a_picture(tmp_path / "in" / "one.png")
    looks = iter([False] * 40 + [True] * 100)
    watch(model, tmp_path / "in", tmp_path / "out", settle_s=0.0, stopped=lambda: next(looks), poll_s=0.01)
    (record,) = (tmp_path / "out").glob("*/result.json")
    told = json.loads(record.read_text())["told"]
    assert told["chances"] == json.loads((record.parent / "scores.json").read_text())["chances"]


def test_a_model_of_regions_has_none_to_look_at(tmp_path: Path) -> None:
    model, _, _ = save(tmp_path / "model", classed_run(task={"of": "region"}))
    with pytest.raises(ConfigError, match="classes of marked regions"):
        predict_study(model, a_picture(tmp_path / "one.png"), tmp_path / "out")
