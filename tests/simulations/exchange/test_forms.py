"""All forms of a model in one folder: what is there says what the model says, and what is not is named."""

import hashlib
import json
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from common.errors import ConfigError
from common.learning.checkpoint import load_model as read_model
from common.learning.network import load_model
from simulations.exchange import forms
from simulations.exchange.forms import export_forms
from tests.simulations.exchange.models import finished, run_of


def test_the_folder_holds_each_form_and_its_hashes(tmp_path: Path) -> None:
    model = finished(tmp_path / "model", run_of())
    done = export_forms(model, tmp_path / "forms")
    assert not done.left_out
    told = json.loads((done.path / "forms.json").read_text())
    assert set(told["forms"]) == {"safetensors", "monai-bundle", "onnx"}
    listed = {name: one["sha256"] for name, one in told["files"].items()}
    there = {
        str(path.relative_to(done.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in done.path.rglob("*")
        if path.is_file() and path.name != "forms.json"
    }
    assert listed == there
    assert {"model.safetensors", "model.json", "model.onnx", "bundle/models/model.pt"} <= there.keys()
    assert all(path.stat().st_mode & 0o222 == 0 for path in done.path.rglob("*") if path.is_file())
    run, state, manifest = read_model(done.path)
    assert told["model-sha256"] == manifest.sha256 == there["model.safetensors"]
    bundled = torch.load(done.path / "bundle" / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(bundled[name], one) for name, one in state.items())
    images = torch.randn(2, 1, 24, 16, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(done.path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), load_model(run, state).eval()(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="is there already"):
        export_forms(model, tmp_path / "forms")


def test_a_form_that_cannot_be_had_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_model: Path, _out: Path) -> None:
        raise ConfigError("the bundle is off by 0.2")

    monkeypatch.setattr(forms, "export_bundle", refused)
    monkeypatch.setitem(sys.modules, "onnx", None)  # as where the extra is not installed
    model = finished(tmp_path / "a model", run_of())
    done = export_forms(model, tmp_path / "forms")
    told = json.loads((done.path / "forms.json").read_text())["forms"]
    assert told["safetensors"]["path"] == "model.safetensors"
    assert told["monai-bundle"] == {
        "left-out": "the bundle is off by 0.2",
        "command": f"wardround-sim export '{model}' --bundle bundle",
    }
    assert "pip install 'wardround[exchange]'" in told["onnx"]["left-out"]
    assert told["onnx"]["command"] == f"wardround-sim export '{model}' --onnx model.onnx"
    assert sorted(path.name for path in done.path.iterdir()) == ["forms.json", "model.json", "model.safetensors"]
    assert set(done.left_out) == {"monai-bundle", "onnx"}
    assert read_model(done.path)
