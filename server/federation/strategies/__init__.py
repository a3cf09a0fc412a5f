"""The server half of each strategy: one file each, and one line in `AGGREGATIONS`.

Imports `common.strategies`, `server.federation.strategies.weighing` and torch.
"""

from collections.abc import Mapping
from typing import Any

from common.config import RunConfig
from server.federation.strategies.aggregation import Aggregation, Mean, State
from server.federation.strategies.fedavg import FedAvgMean
from server.federation.strategies.moving_average import MovingAverage

AGGREGATIONS: Mapping[str, type[Mean[Any]]] = {
    "fedavg": FedAvgMean,
}


def aggregation_of(run: RunConfig) -> Aggregation:
    """The server half of the run's strategy; the moving average over it, where the run asks for one."""
    chosen = AGGREGATIONS[run.strategy.kind](run.strategy)
    decay = run.federation.averaging
    return MovingAverage(chosen, decay) if decay else chosen


__all__ = ["AGGREGATIONS", "Aggregation", "State", "aggregation_of"]
