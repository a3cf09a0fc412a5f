"""Grad-CAM: the features of a layer, each weighted by what the explained number gains from it.

The weight of a feature is the mean of the number's derivative over the layer's grid; the map is the positive part of
the weighted sum, resized linearly (Selvaraju et al., ICCV 2017; for segmentation Vinogradova et al., AAAI 2020). Of an
image in windows the mean is taken over the grids of all of them.

layer "deepest": the last features on the coarsest grid of more than one voxel, found by watching a pass, so no network
names it: the bottom of a U-Net, the last block of a classifier. layer "last": what goes into the head. Before a head of
one convolution of one voxel that map is the logit itself, which explains nothing that the answer does not show.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.explain.method import Answer, Method, Subject
from client.explain.windows import Sample, samples, scores
from common.config import RunConfig
from common.errors import ConfigError

LAYERS = ("deepest", "last")


def explain(subject: Subject) -> Answer:
    """A map for each class."""
    maps = []
    passes = 0
    for sample in samples(subject):
        maps.append(_map(subject, sample))
        passes += len(sample.windows)
        subject.step()
    whole = torch.stack(maps)
    return Answer(
        {name: whole[:, k] for k, name in enumerate(subject.classes)}, passes=passes, settings={"layer": subject.layer}
    )


def _map(subject: Subject, sample: Sample) -> Tensor:
    """(K, *sp)."""
    network, run = subject.networks[0], subject.run
    features: list[Tensor] = []
    slopes: list[Tensor] = []
    for window in sample.windows:
        with torch.enable_grad(), watched(network, run, subject.layer) as seen:
            numbers = scores(subject, network, window, window.of(sample.image)[None])[0]
            layer = chosen(seen, subject.layer, run.model.dims)
            found = [torch.autograd.grad(number, layer, retain_graph=True)[0][0] for number in numbers]
        features.append(layer.detach()[0])
        slopes.append(torch.stack(found))
    gains = torch.stack([slope.flatten(2).mean(2) for slope in slopes]).mean(0)  # (K, features)
    parts = []
    for window, layer in zip(sample.windows, features, strict=True):
        weighed = torch.einsum("kf,f...->k...", gains, layer).relu()
        mode = "bilinear" if run.model.dims == 2 else "trilinear"
        parts.append(functional.interpolate(weighed[None], tuple(window.share.shape), mode=mode)[0])
    return sample.blended(parts).cpu()


@contextmanager
def watched(network: nn.Module, run: RunConfig, layer: str) -> Iterator[list[Tensor]]:
    """Collect what the modules put out, in the order in which they end; for "last", what goes into the head."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            seen.append(first)

    def keep_input(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        if isinstance(inputs[0], Tensor):
            seen.append(inputs[0])

    if layer == "last":
        hooks = [run.model.head(network).register_forward_pre_hook(keep_input)]
    else:
        hooks = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def chosen(seen: list[Tensor], layer: str, dims: int) -> Tensor:
    """The features to weigh, among what was watched.

    Raises:
        ConfigError: none of them lies on a grid.
    """
    placed = [(values.shape[2:].numel(), values) for values in seen if values.ndim == 2 + dims and values.requires_grad]
    coarsest = min((voxels for voxels, _ in placed if voxels > 1), default=0)
    if not coarsest:
        where = "before the head" if layer == "last" else "in the network"
        raise ConfigError(f"grad-cam finds no features with a place {where}. Use occlusion, or --layer deepest.")
    return [values for voxels, values in placed if voxels == coarsest][-1]


METHOD = Method(
    name="grad-cam",
    source="Selvaraju et al., ICCV 2017; Vinogradova et al., AAAI 2020",
    means="high: features found there speak for the class",
    caveats=(
        "Grad-CAM is as coarse as the layer it looks at, and drops what speaks against the class.",
        "It looks at one layer: what passes beside it, by skip connections, is not in the map.",
    ),
    explain=explain,
)

__all__ = ["LAYERS", "METHOD", "chosen", "explain", "watched"]
