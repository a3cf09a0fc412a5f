"""What a run is told of the patients that train here (common/config/statistics.py), kept so that it is told the same.

    home/state/statistics/<run hash>.sealed   all of it, as it may leave: whoever comes or goes while the run lasts

Sealed (client/home/sealed_table.py), and kept after the run, for the hospital to read.
"""

from pathlib import Path
from typing import Literal

from client.home.folder import STATISTICS_NAME
from client.home.sealed_table import read_table, write_table
from common.config import Count, Table
from common.errors import ConfigError

_PURPOSE = "statistics"


class Told(Table):
    """What one run is told: values by name, as they may leave. patients: how many they are of, exactly; stays here."""

    format: Literal[1] = 1
    patients: Count
    values: dict[str, float]


def keep(home: Path, site_key: bytes, run_hash: str, told: Told) -> None:
    """Keep what a run is told from now on."""
    write_table(_path(home, run_hash), told, site_key, _PURPOSE)


def kept(home: Path, site_key: bytes, run_hash: str) -> Told | None:
    """What a run is told; None where nothing was computed for it.

    Raises:
        ConfigError: the file does not open.
    """
    try:
        return read_table(_path(home, run_hash), Told, site_key, _PURPOSE)
    except ValueError as error:
        raise ConfigError(
            f"a file in {STATISTICS_NAME} of the site's home cannot be used: {error}. It says what a run was told of "
            "our patients, and is not made anew by itself. Restore it, and site.key, from a backup, or remove it: the "
            "run is told of the patients of today then."
        ) from error


def earlier(home: Path, run_hash: str) -> int:
    """How many other runs were told of the patients here."""
    return sum(path != _path(home, run_hash) for path in (home / STATISTICS_NAME).glob("*.sealed"))


def _path(home: Path, run_hash: str) -> Path:
    return home / STATISTICS_NAME / f"{run_hash}.sealed"


__all__ = ["Told", "earlier", "keep", "kept"]
