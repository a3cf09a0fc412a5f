"""A table of several kinds: one of its own keys says which it is, and only that kind's keys are known in it.

    choice = OneOf("architecture", NETWORKS)
    model: Annotated[Network, choice] = choice.default()

The first kind is what a table without that key means, so that a document from before there was a choice reads as ever.
In a list of tables there is none before the first one is written, and each says its kind:

    steps: tuple[Annotated[Step, OneOf("kind", STEPS, always_said=True)], ...] = ()
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class OneOf:
    """The kinds that a field may have; each has the key, with its own name as the only value and default.

    always_said: whether a table without the key is refused.
    """

    key: str
    members: Sequence[type[BaseModel]]
    always_said: bool = False

    @property
    def by_name(self) -> dict[str, type[BaseModel]]:
        """The kinds by their names."""
        return {str(member.model_fields[self.key].default): member for member in self.members}

    @property
    def first(self) -> str:
        """The name of the kind that a table without the key is."""
        return next(iter(self.by_name))

    def default(self) -> Any:
        """The first kind, with its own defaults."""
        return self.members[0]()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """What pydantic asks an annotation for."""
        choices = {name: handler.generate_schema(member) for name, member in self.by_name.items()}
        return core_schema.tagged_union_schema(choices, discriminator=self._name_of)

    def _name_of(self, value: Any) -> str | None:
        unsaid = None if self.always_said else self.first
        if isinstance(value, BaseModel):
            return str(getattr(value, self.key, self.first))
        name = value.get(self.key, unsaid) if isinstance(value, dict) else unsaid
        return None if name is None else str(name)


def choice_of(annotation: Any, metadata: Sequence[Any] = ()) -> OneOf | None:
    """The choice in a field's type, an optional one included; None where there is none."""
    for one in (*metadata, *getattr(annotation, "__metadata__", ())):
        if isinstance(one, OneOf):
            return one
    return next((found for part in getattr(annotation, "__args__", ()) if (found := choice_of(part))), None)


__all__ = ["OneOf", "choice_of"]
