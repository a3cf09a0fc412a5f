"""How updates become a model: the half of each strategy that both sides share, one file each, one line in `STRATEGIES`.

The first is what a run without [strategy] means. The other halves have the same name in `client.train.strategies` and
`server.federation.strategies`. Imports `common.document.table`.
"""

from common.document.choice import OneOf
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import WEIGHTS, Strategy

STRATEGIES: tuple[type[Strategy], ...] = (
    FedAvg,
)  # fmt: skip
# Of the [strategy] table.
STRATEGY_CHOICE = OneOf("kind", STRATEGIES)

__all__ = ["STRATEGIES", "STRATEGY_CHOICE", "WEIGHTS", "Strategy"]
