"""The [compare] table of a scenario: which models a comparison trains beside the run's own."""

from typing import Annotated, Self

from pydantic import model_validator

from common.config import Count, Positive, PrivacyConfig, RunConfig, Table, TrainingConfig, validate
from common.models import NETWORK_CHOICE, Network
from common.strategies import STRATEGY_CHOICE, Strategy
from simulations.faults import FAULT_CHOICE, Fault


class CompareConfig(Table):
    """What `compare` needs beyond the run."""

    # None: no private column.
    privacy: PrivacyConfig | None = None
    # A private column for each of these, instead of for the target-epsilon of [compare.privacy] alone.
    epsilons: tuple[Positive, ...] = ()
    # The learning rate of each of them: more noise wants smaller steps. Empty: that of the training.
    learning_rates: tuple[Positive, ...] = ()
    # Of the private columns, which want fewer and larger steps and plain SGD. None: as in the run.
    training: TrainingConfig | None = None
    rounds: Count | None = None
    # A column for each site by itself.
    alone: bool = True
    # A column for the federation without each of its sites.
    leave_one_out: bool = False
    # Private columns also for one hospital that holds the patients of all.
    private_pooled: bool = False
    # What `compare --networks` compares: tables as [run.model], each in place of it.
    networks: tuple[Annotated[Network, NETWORK_CHOICE], ...] = ()
    # What `compare --strategies` compares: tables as [run.strategy], each in place of it.
    strategies: tuple[Annotated[Strategy, STRATEGY_CHOICE], ...] = ()
    # With which of them: each strategy is trained without a fault, and once more with each of these.
    faults: tuple[Annotated[Fault, FAULT_CHOICE], ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.learning_rates and len(self.learning_rates) != len(self.epsilons):
            raise ValueError("learning-rates needs one entry for each of epsilons")
        return self

    def private_runs(self, run: RunConfig) -> tuple[RunConfig, ...]:
        """The run with privacy, for each private column."""
        if self.privacy is None:
            return ()
        training, rounds = self.training or run.training, self.rounds or run.federation.rounds
        ends = {"rounds": rounds, "evaluate_every": rounds, "weighting": None, "keep": "last", "patience": None}
        federation = run.federation.model_copy(update={**ends, "statistics": False})
        epsilons = self.epsilons or (self.privacy.target_epsilon,)
        rates = self.learning_rates or (training.learning_rate,) * len(epsilons)
        changes = [
            {
                "training": training.model_copy(update={"learning_rate": rate}),
                "federation": federation,
                "privacy": self.privacy.model_copy(update={"target_epsilon": epsilon}),
            }
            for epsilon, rate in zip(epsilons, rates, strict=True)
        ]
        # Built anew, so that it is checked as a whole.
        return tuple(
            validate(RunConfig, run.model_copy(update=one).model_dump(by_alias=True), "[compare]") for one in changes
        )


__all__ = ["CompareConfig"]
