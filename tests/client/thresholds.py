"""Models whose answer follows from the image alone: a 1x1 convolution that thresholds."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import RunConfig, canonical, sha256_of
from common.learning.checkpoint import Manifest, pack, save_model, sha256

WINDOW = (-100.0, 300.0)


def run_for(dims: int = 2, patch: int = 16, **data: Any) -> RunConfig:
    """A run on CT with one class; data replaces or adds to its data contract."""
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


def threshold_network(run: RunConfig, thresholds: tuple[float, ...], window: tuple[float, float]) -> nn.Module:
    """Class k where the first channel, in units of the image, lies above the k-th threshold (ascending)."""
    make = nn.Conv2d if run.model.dims == 2 else nn.Conv3d
    network = make(run.data.channels, 1 + len(thresholds), 1)
    scaled = [(value - window[0]) / (window[1] - window[0]) for value in thresholds]
    assert network.bias is not None
    with torch.no_grad():
        network.weight.zero_()
        for k in range(1 + len(thresholds)):
            network.weight[k, 0] = k
            network.bias[k] = -sum(scaled[:k])
    return network


def save(folder: Path, run: RunConfig, network: nn.Module) -> Path:
    """Write a model as a run would; returns the folder."""
    weights = pack(network.state_dict())
    manifest = Manifest(canonical(run), sha256_of(run), 1, ("a",), sha256(weights))
    save_model(folder, weights, manifest)
    return folder
