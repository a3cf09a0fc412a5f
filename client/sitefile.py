"""Adding a data source to site.toml, and taking one out, without losing what a person wrote there.

TOML lets a table of an array be added at the end of the file, so the text before it stays byte for byte. One is taken
out as the lines from its [[data]] to the next table. The new text is checked as a whole before it replaces the old one.
"""

import json
import re
from pathlib import Path
from typing import Any

from common.config import SiteConfig, SourceConfig, parse
from common.errors import ConfigError
from common.files import write_atomically
from common.text import counted

_HEADER = re.compile(r"\s*\[\[?\s*(?P<name>[^\]]*?)\s*\]")
_DATA = re.compile(r"\s*\[\[\s*data\s*\]\]")


def add_source(path: Path, source: SourceConfig) -> SiteConfig:
    """Append [[data]] to site.toml.

    Returns:
        The site as it is now described.

    Raises:
        ConfigError: the file is not valid, or would not be.
    """
    old = path.read_text(encoding="utf-8")
    parse(SiteConfig, old, source=str(path))
    values = source.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    lines = "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
    text = f"{old.rstrip()}\n\n[[data]]\n{lines}"
    site = parse(SiteConfig, text, source=f"{path} with the new data")
    write_atomically(path, text.encode())
    return site


def remove_source(path: Path, number: int) -> SiteConfig:
    """Take [[data]] number `number`, from 1, out of site.toml.

    Returns:
        The site as it is now described.

    Raises:
        ConfigError: there is no such source, or the file does not write it as a table of its own.
    """
    old = path.read_text(encoding="utf-8")
    before = parse(SiteConfig, old, source=str(path))
    if not 1 <= number <= len(before.data):
        raise ConfigError(
            f"site.toml has {counted(len(before.data), 'data source')}, and none is number {number}. "
            "See: wardround-client data list."
        )
    lines = old.splitlines(keepends=True)
    starts = [index for index, line in enumerate(lines) if _DATA.match(line)]
    expected = before.model_copy(update={"data": (*before.data[: number - 1], *before.data[number:])})
    if len(starts) == len(before.data):
        start = starts[number - 1]
        rest = range(start + 1, len(lines))
        end = next((index for index in rest if _begins_another(lines[index])), len(lines))
        text = "".join([*lines[:start], *lines[end:]]).rstrip() + "\n"
        if parse(SiteConfig, text, source=f"{path} without the data") == expected:
            write_atomically(path, text.encode())
            return expected
    raise ConfigError(
        f"source {number} is not written as a [[data]] table of its own in {path}. Take it out there by hand."
    )


def _begins_another(line: str) -> bool:
    """Whether a line begins a table that is no part of the [[data]] before it."""
    header = _HEADER.match(line)
    return header is not None and not header["name"].startswith("data.")


def _toml(value: Any) -> str:
    """A value of a SourceConfig: text, a list of texts or a table of texts. JSON text is valid TOML text."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    # JSON leaves DEL as it is, TOML does not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
