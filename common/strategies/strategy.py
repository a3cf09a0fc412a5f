"""What a strategy is to both sides: its settings, and the parts that travel beside the model's weights.

Each part has the tensors of the model, by name, shape and type. Codec, gate, checks and checkpoints loop over the parts
and learn no name: which part holds the model the strategy says.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from common.document.table import Table

# The part of requests and updates that holds the model, where a strategy does not name it otherwise.
WEIGHTS = "weights"

Needs: TypeAlias = Literal["sum", "updates"]
Rate = Annotated[float, Field(gt=0, le=10)]  # of the coordinator's step
Hostile = Annotated[int, Field(ge=0, le=1000)]


@dataclass(frozen=True)
class Asked:
    """The settings of a run that a strategy may not work with."""

    optimizer: str  # of [training]
    learning_rate: float
    quorum: int  # of [federation]
    private: bool  # has [privacy]
    chooses: bool  # validation scores decide which model is kept, or when the run stops
    validated: float  # share of patients held out for validation
    normalised: bool  # the network has normalisations with weights
    timed: bool = False  # a site stops a round by time: sites make unlike numbers of steps
    sampled: bool = False  # a round asks some of the sites


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
    # Whether what it keeps is a model of the site's own, which stays there after the run until a person removes it; its
    # headline score goes beside that of the shared model, in runs without privacy.
    PERSONAL: ClassVar[bool] = False
    # Whether that is a second model, trained by plain steps beside the update, also in a private run.
    APART: ClassVar[bool] = False
    # Whether a site goes on from weights of its own, and not from those that were sent.
    OWN_START: ClassVar[bool] = False
    # Whether weights and biases of normalisations stay at the site: an update carries those that were sent.
    NORMS_STAY: ClassVar[bool] = False
    # Whether the server half goes by the validation scores of each round; such a one is refused with [privacy].
    BY_SCORES: ClassVar[bool] = False
    # Whether the server half divides what a site moved by the work that its steps are.
    BY_WORK: ClassVar[bool] = False
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

    def misfit(self, asked: Asked) -> str | None:
        """Why it does not work with these settings of a run, to be read after its name; None: it does."""
        if asked.quorum >= self.fewest:
            return None
        return f"as it is set needs {self.fewest} updates in every round: set federation.quorum = {self.fewest} or more"

    @property
    def fewest(self) -> int:
        """Updates without which it cannot make a model; a run's quorum is no smaller."""
        return self.FEWEST


def of_personal(score: str) -> str:
    """The name under which a score of a site's personal model leaves, beside that of the shared one."""
    return f"personal-{score}"


__all__ = ["WEIGHTS", "Asked", "Hostile", "Needs", "Rate", "Strategy", "of_personal"]
