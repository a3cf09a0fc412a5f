"""[federation] of run.toml: how many rounds, who must be in one, and what is asked beside the updates."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.document.formats import Since
from common.document.table import Count, Positive, Table

# So that the statistics of all classes fit into what one update may tell, by names that may be told.
_MOST_CLASSES, _LONGEST_NAME = 60, 40


class FederationConfig(Table):
    """Rounds, and what counts as one."""

    rounds: Count
    # Fewest sites whose update must enter a round. Fewer: the run fails, it never pretends.
    quorum: Count = 2
    # So many sites are asked to train in a round, drawn anew for each by the run's seed. None: all are asked.
    sites_per_round: Annotated[Count | None, Since(2)] = None
    # None: "patients" without DP; with DP always "equal", because a count would leak.
    weighting: Literal["patients", "equal"] | None = None
    # A site that has not answered by then is left out of this round.
    round_timeout_s: Positive = 3600.0
    # How long to wait for the quorum to connect before the first round.
    join_timeout_s: Positive = 600.0
    # Evaluate the global model every so many rounds, and always after the last. None: after each round, and with DP
    # only after the last: there the sites add noise to their scores, and the more there are the more noise each has.
    evaluate_every: Count | None = None
    # An update whose distance from the global model (L2) exceeds this is refused.
    max_update_norm: Positive = 1000.0
    # How an update travels: float32 is the weights as they are. The others are what each weight moved, rounded to half
    # and to a quarter of the bytes; a site keeps what rounding loses, and adds it to its next update.
    update_precision: Annotated[Literal["float32", "bfloat16", "int8"], Since(2)] = "float32"
    # What is evaluated and kept is an exponential moving average of the rounds' models; the rounds themselves go on
    # from the last one. 0: no average. It costs no privacy, and smooths what the noise does to single rounds.
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Which round's model is kept: the last, or that of the best validation scores.
    keep: Annotated[Literal["last", "best"], Since(2)] = "last"
    # Evaluations in a row whose validation score is no better than the best before, after which a run stops.
    patience: Annotated[Count | None, Since(2)] = None
    # Each site also trains a model alone, by as many steps, to see what it gains; twice the training.
    cross_site: Annotated[bool, Since(2)] = False
    # Each site also tells statistics of its training patients' labels and intensities: what its policy names, without
    # noise. Not with [privacy].
    statistics: Annotated[bool, Since(2)] = False

    @model_validator(mode="after")
    def _asks_enough(self) -> Self:
        if self.sites_per_round is None:
            return self
        if self.sites_per_round < self.quorum:
            raise ValueError(
                f"sites-per-round {self.sites_per_round} asks fewer sites than quorum {self.quorum} wants updates: ask "
                "more, and some more than the quorum, as a site may be away; or lower quorum"
            )
        if self.cross_site:
            raise ValueError(
                "cross-site compares with a model that a site trains alone, by as many steps as it was asked for, and "
                "with sites-per-round that is a part of the run's: what a site gains would be told too large. Take one "
                "of them out"
            )
        return self

    def refuse(self, classes: Sequence[str]) -> str | None:
        """Why these classes cannot be told of, and what would do; None: they can, or need not."""
        if self.statistics and (len(classes) > _MOST_CLASSES or any(len(one) > _LONGEST_NAME for one in classes)):
            return (
                f"federation.statistics tells of each class: of {_MOST_CLASSES} at most, with names of up to "
                f"{_LONGEST_NAME} characters. Name fewer or shorter data.classes, or take it out"
            )
        return None


__all__ = ["FederationConfig"]
