"""The client half of each strategy: one file each, and one line in `LOCAL`. Imports `common.strategies` and torch."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from client.train.strategies.fedavg import LocalFedAvg
from client.train.strategies.local import Local, State
from common.strategies import Strategy

LOCAL: Mapping[str, type[Local[Any]]] = {
    "fedavg": LocalFedAvg,
}


def local_of(settings: Strategy, model: nn.Module, down: Mapping[str, State]) -> Local[Any]:
    """The client half for one round; see `Local`."""
    return LOCAL[settings.kind](settings, model, down)


__all__ = ["LOCAL", "Local", "local_of"]
