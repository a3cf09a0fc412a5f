"""What a run left on one side, removed at the end of a project: what there is of it, and what stays."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Left:
    """What a run left in one place."""

    what: str  # for people
    place: Path
    files: int
    size: int  # bytes


@dataclass(frozen=True)
class Purge:
    """What would be removed of a run, and what stays."""

    name: str  # of the run
    run_hash: str
    removed: Sequence[Left]
    stays: Sequence[tuple[str, str]]  # what, why

    @property
    def files(self) -> int:
        """How many files are removed."""
        return sum(one.files for one in self.removed)


def left_at(what: str, place: Path) -> Left:
    """Count what lies at a place, a file or a folder."""
    files = [Path(folder, name) for folder, _, names in os.walk(place) for name in names]
    files = files if place.is_dir() else [place]
    return Left(what, place, len(files), sum(path.lstat().st_size for path in files))


__all__ = ["Left", "Purge", "left_at"]
