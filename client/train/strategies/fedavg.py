"""FedAvg at a site: plain training."""

from client.train.strategies.local import Local
from common.strategies.fedavg import FedAvg


class LocalFedAvg(Local[FedAvg]):
    """Nothing beside the weights."""


__all__ = ["LocalFedAvg"]
