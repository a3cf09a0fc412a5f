"""Where the sites of a simulation work: one file each, and one line in `BACKENDS`.

A backend opens a Flower Grid over site homes, and closes it; the sites run the same ClientApp as a hospital's worker.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

from flwr.serverapp import Grid

from client.site import Site
from common.config.rundocument import RunDocument
from common.errors import ConfigError
from simulations.backends import in_process

Backend: TypeAlias = Callable[[Sequence[Site], RunDocument], AbstractContextManager[Grid]]

# The first is what is used where nothing else is asked for.
BACKENDS: Mapping[str, Backend] = {
    "in-process": in_process.opened,
}
DEFAULT_BACKEND = next(iter(BACKENDS))


def opened(sites: Sequence[Site], document: RunDocument, backend: str | None = None) -> AbstractContextManager[Grid]:
    """The grid of a backend, for as long as it is used.

    Raises:
        ConfigError: there is no such backend.
    """
    try:
        return BACKENDS[backend or DEFAULT_BACKEND](sites, document)
    except KeyError as error:
        raise ConfigError(f"there is no backend {backend!r}. There is {', '.join(BACKENDS)}.") from error


__all__ = ["BACKENDS", "DEFAULT_BACKEND", "opened"]
