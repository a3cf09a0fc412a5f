"""Sites that agree: all send the same model, a little off what an honest site could send.

After Baruch et al., "A Little Is Enough" (NeurIPS 2019): the mean of honest models less some standard deviations,
weight by weight, lies close to honest ones and yet drags the average. Who attacks knows only the models of the sites at
fault, and takes their spread for that of all.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from simulations.faults.fault import Fault, State


class LittleIsEnough(Fault):
    """Two sites at least: one has no spread, and sends what it trained."""

    kind: Literal["little-is-enough"] = "little-is-enough"
    sites: Annotated[tuple[str, ...], Field(min_length=2)]
    deviations: Annotated[float, Field(ge=-1e3, le=1e3)] = 1.5

    def sent_instead(self, start: State, trained: Mapping[str, State]) -> Mapping[str, State]:
        """The same for all."""
        import torch  # noqa: PLC0415 - a scenario is read without it

        stacked = {name: torch.stack([state[name] for state in trained.values()]) for name in start}
        lie = {name: models.mean(0) - self.deviations * models.std(0, correction=0) for name, models in stacked.items()}
        return dict.fromkeys(trained, lie)


__all__ = ["LittleIsEnough"]
