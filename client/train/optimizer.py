"""The optimiser of a round, made anew for each, and its rate at a step of the run."""

import torch
from torch import nn

from common.config import RunConfig
from common.learning.schedule import learning_rate


def optimizer_of(model: nn.Module, run: RunConfig) -> torch.optim.Optimizer:
    """Of the weights that the run trains."""
    training = run.training
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            trained(model),
            training.learning_rate,
            training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.nesterov,
            fused=True,
        )
    return torch.optim.AdamW(trained(model), training.learning_rate, weight_decay=training.weight_decay, fused=True)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The weights that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_rate(optimizer: torch.optim.Optimizer, run: RunConfig, round_: int, step: int) -> None:
    """The rate of a round's step, from 0; who stopped earlier begins the next round at the same place as the others."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(run, (round_ - 1) * run.training.local_steps + step)


__all__ = ["optimizer_of", "set_rate", "trained"]
