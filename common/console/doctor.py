"""Is an installation sound? Each check on its own: one that fails, or cannot be made, never hides the next."""

import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import psutil

from common.console.cli import show_table
from common.errors import ConfigError, WardroundError


@dataclass(frozen=True)
class Finding:
    """One check's result; `detail` says what is, or what to do."""

    what: str
    ok: bool
    detail: str


# Says what it found, in a sentence or finding by finding; what is wrong may be raised too.
Check: TypeAlias = Callable[[], str | Iterable[Finding]]


def examine(checks: Mapping[str, Check]) -> list[Finding]:
    """Make all checks, by name, in order."""
    return [finding for what, check in checks.items() for finding in _made(what, check)]


def tell(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print what was found.

    Raises:
        ConfigError: something is wrong.
    """
    rows = [(one.what, "ok" if one.ok else "WRONG", one.detail) for one in findings]
    show_table("Doctor", ("check", "result", "detail"), rows, as_json=as_json)
    if wrong := [one.what for one in findings if not one.ok]:
        raise ConfigError(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}. See the details above.")


def _made(what: str, check: Check) -> list[Finding]:
    try:
        told = check()
        return [Finding(what, True, told)] if isinstance(told, str) else list(told)
    except (WardroundError, OSError, subprocess.SubprocessError, psutil.Error) as error:
        return [Finding(what, False, str(error))]


__all__ = ["Check", "Finding", "examine", "tell"]
