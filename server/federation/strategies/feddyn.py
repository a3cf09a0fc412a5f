"""FedDyn at the coordinator: the mean, less what the sites have drifted in all (Acar et al., ICLR 2021)."""

from common.strategies.feddyn import CORRECTION, FedDyn
from server.federation.strategies.aggregation import Mean


class FedDynMean(Mean[FedDyn]):
    """Holds the mean of the sites' h_i beside the weights, as far as it sees them: of those that took part."""

    def finish(self, round_: int) -> None:
        """h - alpha times what the mean moved; the model is the mean - h / alpha."""
        mean, alpha, before = self.means()[self.model], self.settings.alpha, self.held[self.model]
        correction = {name: one - alpha * (mean[name] - before[name]) for name, one in self.held[CORRECTION].items()}
        self.held = {
            self.model: {name: one - correction[name] / alpha for name, one in mean.items()},
            CORRECTION: correction,
        }


__all__ = ["FedDynMean"]
