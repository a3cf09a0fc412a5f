"""What a strategy is to both sides: its settings, and the parts that travel beside the model's weights.

Each part has the tensors of the model, by name, shape and type. Codec, gate, checks and checkpoints loop over the parts
and learn no name: which part holds the model the strategy says.
"""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from common.document.table import Table

# The part of requests and updates that holds the model, where a strategy does not name it otherwise.
WEIGHTS = "weights"

Needs: TypeAlias = Literal["sum", "updates"]
Rate = Annotated[float, Field(gt=0, le=10)]  # of the coordinator's step
Hostile = Annotated[int, Field(ge=0, le=1000)]


class Strategy(Table):
    """The [strategy] table of a run: how sites' updates become the next model."""

    kind: str

    # The part of every request and update that holds the model's weights.
    MODEL: ClassVar[str] = WEIGHTS
    # Parts beside it: of a training request, and of an update.
    DOWN: ClassVar[tuple[str, ...]] = ()
    UP: ClassVar[tuple[str, ...]] = ()
    # Whether the client half changes the gradients of training steps; in a private run after the noise.
    STEERS: ClassVar[bool] = False
    # Whether the client half keeps something at the site from round to round; it is made of what was sent and received.
    REMEMBERS: ClassVar[bool] = False
    # What the server half needs: only the (weighted) sum of the updates, or each by itself.
    NEEDS: ClassVar[Needs] = "sum"
    # What the server half holds from round to round beside what goes down; it never travels.
    KEEPS: ClassVar[tuple[str, ...]] = ()
    # Updates without which it cannot make a model.
    FEWEST: ClassVar[int] = 1

    @property
    def down(self) -> tuple[str, ...]:
        """All parts of a training request; a request for scores carries the weights alone."""
        return (self.MODEL, *self.DOWN)

    @property
    def up(self) -> tuple[str, ...]:
        """All parts of an update."""
        return (self.MODEL, *self.UP)

    def misfit(self, optimizer: str, quorum: int) -> str | None:
        """Why it does not work with these settings of a run, to be read after its name; None: it does.

        Args:
            optimizer: of [training].
            quorum: of [federation].
        """
        if quorum >= self.fewest:
            return None
        return f"as it is set needs {self.fewest} updates in every round: set federation.quorum = {self.fewest} or more"

    @property
    def fewest(self) -> int:
        """Updates without which it cannot make a model; a run's quorum is no smaller."""
        return self.FEWEST


__all__ = ["WEIGHTS", "Hostile", "Needs", "Rate", "Strategy"]
