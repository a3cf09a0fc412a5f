"""FedAvg at the coordinator: the mean of the models is the next model."""

from common.strategies.fedavg import FedAvg
from server.federation.strategies.aggregation import Mean


class FedAvgMean(Mean[FedAvg]):
    """What `Mean` does."""


__all__ = ["FedAvgMean"]
