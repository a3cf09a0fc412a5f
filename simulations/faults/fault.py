"""What a fault is: some sites, and what they send in place of the model that they trained."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from common.document.table import Name, Table

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = Mapping[str, "Tensor"]


class Fault(Table):
    """One table of [[compare.faults]]."""

    kind: str
    # What its column of a table is called.
    name: Name
    # Who sends something else; they act together.
    sites: Annotated[tuple[Name, ...], Field(min_length=1)]

    @abstractmethod
    def sent_instead(self, start: State, trained: Mapping[str, State]) -> Mapping[str, State]:
        """What the sites at fault send in one round.

        Args:
            start: the model that they were sent.
            trained: site -> the model that it trained from there; of the sites at fault alone.
        """


__all__ = ["Fault", "State"]
