"""How updates become a model: the half of each strategy that both sides share, one file each, one line in `STRATEGIES`.

The first is what a run without [strategy] means. The other halves are in `client.train.strategies`, for those that do
more than train, and in `server.federation.strategies`. Imports `common.document.table`.
"""

from common.document.choice import OneOf
from common.strategies.adaptive import FedAdagrad, FedAdam, FedYogi
from common.strategies.fedavg import FedAvg
from common.strategies.fedavgm import FedAvgM
from common.strategies.feddyn import FedDyn
from common.strategies.fednova import FedNova
from common.strategies.fedpid import FedPID
from common.strategies.fedprox import FedProx
from common.strategies.norm_clipping import NormClipping
from common.strategies.personal import PERSONAL, Ditto, FedBN, MrMtl
from common.strategies.robust import Bulyan, FedMedian, MultiKrum, TrimmedMean
from common.strategies.scaffold import Scaffold
from common.strategies.strategy import WEIGHTS, Asked, Strategy, of_personal

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
    Ditto,
    MrMtl,
    FedBN,
    FedPID,
    FedNova,
)  # fmt: skip
# Of the [strategy] table.
STRATEGY_CHOICE = OneOf("kind", STRATEGIES)

__all__ = ["PERSONAL", "STRATEGIES", "STRATEGY_CHOICE", "WEIGHTS", "Asked", "Strategy", "of_personal"]
