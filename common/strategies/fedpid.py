"""FedPID: sites count by how much the model that all share has gained on their validation patients, beside their size.

Maechler et al., "FedPID: An Aggregation Method for Federated Learning", arXiv 2411.02152, which won FeTS 2024; after
FedPIDAvg (arXiv 2304.12117), whose shares are the defaults. The paper takes costs; a cost here is 1 - the headline
score of a site's validation patients, as far as its policy lets that go.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.strategies.strategy import Asked, Strategy

_Share = Annotated[float, Field(ge=0, le=1)]


class FedPID(Strategy):
    """FedAvg with weights alpha size + beta last gain + gamma gain since the first round, as shares of all sites."""

    kind: Literal["fedpid"] = "fedpid"
    BY_SCORES: ClassVar[bool] = True
    # Of the patients in training, or alike, as weighting says.
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.45
    # Of what the score has gained from the evaluation before the last to the last.
    beta: _Share = 0.45
    # Of what it has gained since the first.
    gamma: _Share = 0.1

    def misfit(self, asked: Asked) -> str | None:
        """It goes by scores as they are; noised ones are few, and say more of the noise than of the site."""
        if asked.private:
            return (
                "weights sites by their validation scores in each round, and with [privacy] these are noised, charged "
                "to the held-out patients and few: use fedavg, or another strategy, or train without [privacy]"
            )
        if not asked.validated:
            return "weights sites by their validation scores: data.validation-fraction must be above 0"
        return super().misfit(asked)


__all__ = ["FedPID"]
