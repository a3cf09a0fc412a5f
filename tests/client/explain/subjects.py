"""Subjects whose explanation is known: a network that is linear in its image, and every network that there is."""

from typing import Any

import torch
from torch import Tensor, nn

from client.explain.method import Subject
from common.config import RunConfig
from common.learning.network import build_model
from common.models import NETWORK_CHOICE
from tests.client.thresholds import run_for

SLOPE, OFFSET = 3.0, -1.0  # of the log-odds, in the one channel of the image


def linear_network(dims: int = 2) -> nn.Module:
    """A 1 x 1 convolution whose second logit less the first is SLOPE x + OFFSET."""
    network = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 2, 1)
    assert network.bias is not None
    with torch.no_grad():
        network.weight.zero_()
        network.weight[0], network.weight[1] = 1.0, 1.0 + SLOPE
        network.bias[0], network.bias[1] = 0.5, 0.5 + OFFSET
    return network.eval()


def linear_subject(shape: tuple[int, ...], patch: int = 16, **options: Any) -> Subject:
    """Random samples (S, 1, *sp) of the linear network; the region is what lies above 0.6."""
    samples = torch.rand(shape[0], 1, *shape[1:], generator=torch.Generator().manual_seed(1))
    run = run_for(len(shape) - 1, patch)
    network = linear_network(len(shape) - 1)
    return Subject([network], run, samples, samples > 0.6, ("lesion",), torch.device("cpu"), **options)


def subject_of(model: dict[str, Any], size: tuple[int, ...], patch: int = 16, **options: Any) -> Subject:
    """One random sample for a freshly built network; the region is a corner of it.

    Options beside those of a subject: `task`, and `names` of the classes; what answers for the whole classifies.
    """
    dims = len(size)
    dense = NETWORK_CHOICE.by_name[model["architecture"]].DENSE  # type: ignore[attr-defined]
    task = options.pop("task", {} if dense else {"kind": "classification"})
    names = options.pop("names", ("lesion",))
    values = run_for(dims, patch if dense else 20, classes=names).model_dump(by_alias=True)
    run = RunConfig.model_validate(
        values | {"model": {"dims": dims, **model}, "format": 2} | ({"task": task} if task else {})
    )
    samples = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(2))
    regions = torch.zeros(1, len(names), *size, dtype=torch.bool)
    if run.task.DRAWS:
        regions[0, 0][tuple([slice(2, 7)] * dims)] = True
    network = build_model(run).eval()
    return Subject([network], run, samples, regions, names, torch.device("cpu"), **options)


def log_odds(subject: Subject) -> Tensor:
    """(S, *sp) of the linear network, by hand."""
    return SLOPE * subject.samples[:, 0] + OFFSET
