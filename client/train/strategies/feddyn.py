"""FedDyn at a site: a gradient of its own against the drift of all its rounds (Acar et al., ICLR 2021, algorithm 1)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from client.train.strategies.local import Kept, Local, State
from common.config import RunConfig
from common.strategies.feddyn import FedDyn

_DRIFT = "drift"


class LocalFedDyn(Local[FedDyn]):
    """Adds -h + alpha (w - sent) to a gradient; h is zero before the site's first round."""

    def __init__(self, settings: FedDyn, model: nn.Module, down: Mapping[str, State]) -> None:
        super().__init__(settings, model, down)
        self._sent = {name: one.detach().clone() for name, one in model.named_parameters()}
        self._drift: Mapping[str, Tensor] = {name: torch.zeros_like(one) for name, one in self._sent.items()}

    def remember(self, run: RunConfig, round_: int, kept: Kept | None) -> None:
        """Of whichever round the site took part in last."""
        if kept is not None:
            self._drift = {name: kept.states[_DRIFT][name].to(one.device) for name, one in self._sent.items()}

    def steer(self) -> None:
        """See the class."""
        for name, weights in self.model.named_parameters():
            if weights.grad is not None:
                weights.grad.add_(weights.detach() - self._sent[name], alpha=self.settings.alpha)
                weights.grad.sub_(self._drift[name])

    def kept(self) -> Mapping[str, State]:
        """h - alpha times what the round moved."""
        return {
            _DRIFT: {
                name: (self._drift[name] - self.settings.alpha * (one.detach() - self._sent[name])).cpu()
                for name, one in self.model.named_parameters()
            }
        }


__all__ = ["LocalFedDyn"]
