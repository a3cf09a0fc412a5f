"""ONNX says what the model says, on images of sizes it was not exported with, and tells how to prepare them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from common.config import canonical, sha256_of
from common.errors import ConfigError
from common.learning.checkpoint import Manifest
from common.learning.checkpoint import load_model as read_model
from common.learning.network import load_model
from simulations.exchange import onnx_file
from simulations.exchange.onnx_file import export_onnx
from tests.simulations.exchange.models import finished, run_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and its ONNX."""
    folder = tmp_path_factory.mktemp("onnx")
    done = export_onnx(finished(folder / "model", run_of()), folder / "model.onnx")
    assert done.fixed is None
    return folder / "model", done.path


def test_onnx_runtime_puts_out_what_the_network_does_on_images_of_other_sizes(exported: tuple[Path, Path]) -> None:
    model, graph = exported
    run, state, manifest = read_model(model)
    network = load_model(run, state).eval()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for size in ((1, 1, 4, 40), (5, 1, 22, 6)):
        images = torch.randn(size, generator=torch.Generator().manual_seed(1))
        (found,) = session.run(None, {"image": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), network(images), rtol=1e-4, atol=1e-4)
    said = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    assert said["wardround.run-hash"] == manifest.run_hash
    assert json.loads(said["wardround.classes"]) == ["liver", "lesion"]
    assert said["wardround.probabilities"] == "softmax over none of the classes, then each class"
    prepared: dict[str, Any] = json.loads(said["wardround.preprocessing"])
    assert prepared["preprocessing"]["window"] == [-100, 250]
    assert prepared["pad-to-multiple-of"] == 2
    assert prepared["pad-to-at-least"] == [12, 16]
    assert prepared["slices"] is True
    assert prepared["fixed-edges"] is False
    assert prepared["windows"] == {"size": [12, 16], "above-patches": 2, "overlap": 0.25, "weights": "gaussian"}
    assert said["wardround.sha256"] == manifest.sha256


def test_edges_that_cannot_be_free_are_the_crops_and_the_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = onnx_file._exported

    def only_fixed(network: nn.Module, example: torch.Tensor, free: Mapping[int, Any]) -> Any:
        if len(free) > 1:
            raise ValueError("edges cannot be free.\nmore")
        return whole(network, example, free)

    monkeypatch.setattr(onnx_file, "_exported", only_fixed)
    done = export_onnx(finished(tmp_path / "model", run_of()), tmp_path / "model.onnx")
    assert done.fixed == "edges cannot be free"
    graph = onnx.load(done.path)
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(said["wardround.preprocessing"])["fixed-edges"] is True
    sizes = graph.graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_value for one in sizes][1:] == [1, 12, 16]
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": torch.zeros(3, 1, 12, 16).numpy()})
    assert found.shape == (3, 3, 12, 16)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"kind": "segmentation", "multi-label": True}, "sigmoid of each class"),
        ({"kind": "classification", "multi-label": True}, "sigmoid of each class"),
        ({"kind": "classification", "of": "region"}, "softmax over the classes"),
    ],
)
def test_how_outputs_become_probabilities_is_told(task: dict[str, Any], expected: str) -> None:
    run = run_of(task=task)
    manifest = Manifest(canonical(run), sha256_of(run), 1, ("north",), "ab" * 32)
    assert onnx_file._properties(run, manifest, None)["wardround.probabilities"] == expected


def _graph(path: Path) -> onnx.ModelProto:
    graph = onnx.load(path)
    del graph.metadata_props[:]
    return graph


def test_a_graph_that_says_another_thing_is_not_written(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter gives the graph of a network whose weights are one part in a thousand larger."""
    run, state, _ = read_model(exported[0])
    model = finished(tmp_path / "model", run, {name: 0.999 * tensor for name, tensor in state.items()})
    monkeypatch.setattr(onnx_file, "_graph", lambda _network, _run: (_graph(exported[1]), None))
    with pytest.raises(ConfigError, match="does not say what the model says"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_graph_that_puts_out_no_numbers_is_not_written(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is larger than no difference: on all images, or on the second alone."""
    monkeypatch.setattr(onnx_file, "_graph", lambda _network, _run: (_graph(exported[1]), None))
    for first in (0, 1):
        calls: list[int] = []

        class Silent(onnx_file._Runtime):
            def forward(self, images: torch.Tensor, first: int = first, calls: list[int] = calls) -> torch.Tensor:
                calls.append(0)
                return super().forward(images) * (float("nan") if len(calls) > first else 1.0)

        monkeypatch.setattr(onnx_file, "_Runtime", Silent)
        with pytest.raises(ConfigError, match="differs by nan"):
            export_onnx(exported[0], tmp_path / "model.onnx")
        assert not (tmp_path / "model.onnx").exists()
