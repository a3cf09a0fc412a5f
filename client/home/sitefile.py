"""Adding a data source to site.toml, and taking one out, without losing what a person wrote there.

The new text is checked as a whole before it replaces the old one.
"""

from pathlib import Path

from common.config import SiteConfig, SourceConfig, parse
from common.document.formats import later_keys
from common.document.tomlfile import with_entry, with_value, without_entry
from common.errors import ConfigError
from common.system.files import write_atomically
from common.text import counted


def add_source(path: Path, source: SourceConfig) -> SiteConfig:
    """Append [[data]] to site.toml.

    Returns:
        The site as it is now described.

    Raises:
        ConfigError: the file is not valid, or would not be.
    """
    old = path.read_text(encoding="utf-8")
    before = parse(SiteConfig, old, source=str(path))
    values = source.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    wanted = max([before.format, *(format_ for _, format_, earliest in later_keys(source) if not earliest)])
    text = with_entry(old if wanted == before.format else with_value(old, "format", wanted), "data", values)
    return _replaced(path, text, before.model_copy(update={"data": (*before.data, source), "format": wanted}))


def remove_source(path: Path, number: int) -> SiteConfig:
    """Take [[data]] number `number`, from 1, out of site.toml.

    Returns:
        The site as it is now described.

    Raises:
        ConfigError: there is no such source, or the file writes it in a way in which it cannot be taken out.
    """
    old = path.read_text(encoding="utf-8")
    before = parse(SiteConfig, old, source=str(path))
    if not 1 <= number <= len(before.data):
        raise ConfigError(
            f"site.toml has {counted(len(before.data), 'data source')}, and none is number {number}. "
            "See: `wardround-client data list`."
        )
    text = without_entry(old, "data", number - 1)
    rest = (*before.data[: number - 1], *before.data[number:])
    return _replaced(path, text, before.model_copy(update={"data": rest}))


def _replaced(path: Path, text: str, expected: SiteConfig) -> SiteConfig:
    if parse(SiteConfig, text, source=f"{path} with the change") != expected:
        raise ConfigError(f"{path} cannot be changed without changing more of it. Change it there by hand.")
    write_atomically(path, text.encode())
    return expected
