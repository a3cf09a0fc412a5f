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

from common.errors import ConfigError, UpdateError
from common.learning.checkpoint import load_model as read_model
from common.learning.network import load_model
from common.system.files import move, write_atomically
from simulations.exchange import gate
from simulations.exchange.inference import LAYERS, config_of, differences, scripts_of
from simulations.exchange.metadata import metadata_of, page_of

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
    config, told = config_of(run), differences(run)
    with _beside(out) as fresh:
        _write(fresh / "configs" / "inference.json", config)
        for name in ["scripts.__init__", *scripts_of(config)] if scripts_of(config) else []:
            write_atomically(fresh / f"{name.replace('.', '/')}.py", _source(name))
        weights = io.BytesIO()
        torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
        write_atomically(fresh / "models" / "model.pt", weights.getvalue())
        agreement = gate.compare(fresh, run, network)
        _write(fresh / "configs" / "metadata.json", metadata_of(run, manifest, agreement, told))
        write_atomically(fresh / "docs" / "README.md", page_of(run, manifest, agreement, told).encode())
        move(fresh, out)
    return Exported(out, agreement, tuple(told))


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


__all__ = ["Exported", "export_bundle"]
