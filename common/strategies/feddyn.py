"""FedDyn: each site's loss is regularised so that all settle where the whole does (Acar et al., ICLR 2021)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Asked, Strategy

CORRECTION = "correction"


class FedDyn(Strategy):
    """A site adds -<h_i, w> + alpha / 2 ||w - sent||^2 to its loss, h_i the sum of -alpha times its earlier moves."""

    kind: Literal["feddyn"] = "feddyn"
    alpha: Annotated[float, Field(gt=0, le=100)] = 0.1
    STEERS: ClassVar[bool] = True
    REMEMBERS: ClassVar[bool] = True
    KEEPS: ClassVar[tuple[str, ...]] = (CORRECTION,)

    def misfit(self, asked: Asked) -> str | None:
        """A move stands for the gradient where it ends only if the site's loss was gone down for long enough."""
        if asked.timed:
            return (
                "takes each site to the end of its own loss, where training.local-seconds stops slow sites before: "
                "take that out, or use fednova or fedprox"
            )
        if asked.sampled:
            return (
                "adds up how far all sites have drifted, and with federation.sites-per-round a round sees a part of "
                "them: take that out, or use fedavg or fedprox"
            )
        return super().misfit(asked)


__all__ = ["CORRECTION", "FedDyn"]
