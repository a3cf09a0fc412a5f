"""Federations on one machine, for researchers. Imports everything; nothing imports it.

For programs and notebooks: `from simulations import load, simulate, compare` (simulations/api/functions.py). Nothing
heavy is loaded before the first of them is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulations.api.functions import compare, load, simulate


def __getattr__(name: str) -> Any:
    if name in __all__:
        from simulations.api import functions  # noqa: PLC0415 - settings tables, for who only wants a sub-package

        return getattr(functions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["compare", "load", "simulate"]
