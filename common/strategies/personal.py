"""A model of each site's own beside the one that all share: it stays at the site, and is used there.

    ditto    a second model, pulled to the one that was sent (Li et al., ICML 2021, algorithm 1)
    mr-mtl   the site's own updates, pulled to their mean, "mean-regularised multi-task" (Liu et al., NeurIPS 2022)
    fedbn    the model that all share, with the site's own normalisations (Li et al., ICLR 2021)

In a private run they differ by what their personal model has seen. Those of mr-mtl and fedbn are made by private steps,
so what they bring into later rounds has had its noise. Ditto's is made by plain steps, after the update: nothing that
leaves depends on it, neither weights nor scores.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Asked, Strategy

# What is kept of it: tensors that take the place of those of the same names in the model that all share.
PERSONAL = "personal"


class Pulled(Strategy):
    """Steps that minimise the site's loss + lambda / 2 ||own - shared||^2."""

    # 0: each site by itself. The larger, the nearer to the model that all share.
    pull: Annotated[float, Field(ge=0, le=1000, alias="lambda")] = 0.1
    REMEMBERS: ClassVar[bool] = True
    PERSONAL: ClassVar[bool] = True

    def misfit(self, asked: Asked) -> str | None:
        """A step that jumps beyond what pulls it ends nowhere."""
        if asked.optimizer == "sgd" and self.pull * asked.learning_rate > 1:
            return (
                f"pulls each step by lambda x learning-rate = {self.pull * asked.learning_rate:g} of the way, which is "
                "more than all of it: lower strategy.lambda or training.learning-rate until it is 1 or less"
            )
        return super().misfit(asked)


class Ditto(Pulled):
    """Ditto: beside FedAvg each site trains a model of its own, pulled to the shared one (Li et al., ICML 2021)."""

    kind: Literal["ditto"] = "ditto"
    APART: ClassVar[bool] = True


class MrMtl(Pulled):
    """MR-MTL: each site goes on from its own last update, pulled to the mean of all (Liu et al., NeurIPS 2022)."""

    kind: Literal["mr-mtl"] = "mr-mtl"
    STEERS: ClassVar[bool] = True
    OWN_START: ClassVar[bool] = True


class FedBN(Strategy):
    """FedBN: weights and biases of normalisations stay at the site, the others are averaged (Li et al., ICLR 2021)."""

    kind: Literal["fedbn"] = "fedbn"
    REMEMBERS: ClassVar[bool] = True
    PERSONAL: ClassVar[bool] = True
    NORMS_STAY: ClassVar[bool] = True

    def misfit(self, asked: Asked) -> str | None:
        """The shared model keeps the normalisations that it began with; no site uses it so."""
        if not asked.normalised:
            return "keeps normalisations at the site, and the network has none: set norm in [model], or another network"
        if asked.chooses:
            return (
                "shares a model whose normalisations are nobody's, and federation.keep = 'best' and patience go by its "
                "scores: leave them out"
            )
        return super().misfit(asked)


__all__ = ["PERSONAL", "Ditto", "FedBN", "MrMtl", "Pulled"]
