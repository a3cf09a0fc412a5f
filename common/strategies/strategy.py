"""What a strategy is to both sides: its settings, and the parts that travel beside the model's weights.

Each part has the tensors of the model, by name, shape and type. Codec, gate, checks and checkpoints loop over the parts
and learn no name: which part holds the model the strategy says.
"""

from typing import ClassVar, Literal

from common.document.table import Table

# The part of requests and updates that holds the model, where a strategy does not name it otherwise.
WEIGHTS = "weights"


class Strategy(Table):
    """The [strategy] table of a run: how sites' updates become the next model."""

    kind: str

    # The part of every request and update that holds the model's weights.
    MODEL: ClassVar[str] = WEIGHTS
    # Parts beside it: of a training request, and of an update.
    DOWN: ClassVar[tuple[str, ...]] = ()
    UP: ClassVar[tuple[str, ...]] = ()
    # Whether the client half changes the gradients of training steps.
    STEERS: ClassVar[bool] = False
    # What the server half needs: only the (weighted) sum of the updates, or each by itself.
    NEEDS: ClassVar[Literal["sum", "updates"]] = "sum"

    @property
    def down(self) -> tuple[str, ...]:
        """All parts of a training request; a request for scores carries the weights alone."""
        return (self.MODEL, *self.DOWN)

    @property
    def up(self) -> tuple[str, ...]:
        """All parts of an update."""
        return (self.MODEL, *self.UP)


__all__ = ["WEIGHTS", "Strategy"]
