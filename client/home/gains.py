"""What the model of a run scored here beside the one that this site trained alone: for the hospital's own eyes.

    home/state/gains/<run hash>.sealed   both scores of each evaluation, exact; see client/train/alone.py

Of a private run nothing of it leaves. Sealed (client/home/sealed_table.py), and kept after the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from client.home.folder import GAINS_NAME
from client.home.sealed_table import read_table, write_table
from common.config import Table
from common.errors import ConfigError

_PURPOSE = "gains"


class Compared(Table):
    """One evaluation: the headline score of both models on the same patients. None: it has none, or none was made."""

    round: int
    phase: str
    score: str  # its name
    shared: float | None
    local: float | None


class _Gains(Table):
    format: Literal[1] = 1
    compared: tuple[Compared, ...] = ()


def note(home: Path, site_key: bytes, run_hash: str, one: Compared) -> None:
    """Keep what was compared; the same round and phase, if they come again, take the place of those before.

    Raises:
        ConfigError: see `gains`.
    """
    before = (
        other for other in gains(home, site_key, run_hash) if (other.round, other.phase) != (one.round, one.phase)
    )
    write_table(_path(home, run_hash), _Gains(compared=(*before, one)), site_key, _PURPOSE)


def gains(home: Path, site_key: bytes, run_hash: str) -> Sequence[Compared]:
    """What was compared, in the order in which it was; nothing where the run does not ask for it.

    Raises:
        ConfigError: the file does not open.
    """
    try:
        found = read_table(_path(home, run_hash), _Gains, site_key, _PURPOSE)
    except ValueError as error:
        raise ConfigError(
            f"a file in {GAINS_NAME} of the site's home cannot be used: {error}. Nothing depends on it: restore it, "
            "and site.key, from a backup, or remove it."
        ) from error
    return () if found is None else found.compared


def _path(home: Path, run_hash: str) -> Path:
    return home / GAINS_NAME / f"{run_hash}.sealed"


__all__ = ["Compared", "gains", "note"]
