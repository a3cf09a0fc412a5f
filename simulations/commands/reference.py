"""wardround-sim reference: every key of every document.

Heavy modules are imported inside the command: see common/console/cli.py.
"""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console.cli import JsonFlag, say, show_json, show_table
from common.errors import ConfigError
from common.system.files import write_atomically

if TYPE_CHECKING:
    from simulations.commands import settings


def reference(
    beginning: Annotated[str, typer.Argument(metavar="[KEY]", help="A key or table, such as training.schedule.")] = "",
    page: Annotated[Path | None, typer.Option("--page", help="Write all of them to this file, as Markdown.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a key may be: its type, range, default and meaning. Of run, site, policy and pacs.toml, and scenarios.

    Example: wardround-sim reference training
    """
    from simulations.commands import settings  # noqa: PLC0415 - all tables

    if page is not None:
        write_atomically(page, settings.page().encode())
        say(page)
        return
    found = settings.all_keys(beginning)
    if not found:
        raise ConfigError(f"there is no key {beginning!r}{settings.nearest(beginning)} Without a key all are listed.")
    if as_json:
        show_json([{**_told(key), "default": _value(key.default), "needed": key.default is None} for key in found])
    else:
        rows = [[*_told(key).values(), key.default or "needed"] for key in found]
        show_table("Settings", ["document", "key", "kind", "type", "format", "meaning", "default"], rows)


def _told(key: "settings.Key") -> dict[str, object]:
    told = {"document": key.document, "key": key.place, "kind": key.kind, "type": key.type}
    return {**told, "format": key.since, "meaning": key.meaning or None}


def _value(default: str | None) -> object:
    """What a default is, as data; of a table with its own, and of a key that is needed, nothing."""
    return None if default in (None, "-", "its own") else tomllib.loads(f"x = {default}")["x"]


__all__ = ["reference"]
