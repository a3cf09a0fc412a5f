"""SCAFFOLD at a site, from its own last update and the model that came of it.

With c_i the mean gradient of the site's last round (option II of the paper), c the mean of all, y_i what it sent, x
what it was sent and S the sum of its rates, c_i' = c_i - c + (x - y_i) / S, and c' = (x - x') / S: so the correction
d = c - c_i follows from what the site knows, d' = d + (y_i - x') / S. With momentum S is what a gradient of 1 in every
step moves. Where the site missed rounds, what it receives now stands for the model that came of its last update.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from client.train.strategies.local import Kept, Local, State
from common.config import RunConfig
from common.learning.schedule import carried, rates_of_round
from common.strategies.scaffold import Scaffold

_SENT, _CORRECTION = "sent", "correction"


class LocalScaffold(Local[Scaffold]):
    """Adds the correction to every gradient: zero in the site's first round."""

    _correction: Mapping[str, Tensor] = {}

    def remember(self, run: RunConfig, round_: int, kept: Kept | None) -> None:
        """See the module; the rates are those of the last round here."""
        received = {name: one.detach() for name, one in self.model.named_parameters()}
        if kept is None:
            self._correction = {name: torch.zeros_like(one) for name, one in received.items()}
            return
        training = run.training
        rates = rates_of_round(run, kept.round)
        total = sum(carried(rates, training.momentum, nesterov=training.nesterov))
        before, sent = kept.states[_CORRECTION], kept.states[_SENT]
        self._correction = {
            name: before[name].to(one.device) + (sent[name].to(one.device) - one) / total
            for name, one in received.items()
        }

    def steer(self) -> None:
        """Adds it."""
        for name, weights in self.model.named_parameters():
            if weights.grad is not None:
                weights.grad.add_(self._correction[name])

    def kept(self) -> Mapping[str, State]:
        """What is sent, and the correction of this round."""
        sent = {name: one.detach().cpu() for name, one in self.model.named_parameters()}
        return {_SENT: sent, _CORRECTION: {name: one.cpu() for name, one in self._correction.items()}}


__all__ = ["LocalScaffold"]
