"""The client half of each strategy that has one: one file each, and one line in `LOCAL`.

Imports `common.strategies` and torch.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from client.train.strategies.fedprox import LocalFedProx
from client.train.strategies.local import Local, State
from common.strategies import Strategy

LOCAL: Mapping[str, type[Local[Any]]] = {
    "fedprox": LocalFedProx,
}


def local_of(settings: Strategy, model: nn.Module, down: Mapping[str, State]) -> Local[Any]:
    """The client half for one round; plain training, where the shared half asks for no more."""
    half = LOCAL[settings.kind] if settings.STEERS or settings.UP else Local
    return half(settings, model, down)


__all__ = ["LOCAL", "Local", "local_of"]
