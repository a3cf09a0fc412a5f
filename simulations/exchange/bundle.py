"""A finished model as a MONAI bundle: a folder that MONAI runs, without us.

    configs/inference.json      simulations/exchange/inference.py
    configs/metadata.json       simulations/exchange/metadata.py
    models/model.pt             the weights as MONAI's tools look for them; read them with weights_only=True
    scripts/                    a copy of what MONAI has no class of; most bundles of MONAI's networks have none
    docs/README.md

The folder comes into being whole, after it was run without us and said what we say (simulations/exchange/gate.py).
"""

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import RunConfig
from common.errors import ConfigError, UpdateError
from common.learning.checkpoint import Manifest
from common.learning.checkpoint import load_model as read_model
from common.learning.network import load_model
from common.system.files import move, write_atomically
from simulations.exchange import gate
from simulations.exchange.inference import LAYERS, config_of, differences, scripts_of
from simulations.exchange.metadata import metadata_of, page_of

WEIGHTS = "models/model.pt"

# Module of a bundle -> where a copy of it is taken from: package and file.
_SOURCES = {
    LAYERS: ("common.models", "layers.py"),
    "scripts.resampling": ("simulations.exchange.scripts", "resampling.py"),
}


@dataclass(frozen=True)
class Exported:
    """What was written. differences: what it does otherwise than we do, a sentence each."""

    path: Path
    agreement: gate.Agreement
    differences: tuple[str, ...]


def export_bundle(model: Path, out: Path) -> Exported:
    """Write the bundle of a model.

    Args:
        model: folder of a run, or of a model that was exported.
        out: a folder that is not there, or is empty.

    Raises:
        ConfigError: the model cannot be told in MONAI's classes, its bundle says another thing than it, or `out` holds
            something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already. Give a new or empty folder with --bundle.")
    run, state, manifest = read_model(model)
    try:
        network = load_model(run, state).eval()
    except UpdateError as error:
        raise ConfigError(f"{model}: {error}") from error
    with _beside(out) as fresh:
        _write_inference(fresh, run)
        write_atomically(fresh / WEIGHTS, _weights(network))
        agreement = gate.compare(fresh, run, network)
        _write_about(fresh, run, manifest, agreement)
        move(fresh, out)
    return Exported(out, agreement, tuple(differences(run)))


def bundle_of(run: RunConfig, network: nn.Module, manifest: Manifest) -> tuple[Exported, dict[str, bytes]]:
    """The bundle of a model, without its weights ever lying on the disk.

    Args:
        run: of the model.
        network: the model, on the CPU, in evaluation mode.
        manifest: of the model.

    Returns:
        What it is, under an empty path; and its files, by their path in the bundle.

    Raises:
        ConfigError: as `export_bundle`.
    """
    weights = _weights(network)
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        _write_inference(fresh, run)
        agreement = gate.compare(fresh, run, network, weights)
        _write_about(fresh, run, manifest, agreement)
        files = {str(path.relative_to(fresh)): path.read_bytes() for path in fresh.rglob("*") if path.is_file()}
    return Exported(Path(), agreement, tuple(differences(run))), files | {WEIGHTS: weights}


def _write_inference(fresh: Path, run: RunConfig) -> None:
    config = config_of(run)
    _write(fresh / "configs" / "inference.json", config)
    for name in ["scripts.__init__", *scripts_of(config)] if scripts_of(config) else []:
        write_atomically(fresh / f"{name.replace('.', '/')}.py", _source(name))


def _weights(network: nn.Module) -> bytes:
    weights = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
    return weights.getvalue()


def _write_about(fresh: Path, run: RunConfig, manifest: Manifest, agreement: gate.Agreement) -> None:
    told = differences(run)
    _write(fresh / "configs" / "metadata.json", metadata_of(run, manifest, agreement, told))
    write_atomically(fresh / "docs" / "README.md", page_of(run, manifest, agreement, told).encode())


def _source(module: str) -> bytes:
    if module not in _SOURCES:
        return b'"""What MONAI has no class of; copied from Wardround, Apache-2.0."""\n'
    package, name = _SOURCES[module]
    return resources.files(package).joinpath(name).read_bytes()


def _write(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, f"{json.dumps(values, indent=2, allow_nan=False)}\n".encode())


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder on the same disk, which is gone afterwards unless it was moved."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".bundle-") as folder:
        fresh = Path(folder) / "bundle"
        fresh.mkdir()
        yield fresh


__all__ = ["Exported", "bundle_of", "export_bundle"]
