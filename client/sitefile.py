"""Adding a data source to site.toml without losing what a person wrote there.

TOML lets a table of an array be added at the end of the file, so the text before it stays byte for byte. The new
text is checked as a whole before it replaces the old one.
"""

import json
from pathlib import Path
from typing import Any

from common.config import SiteConfig, SourceConfig, parse


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
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return site


def _toml(value: Any) -> str:
    """A value of a SourceConfig: text, a list of texts or a table of texts. JSON text is valid TOML text."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    # JSON leaves DEL as it is, TOML does not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
