"""Where the checkpoints of a run lie: `checkpoint/round-00007`, of which only the last is kept.

In it the model as the next round starts from it, and in a folder each what the run's strategy holds beside it: under
`average` the average of the rounds where the run asks for one. A checkpoint renamed to another round's does not open:
what seals it knows where it belongs.
"""

from pathlib import Path

from common.crypto.stream import SUFFIX, Sealer
from common.errors import ConfigError

CHECKPOINTS = "checkpoint"
BEST = "best"  # beside them, where a run keeps the model of its best round
AVERAGE = "average"  # within a checkpoint's folder
MODEL_FILES = ("model.safetensors", "model.json")

_PREFIX = "round-"


def folder_of(out: Path, round_: int) -> Path:
    """The folder of a round's checkpoint."""
    return out / CHECKPOINTS / f"{_PREFIX}{round_:05d}"


def best_folder_of(out: Path, round_: int) -> Path:
    """The folder of a round's model, where it is the best so far."""
    return out / BEST / f"{_PREFIX}{round_:05d}"


def latest(out: Path) -> Path | None:
    """The folder of the last checkpoint, if there is one."""
    return max((out / CHECKPOINTS).glob(f"{_PREFIX}*[0-9]"), default=None)


def round_of(folder: Path) -> int:
    """Inverse of `folder_of`."""
    return int(folder.name.removeprefix(_PREFIX))


def at(sealer: Sealer | None, place: str) -> Sealer | None:
    """What seals there."""
    return sealer and sealer.at(place)


def open_files(folder: Path, sealer: Sealer) -> dict[str, bytes]:
    """The files of a checkpoint's model, opened: of the average, where there is one, as a finished run keeps it.

    Raises:
        ConfigError: they are not there, or do not open.
    """
    sealer = sealer.at(folder.name)
    if (folder / AVERAGE).exists():
        folder, sealer = folder / AVERAGE, sealer.at(AVERAGE)
    try:
        return {name: sealer.open((folder / f"{name}{SUFFIX}").read_bytes(), name) for name in MODEL_FILES}
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} is gone: a later round is done. Give its number, or none to see which.") from error


__all__ = [
    "AVERAGE",
    "BEST",
    "CHECKPOINTS",
    "MODEL_FILES",
    "at",
    "best_folder_of",
    "folder_of",
    "latest",
    "open_files",
    "round_of",
]
