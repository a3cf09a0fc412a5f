"""How updates become a model: the half of each strategy that both sides share, one file each, one line in `STRATEGIES`.

The first is what a run without [strategy] means. The other halves are in `client.train.strategies`, for those that do
more than train, and in `server.federation.strategies`. Imports `common.document.table`.
"""

from common.document.choice import OneOf
from common.strategies.adaptive import FedAdagrad, FedAdam, FedYogi
from common.strategies.bulyan import Bulyan
from common.strategies.fedavg import FedAvg
from common.strategies.fedavgm import FedAvgM
from common.strategies.feddyn import FedDyn
from common.strategies.fedmedian import FedMedian
from common.strategies.fedprox import FedProx
from common.strategies.multi_krum import MultiKrum
from common.strategies.norm_clipping import NormClipping
from common.strategies.scaffold import Scaffold
from common.strategies.strategy import WEIGHTS, Strategy
from common.strategies.trimmed_mean import TrimmedMean

STRATEGIES: tuple[type[Strategy], ...] = (
    FedAvg,
    FedProx,
    Scaffold,
    FedDyn,
    FedAvgM,
    FedAdam,
    FedYogi,
    FedAdagrad,
    NormClipping,
    FedMedian,
    TrimmedMean,
    MultiKrum,
    Bulyan,
)  # fmt: skip
# Of the [strategy] table.
STRATEGY_CHOICE = OneOf("kind", STRATEGIES)

__all__ = ["STRATEGIES", "STRATEGY_CHOICE", "WEIGHTS", "Strategy"]
