"""A finished model without training: a run's network with weights that are not those it is born with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config import RunConfig, canonical, sha256_of, validate
from common.learning.checkpoint import Manifest, pack, save_model, sha256
from common.learning.network import build_model, weights_of


def run_of(**tables: Any) -> RunConfig:
    """A small run on CT slices; `tables` change single values."""
    values: dict[str, Any] = {
        "name": "lesions",
        "format": 2,
        "seed": 3,
        "deterministic": True,  # predictions in float32
        "model": {"channels": [4, 8]},
        "data": {"modality": "CT", "classes": ["liver", "lesion"]},
        "preprocessing": {"intensity": "window", "window": [-100, 250]},
        "training": {"patch-size": [12, 16]},
        "federation": {"rounds": 2},
    }
    for table, changes in tables.items():
        values[table] = {**values.get(table, {}), **changes}
    return validate(RunConfig, values)


def finished(folder: Path, run: RunConfig, state: Mapping[str, Tensor] | None = None) -> Path:
    """The folder of its model, with these weights where they are given."""
    network = build_model(run)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    weights = pack(state or weights_of(network))
    save_model(folder, weights, Manifest(canonical(run), sha256_of(run), 2, ("north", "south"), sha256(weights)))
    return folder
