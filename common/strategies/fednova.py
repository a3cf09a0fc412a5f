"""FedNova: sites that make unlike numbers of steps pull alike (Wang et al., NeurIPS 2020).

The mean of FedAvg counts a site that makes ten times the steps nearly ten times, and settles where the sum of the
losses, each so weighted, has its minimum: "objective inconsistency". Here a site's move is divided by the work a that
its steps are, and the mean of that is taken as far as the mean of the works:

    x' = x + (sum_i p_i a_i) sum_i p_i (y_i - x) / a_i

a is what a gradient of 1 in every step moves, which is the paper's norm of the accumulation vector with the rates in it
(`common.learning.schedule.carried`): for plain steps of one rate their number times that. AdamW has no such vector, and
there it is the sum of the rates.
"""

from typing import ClassVar, Literal

from common.strategies.strategy import Strategy


class FedNova(Strategy):
    """FedAvg of moves per work, for sites that make unlike numbers of steps: see training.local-seconds."""

    kind: Literal["fednova"] = "fednova"
    BY_WORK: ClassVar[bool] = True


__all__ = ["FedNova"]
