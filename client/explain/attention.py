"""Attention maps: what the gates of a network let through, from 0 to 1, one map a gate (Oktay et al., MIDL 2018).

A gate says voxel by voxel how much of a skip connection passes, for all classes together. The gates are the network's
own, the finest grid first; each is resized linearly to the sample.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.explain.method import Answer, Method, Subject
from client.explain.windows import Sample, samples
from common.errors import ConfigError


def explain(subject: Subject) -> Answer:
    """A map for each gate: gate-1 is the finest.

    Raises:
        ConfigError: the network has no gates.
    """
    gates = subject.run.model.attention(subject.networks[0])
    if not gates:
        raise ConfigError(
            f"the network {subject.run.model.architecture} has no attention gates. Take another method, such as "
            "grad-cam, or a model with gates, such as the Attention U-Net."
        )
    maps, passes = [], 0
    for sample in samples(subject):
        maps.append(_map(subject, sample, gates))
        passes += len(sample.windows)
        subject.step()
    whole = torch.stack(maps)
    return Answer({f"gate-{number}": whole[:, number - 1] for number in range(1, len(gates) + 1)}, passes=passes)


@torch.no_grad()
def _map(subject: Subject, sample: Sample, gates: Sequence[nn.Module]) -> Tensor:
    """(gates, *sp)."""
    seen: dict[int, Tensor] = {}

    def keep(number: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen[number] = output

    hooks = [gate.register_forward_hook(partial(keep, number)) for number, gate in enumerate(gates)]
    mode = "bilinear" if subject.run.model.dims == 2 else "trilinear"
    parts = []
    try:
        for window in sample.windows:
            subject.networks[0](window.of(sample.image)[None])
            size = tuple(window.share.shape)
            resized = [functional.interpolate(seen[number], size, mode=mode)[0, 0] for number in range(len(gates))]
            parts.append(torch.stack(resized))
    finally:
        for hook in hooks:
            hook.remove()
    return sample.blended(parts).cpu()


METHOD = Method(
    name="attention",
    source="Oktay et al., MIDL 2018",
    means="1: the gate lets all pass; 0: nothing",
    caveats=(
        "A gate weights features for all classes at once: a high value does not say for which, nor for or against.",
        "What passes a gate need not reach the answer.",
    ),
    explain=explain,
)

__all__ = ["METHOD", "explain"]
