"""FedDyn: each site's loss is regularised so that all settle where the whole does (Acar et al., ICLR 2021)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Strategy

CORRECTION = "correction"


class FedDyn(Strategy):
    """A site adds -<h_i, w> + alpha / 2 ||w - sent||^2 to its loss, h_i the sum of -alpha times its earlier moves."""

    kind: Literal["feddyn"] = "feddyn"
    alpha: Annotated[float, Field(gt=0, le=100)] = 0.1
    STEERS: ClassVar[bool] = True
    REMEMBERS: ClassVar[bool] = True
    KEEPS: ClassVar[tuple[str, ...]] = (CORRECTION,)


__all__ = ["CORRECTION", "FedDyn"]
