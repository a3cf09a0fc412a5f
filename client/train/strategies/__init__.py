"""The client half of each strategy that has one: one file each, and one line in `LOCAL`.

Imports `common.strategies`, `common.config`, `common.learning` and torch.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from client.train.strategies.feddyn import LocalFedDyn
from client.train.strategies.fedprox import LocalFedProx
from client.train.strategies.local import Kept, Local, State
from client.train.strategies.personal import LocalDitto, LocalFedBN, LocalMrMtl
from client.train.strategies.scaffold import LocalScaffold
from common.strategies import Strategy

LOCAL: Mapping[str, type[Local[Any]]] = {
    "fedprox": LocalFedProx,
    "scaffold": LocalScaffold,
    "feddyn": LocalFedDyn,
    "ditto": LocalDitto,
    "mr-mtl": LocalMrMtl,
    "fedbn": LocalFedBN,
}


def local_of(settings: Strategy, model: nn.Module, down: Mapping[str, State]) -> Local[Any]:
    """The client half for one round; plain training, where the shared half asks for no more."""
    half = LOCAL[settings.kind] if settings.STEERS or settings.REMEMBERS or settings.UP else Local
    return half(settings, model, down)


__all__ = ["LOCAL", "Kept", "Local", "State", "local_of"]
