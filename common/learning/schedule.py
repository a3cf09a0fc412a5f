"""The learning rate of a run, step by step: constant, or by a cosine or a power from `learning-rate` down to 1 % of it.

Sites train by it, and the coordinator derives from it how far an update can lie from the model that was sent.
"""

import math
from collections.abc import Sequence

from common.config import RunConfig

_LAST_RATE = 0.01  # of the learning rate, where the schedule ends
_POWER = 0.9  # as in nnU-Net


def learning_rate(run: RunConfig, step: int) -> float:
    """Learning rate of the whole run's step, counted from 0."""
    training = run.training
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return training.learning_rate
    steps = run.federation.rounds * training.local_steps - training.warmup_steps
    passed = (step - training.warmup_steps) * training.cycles
    passed -= steps * min(passed // steps, training.cycles - 1)
    if training.schedule == "cosine":
        share = (1 + math.cos(math.pi * passed / steps)) / 2
    else:
        share = (1 - passed / steps) ** _POWER
    return training.learning_rate * (_LAST_RATE + (1 - _LAST_RATE) * share)


def rates_of_round(run: RunConfig, round_: int, made: int | None = None) -> list[float]:
    """Learning rates of a round's steps, of the first `made` where a site made no more; rounds count from 1."""
    steps = run.training.local_steps
    return [learning_rate(run, (round_ - 1) * steps + step) for step in range(steps if made is None else made)]


def carried(rates: Sequence[float], momentum: float, *, nesterov: bool = False) -> list[float]:
    """Sum of the rates that a step's gradient is multiplied with until the round ends, for each step."""
    found, following = [], 0.0
    for rate in reversed(rates):
        following = rate + momentum * following
        # Nesterov's step is the gradient and the momentum times what it has become with it.
        found.append(rate + momentum * following if nesterov else following)
    return found[::-1]


__all__ = ["carried", "learning_rate", "rates_of_round"]
