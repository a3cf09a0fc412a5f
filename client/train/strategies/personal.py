"""Ditto, MR-MTL and FedBN at a site: a model of its own, or its part of one. See `common.strategies.personal`."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from client.train.strategies.local import Kept, Local, State, StrategyType
from common.config import RunConfig
from common.learning.network import norms_of, weights_of
from common.strategies import PERSONAL
from common.strategies.personal import Ditto, FedBN, MrMtl, Pulled


class _Own(Local[StrategyType]):
    """Remembers what was sent, and what of it the site has of its own."""

    def __init__(self, settings: StrategyType, model: nn.Module, down: Mapping[str, State]) -> None:
        super().__init__(settings, model, down)
        self.sent = {name: weights.detach().clone() for name, weights in model.named_parameters()}
        self.own: Mapping[str, Tensor] = {}

    def remember(self, run: RunConfig, round_: int, kept: Kept | None) -> None:
        """Of whichever round the site took part in last; at first nothing, and what was sent is where it begins."""
        self.own = {} if kept is None else kept.states[PERSONAL]


class LocalMrMtl(_Own[MrMtl]):
    """The model goes on from the site's own weights."""

    def remember(self, run: RunConfig, round_: int, kept: Kept | None) -> None:
        """See the class."""
        super().remember(run, round_, kept)
        _put(self.own, self.model)

    def steer(self) -> None:
        """Adds lambda (w - sent), the gradient of lambda / 2 ||w - sent||^2."""
        _pull(self.model, self.sent, self.settings)

    def kept(self) -> Mapping[str, State]:
        """What is sent."""
        return {PERSONAL: _copied(weights_of(self.model))}


class LocalDitto(_Own[Ditto]):
    """Trains the model as FedAvg does, and then its own."""

    def __init__(self, settings: Ditto, model: nn.Module, down: Mapping[str, State]) -> None:
        super().__init__(settings, model, down)
        # Before private steps put anything on the model.
        self._second = _PulledApart(settings, copy.deepcopy(model), self.sent)

    def remember(self, run: RunConfig, round_: int, kept: Kept | None) -> None:
        """See the class."""
        super().remember(run, round_, kept)
        _put(self.own, self._second.model)

    def apart(self) -> Local[Any]:
        """The site's own model, with the pull to what was sent."""
        return self._second

    def kept(self) -> Mapping[str, State]:
        """The site's own model."""
        return {PERSONAL: _copied(weights_of(self._second.model))}


class _PulledApart(Local[Ditto]):
    """A round of Ditto's second model."""

    def __init__(self, settings: Ditto, model: nn.Module, towards: Mapping[str, Tensor]) -> None:
        super().__init__(settings, model, {})
        self._towards = towards

    def steer(self) -> None:
        """Adds lambda (v - sent)."""
        _pull(self.model, self._towards, self.settings)


class LocalFedBN(_Own[FedBN]):
    """Trains the shared weights with the site's own normalisations."""

    def __init__(self, settings: FedBN, model: nn.Module, down: Mapping[str, State]) -> None:
        super().__init__(settings, model, down)
        self._norms = norms_of(model)

    def remember(self, run: RunConfig, round_: int, kept: Kept | None) -> None:
        """See the class."""
        super().remember(run, round_, kept)
        _put(self.own, self.model)

    def weights(self) -> State:
        """Those of normalisations as they were sent: nothing of the site's own leaves."""
        return {name: self.sent[name] if name in self._norms else one for name, one in super().weights().items()}

    def kept(self) -> Mapping[str, State]:
        """The site's normalisations."""
        weights = weights_of(self.model)
        return {PERSONAL: _copied({name: weights[name] for name in self._norms})}


def _pull(model: nn.Module, towards: Mapping[str, Tensor], settings: Pulled) -> None:
    for name, weights in model.named_parameters():
        if weights.grad is not None:
            weights.grad.add_(weights.detach() - towards[name], alpha=settings.pull)


def _put(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Into the model's weights of these names."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, one in state.items():
            weights[name].copy_(one)


def _copied(state: Mapping[str, Tensor]) -> State:
    return {name: one.detach().cpu().clone() for name, one in state.items()}


__all__ = ["LocalDitto", "LocalFedBN", "LocalMrMtl"]
