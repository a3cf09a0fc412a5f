"""A run as it is proposed, approved, hashed and carried: one value, made once.

A run is identified by the SHA-256 of the text that its coordinator issued. Whoever receives it hashes what was
received, and never a text made anew from what was understood: so a hospital and a coordinator of different versions
mean the same run by the same hash, and what was approved, charged and signed under it stays valid
(docs/adr/0011-a-run-is-the-text-that-was-issued.md).
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from common.config import RunConfig, canonical, from_canonical, parse, read_text
from common.config.bundle import build_bundle, read_bundle
from common.errors import ConfigError

# Of runs that a process has to do with again and again, as it finds them in messages, files and tables.
_KEPT = 256


@dataclass(frozen=True)
class RunDocument:
    """See the module."""

    text: str  # canonical JSON, as issued
    config: RunConfig  # what the text says
    hash: str  # SHA-256 of the text, hex
    # The Flower App Bundle that carries the text; empty for a run that was not issued with one, as in a simulation.
    bundle: bytes = field(default=b"", repr=False)

    @property
    def name(self) -> str:
        """The run's."""
        return self.config.name


def issue(config: RunConfig) -> RunDocument:
    """The document of a run that stays in this process, or whose text is handed on without a bundle.

    Raises:
        ConfigError: it has keys that are not of its format.
    """
    return from_text(canonical(config))


def from_toml(run_toml: str, source: str = "run.toml") -> RunDocument:
    """Issue a run, with its bundle.

    Args:
        run_toml: as written, comments included.
        source: what to call it in an error.

    Raises:
        ConfigError: not a valid run, or too long.
    """
    issued = issue(parse(RunConfig, run_toml, source))
    bundle = build_bundle(issued.name, issued.text, run_toml)
    return RunDocument(issued.text, issued.config, issued.hash, bundle)


def from_file(path: Path) -> RunDocument:
    """Issue the run of a file; see `from_toml`.

    Raises:
        ConfigError: as `from_toml`, or it cannot be read.
    """
    return from_toml(read_text(path), str(path))


@lru_cache(maxsize=_KEPT)
def from_bundle(bundle: bytes) -> RunDocument:
    """What a bundle carries.

    Raises:
        ConfigError: not a bundle, of a later format, or its run.toml says another thing than its text.
    """
    name, text, run_toml = read_bundle(bundle)
    document = from_text(text)
    if name != document.name or parse(RunConfig, run_toml, "the bundle's run.toml", lenient=True) != document.config:
        raise ConfigError("the bundle's run.toml and pyproject.toml do not agree. Treat it as hostile.")
    return RunDocument(document.text, document.config, document.hash, bundle)


@lru_cache(maxsize=_KEPT)
def from_text(text: str) -> RunDocument:
    """What was issued as this text.

    Raises:
        ConfigError: it is no run, or of a later format.
    """
    return RunDocument(text, from_canonical(RunConfig, text), hashlib.sha256(text.encode()).hexdigest())


__all__ = ["RunDocument", "from_bundle", "from_file", "from_text", "from_toml", "issue"]
