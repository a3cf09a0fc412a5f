"""TOML that we write. Reading stays with tomllib (common/config), and the text of a run with whoever wrote it.

What a person wrote keeps its order, its comments and its spaces when an entry is added or taken out. tomlkit is loaded
where something is written: most commands only read.
"""

from collections.abc import Mapping
from typing import Any

from common.errors import ConfigError


def to_toml(values: Mapping[str, Any]) -> str:
    """A new document: plain values first, then tables.

    Args:
        values: text, numbers, truth values, lists and tables of them; no None, which TOML does not have.
    """
    import tomlkit  # noqa: PLC0415

    return tomlkit.dumps(values)


def with_entry(text: str, name: str, values: Mapping[str, Any]) -> str:
    """A document with one more `[[name]]`; it stands after the others, or at the end.

    Raises:
        ConfigError: it is written in a way in which nothing can be added.
    """
    import tomlkit  # noqa: PLC0415
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415
    from tomlkit.items import AoT  # noqa: PLC0415

    try:
        document = tomlkit.parse(_ended(text))
        if name not in document:
            document.add(name, tomlkit.aot())
        entries = document[name]
        entry = tomlkit.table() if isinstance(entries, AoT) else tomlkit.inline_table()
        entry.update(values)
        if isinstance(entries, AoT):  # a line between it and what stands before, or after
            if len(entries) and entries[-1].as_string().endswith("\n\n"):
                entry.add(tomlkit.nl())
            else:
                entry.trivia.indent = "\n"
        entries.append(entry)
        return _ended(tomlkit.dumps(document))
    except (TOMLKitError, AttributeError) as error:
        raise ConfigError(f"nothing can be added to {name} as it is written. Add it there by hand.") from error


def with_value(text: str, name: str, value: int) -> str:
    """A document with `name = value`, at its top where it was not there.

    Raises:
        ConfigError: it is no TOML.
    """
    import tomlkit  # noqa: PLC0415
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"{name} cannot be written. Write {name} = {value} at the top by hand.") from error
    if name not in document:
        return f"{name} = {value}\n{text}"
    document[name] = value
    return tomlkit.dumps(document)


def without_entry(text: str, name: str, index: int) -> str:
    """A document without one of its `[[name]]`, counted from 0.

    Raises:
        ConfigError: it is written in a way in which nothing can be taken out.
    """
    import tomlkit  # noqa: PLC0415
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    try:
        document = tomlkit.parse(text)
        entries = document[name]
        if len(entries) == 1:
            document.remove(name)
        else:
            del entries[index]
        return _ended(tomlkit.dumps(document))
    except (TOMLKitError, IndexError) as error:
        raise ConfigError(f"nothing can be taken out of {name} as it is written. Take it out there by hand.") from error


def _ended(text: str) -> str:
    return text.rstrip() + "\n"


__all__ = ["to_toml", "with_entry", "with_value", "without_entry"]
