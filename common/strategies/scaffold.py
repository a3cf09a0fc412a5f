"""SCAFFOLD: each site corrects the direction in which it drifts (Karimireddy et al., ICML 2020)."""

from typing import ClassVar, Literal

from common.strategies.strategy import Asked, Strategy


class Scaffold(Strategy):
    """A step's gradient gets c - c_i, worked out at the site from what it sent last and the model that came of it.

    So nothing travels beside the weights. The corrections cancel out where all sites take part in every round.
    """

    kind: Literal["scaffold"] = "scaffold"
    STEERS: ClassVar[bool] = True
    REMEMBERS: ClassVar[bool] = True

    def misfit(self, asked: Asked) -> str | None:
        """A move over its rates is a mean gradient only where steps are linear."""
        if asked.optimizer != "sgd":
            return 'is worked out for plain steps: set training.optimizer = "sgd"'
        if asked.timed:
            return (
                "is worked out for as many steps at each site, which training.local-seconds does not give: take that "
                "out, or use fednova or fedprox"
            )
        if asked.sampled:
            return (
                "works out its corrections from the model that came of a site's last update, which with "
                "federation.sites-per-round is not the next one that it sees: take that out, or use fedavg or fedprox"
            )
        return super().misfit(asked)


__all__ = ["Scaffold"]
