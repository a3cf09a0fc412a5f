"""What the rounds of a run leave at a site, one sealed file a round.

    home/state/strategies/<run hash>/<round>.sealed   what a strategy goes on from, until the run is over
    home/state/personal/<run hash>/<round>.sealed     likewise, where that is a model of the site's own: the last
                                                      round's stays after the run, until a person removes it
    home/state/local/<run hash>/<round>.sealed        a model that the site trains alone, until the run is over

Only the site reads them, and each only in its place. What is in them is bytes here; see client/train/memory.py.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from client.home.folder import PERSONAL_NAME
from common.crypto.record_box import RecordBox
from common.errors import ConfigError
from common.system.files import write_private

_PURPOSE, _SUFFIX = "strategies", ".sealed"
BETWEEN = "/"  # a part's name, and a tensor's


@dataclass(frozen=True)
class Held:
    """A personal model that is kept here."""

    run_hash: str
    round: int  # that it was trained in last
    size: int  # bytes
    at: float  # when, seconds since the epoch


def rounds(folder: Path) -> list[int]:
    """Of which rounds of a run something is there."""
    return sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())


def path_of(folder: Path, round_: int) -> Path:
    """The file of a round."""
    return folder / f"{round_}{_SUFFIX}"


def write(folder: Path, site_key: bytes, round_: int, data: bytes) -> None:
    """Write a round's file whole or not at all."""
    sealed = RecordBox(site_key, _PURPOSE).seal(data, _context(folder, round_))
    write_private(path_of(folder, round_), sealed)


def read(folder: Path, site_key: bytes, round_: int) -> bytes:
    """What a round has left.

    Raises:
        OSError: it is not there.
        ValueError: it was sealed by another site or for another place, or altered.
    """
    return RecordBox(site_key, _PURPOSE).unseal(path_of(folder, round_).read_bytes(), _context(folder, round_))


def remove(folder: Path) -> None:
    """Let go all of a run."""
    shutil.rmtree(folder, ignore_errors=True)


def personal_folder(home: Path, run_hash: str) -> Path:
    """Where the personal model of a run is."""
    return home / PERSONAL_NAME / run_hash


def personal_models(home: Path) -> list[Held]:
    """Every personal model that is kept here, by run."""
    found = []
    for folder in sorted((home / PERSONAL_NAME).glob("*")):
        if numbers := rounds(folder):
            about = path_of(folder, numbers[-1]).stat()
            found.append(Held(folder.name, numbers[-1], about.st_size, about.st_mtime))
    return found


def personal(home: Path, site_key: bytes, run_hash: str) -> bytes:
    """The tensors of a run's personal model as they were packed, under names that begin with its part's.

    Raises:
        ConfigError: there is none, or it does not open.
    """
    folder = personal_folder(home, run_hash)
    numbers = rounds(folder)
    if not numbers:
        raise ConfigError(
            f"this site keeps no personal model of run {run_hash[:8]}, which made the model that was given. "
            "`wardround-client personal list` shows those that it keeps; without --personal the shared model is used."
        )
    try:
        return read(folder, site_key, numbers[-1])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the personal model of run {run_hash[:8]} does not open: it was made under another site key, or altered. "
            "Restore it, and site.key, from a backup, or remove it: `wardround-client personal remove RUN`."
        ) from error


def _context(folder: Path, round_: int) -> bytes:
    return f"{folder.name} {round_}".encode()


__all__ = [
    "BETWEEN",
    "Held",
    "path_of",
    "personal",
    "personal_folder",
    "personal_models",
    "read",
    "remove",
    "rounds",
    "write",
]
