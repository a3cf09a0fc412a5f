"""A finished model's network as ONNX, with what its images need to go through before, as the file's own metadata.

Input `image` (N, C, *sp) float32, prepared as `wardround.preprocessing` says; output `outputs` (N, K, *sp). N is free,
and so are the edges, in multiples of the network's stride; where torch's exporter cannot leave them free they are of
the run's crops, and the file says so. The graph is checked by ONNX' own checker, and run by ONNX Runtime on random
images of several sizes against ours, in float32. Source: https://onnx.ai/onnx/repo-docs/IR.html (metadata_props)
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.config import RunConfig, canonical
from common.errors import ConfigError, UpdateError
from common.learning import inference
from common.learning.checkpoint import Manifest
from common.learning.checkpoint import load_model as read_model
from common.learning.network import load_model
from common.system.files import write_atomically

# Largest difference of an output from ours, as a share of the largest output, or of 1 where that is smaller.
MOST_OUTPUT = 1e-4
OPSET = 20
_EXTRA = "pip install 'wardround[exchange]'"
_AXES = "zyx"


@dataclass(frozen=True)
class OnnxExported:
    """What was written. fixed: why its edges are fixed, if they are. outputs: largest difference, as in MOST_OUTPUT."""

    path: Path
    outputs: float
    fixed: str | None


def export_onnx(model: Path, out: Path) -> OnnxExported:
    """Write the network of a model.

    Args:
        model: folder of a run, or of a model that was exported.
        out: the file; one that is there is replaced.

    Raises:
        ConfigError: a library is missing, torch cannot export this network, or ONNX Runtime says something else.
    """
    _libraries()
    run, state, manifest = read_model(model)
    try:
        network = load_model(run, state).eval()
    except UpdateError as error:
        raise ConfigError(f"{model}: {error}") from error
    data, done = onnx_of(run, network, manifest)
    write_atomically(out, data)
    return replace(done, path=out)


def onnx_of(run: RunConfig, network: nn.Module, manifest: Manifest) -> tuple[bytes, OnnxExported]:
    """The network of a model, in memory.

    Args:
        run: of the model.
        network: the model, on the CPU, in evaluation mode.
        manifest: of the model.

    Returns:
        The file's bytes; and what it is, under an empty path.

    Raises:
        ConfigError: as `export_onnx`.
    """
    onnx, runtime = _libraries()
    graph, fixed = _graph(network, run)
    for name, value in _properties(run, manifest, fixed).items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = name, value
    try:
        onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ConfigError(
            f"torch made a graph of {run.model.architecture} that ONNX refuses: {_first_line(error)}. Nothing was "
            "written."
        ) from error
    data = graph.SerializeToString()
    apart = _apart(network, _Runtime(runtime, data), run, free=fixed is None)
    if not apart <= MOST_OUTPUT:
        raise ConfigError(
            f"ONNX Runtime does not say what the model says: an output differs by {apart:.2g}, at most {MOST_OUTPUT:g} "
            "is allowed. Nothing was written. Report this with the run's run.toml."
        )
    return data, OnnxExported(Path(), apart, fixed)


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx  # noqa: PLC0415 - an extra
        import onnxruntime  # noqa: PLC0415 - an extra
        import onnxscript  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"ONNX needs packages that are not here ({error.name}). Install them: {_EXTRA}.") from error
    return onnx, onnxruntime


def _graph(network: nn.Module, run: RunConfig) -> tuple[Any, str | None]:
    """The network with free edges, or else with fixed ones, and then why."""
    stride, dims = run.model.stride, run.model.dims
    axes = _AXES[-dims:]
    multiples: list[Any] = [stride * torch.export.Dim(f"{axis}_strides", min=2, max=4096) for axis in axes]
    batch = torch.export.Dim("batch")
    example = torch.zeros(2, run.data.channels, *(stride * (3 + number) for number in range(dims)))
    try:
        return _exported(network, example, {0: batch, **dict(enumerate(multiples, start=2))}), None
    except Exception as error:  # noqa: BLE001  # whatever the exporter raises: many types of several libraries
        reason = _first_line(error.__cause__ or error)  # torch's own says only in which of its steps it was
    example = torch.zeros(2, run.data.channels, *run.training.patch_size)
    try:
        return _exported(network, example, {0: batch}), reason
    except Exception as error:
        raise ConfigError(
            f"torch cannot export the network {run.model.architecture} in {dims}D to ONNX: "
            f"{_first_line(error.__cause__ or error)}."
        ) from error


def _exported(network: nn.Module, example: Tensor, free: Mapping[int, Any]) -> Any:
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=(dict(free),),
            input_names=["image"],
            output_names=["outputs"],
            opset_version=OPSET,
            verbose=False,
        )
        if program is None:
            raise ValueError("the exporter gave nothing")
        return program.model_proto


class _Runtime(nn.Module):
    """The graph, as our inference calls a network."""

    def __init__(self, runtime: Any, data: bytes) -> None:
        super().__init__()
        self.session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        (found,) = self.session.run(None, {"image": images.contiguous().numpy()})
        return torch.from_numpy(found)


def _apart(network: nn.Module, graph: nn.Module, run: RunConfig, *, free: bool) -> float:
    """Largest difference over images of several sizes, as a share of the largest output or of 1."""
    exact = run.model_copy(update={"deterministic": True})  # float32
    generator = torch.Generator().manual_seed(0)
    found = []
    for count, size in _sizes(run, free=free):
        images = torch.randn((count, run.data.channels, *size), generator=generator)
        ours, theirs = _answers(network, images, exact), _answers(graph, images, exact)
        found.append(float((ours - theirs).abs().max() / max(1.0, float(ours.abs().max()))))
    return float(np.max(found))  # NaN where one is, as Python's would not be


def _sizes(run: RunConfig, *, free: bool) -> Iterator[tuple[int, Sequence[int]]]:
    """Of crops, and where edges are free other multiples of the stride, and odd ones: padded, and in windows."""
    patch, stride = run.training.patch_size, run.model.stride
    yield 1, patch
    if free:
        yield 3, [stride * (5 - axis) for axis in range(run.model.dims)]
        yield 1, [max(1, edge - 3) for edge in patch]
        yield 1, [2 * patch[0] + 3, *(max(1, edge - 1) for edge in patch[1:])]


@torch.inference_mode()
def _answers(network: nn.Module, images: Tensor, run: RunConfig) -> Tensor:
    return inference.outputs(network, images, run, "cpu")


def _properties(run: RunConfig, manifest: Manifest, fixed: str | None) -> dict[str, str]:
    chosen = run.preprocessing
    prepared = {
        "axes": "(z, y, x) to the head, to the back and to the left; a picture (y, x)",
        "slices": run.model.dims == 2,
        "channels": run.data.channels,
        "preprocessing": json.loads(canonical(chosen)),
        "percentiles": [0.5, 99.5],
        "pad-to-multiple-of": run.model.stride,
        "pad-to-at-least": list(run.training.patch_size),
        "windows": {
            "size": list(run.training.patch_size),
            "above-patches": inference.WHOLE,
            "overlap": inference.OVERLAP,
            "weights": "gaussian",
        },
        "fixed-edges": fixed is not None,
    }
    return {
        "wardround.run-hash": manifest.run_hash,
        "wardround.run": canonical(run),
        "wardround.sha256": manifest.sha256,
        "wardround.modality": run.data.modality,
        "wardround.task": run.task.kind,
        "wardround.classes": json.dumps(list(run.data.classes)),
        "wardround.probabilities": _probabilities(run),
        "wardround.preprocessing": json.dumps(prepared),
    }


def _probabilities(run: RunConfig) -> str:
    """How the outputs become probabilities; of one class as the task says it."""
    outputs, classes = run.task.outputs(len(run.data.classes)), len(run.data.classes)
    alone = run.task.overlaps or run.task.label == "classes"
    if alone:
        return "sigmoid of each class"
    return "softmax over the classes" if outputs == classes else "softmax over none of the classes, then each class"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter has to say to its makers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


__all__ = ["MOST_OUTPUT", "OnnxExported", "export_onnx", "onnx_of"]
