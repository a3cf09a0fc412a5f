"""A site's move from the model that it was sent, times a factor."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from simulations.faults.fault import Fault, State


class Scaled(Fault):
    """Below 0 it goes where the loss is larger: -1 is the sign flip; 10 replaces the model of a federation of ten."""

    kind: Literal["scaled"] = "scaled"
    factor: Annotated[float, Field(ge=-1e6, le=1e6)]

    def sent_instead(self, start: State, trained: Mapping[str, State]) -> Mapping[str, State]:
        """Each for itself."""
        return {
            site: {name: start[name] + self.factor * (weights - start[name]) for name, weights in state.items()}
            for site, state in trained.items()
        }


__all__ = ["Scaled"]
