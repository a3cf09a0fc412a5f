"""The server half of each strategy, one line each in `AGGREGATIONS`: those that belong together share a file.

Imports `common.strategies`, `server.federation.strategies.weighing` and torch.
"""

from collections.abc import Mapping
from typing import Any

from common.config import RunConfig
from server.federation.strategies.adaptive import FedAdagradMean, FedAdamMean, FedYogiMean
from server.federation.strategies.aggregation import Aggregation, Mean, Server, State
from server.federation.strategies.fedavgm import FedAvgMMean
from server.federation.strategies.feddyn import FedDynMean
from server.federation.strategies.fednova import MeanOfMovesPerWork
from server.federation.strategies.fedpid import MeanByGain
from server.federation.strategies.moving_average import MovingAverage
from server.federation.strategies.norm_clipping import MeanOfClipped
from server.federation.strategies.robust import BulyanOfEach, MeanOfMiddle, MeanOfNearest, MedianOfEach

AGGREGATIONS: Mapping[str, type[Server[Any]]] = {
    "fedavg": Mean,
    "fedprox": Mean,
    "scaffold": Mean,
    "feddyn": FedDynMean,
    "fedavgm": FedAvgMMean,
    "fedadam": FedAdamMean,
    "fedyogi": FedYogiMean,
    "fedadagrad": FedAdagradMean,
    "norm-clipping": MeanOfClipped,
    "fedmedian": MedianOfEach,
    "trimmed-mean": MeanOfMiddle,
    "multi-krum": MeanOfNearest,
    "bulyan": BulyanOfEach,
    "ditto": Mean,
    "mr-mtl": Mean,
    "fedbn": Mean,
    "fedpid": MeanByGain,
    "fednova": MeanOfMovesPerWork,
}


def aggregation_of(run: RunConfig) -> Aggregation:
    """The server half of the run's strategy; the moving average over it, where the run asks for one."""
    chosen = AGGREGATIONS[run.strategy.kind](run.strategy)
    decay = run.federation.averaging
    return MovingAverage(chosen, decay) if decay else chosen


__all__ = ["AGGREGATIONS", "Aggregation", "State", "aggregation_of"]
