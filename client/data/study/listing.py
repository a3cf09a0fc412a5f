"""What lies in a folder: every name ends as a file, or as a count with the reason why it is none.

Links are followed, for hospitals and research servers keep patients on other disks; a folder is looked at once, under
its own name before any link's, so that links in a circle end. Left out without a word are hidden names (.git, ._x,
.DS_Store) and the folder of a site that lies in its own data: its key, its cache, its results.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LINK_TO_NOTHING = "link to nothing: what it stands for is not on this machine"
LINK_TO_SEEN = "link to a folder that is looked at already"
NOT_LISTED = "folder that cannot be listed"
NO_FILE = "neither file nor folder"

_SITE_FILE = "site.toml"


@dataclass(frozen=True)
class Listing:
    """files: sorted. lost: reason and path of each name that is no file one could open."""

    files: tuple[Path, ...] = field(repr=False)
    lost: tuple[tuple[str, Path], ...] = field(repr=False)

    @property
    def unseen(self) -> Mapping[str, int]:
        """Names that are no file one could open, counted by reason."""
        return Counter(reason for reason, _ in self.lost)


def list_folder(folder: Path) -> Listing:
    """All that lies in a folder and below."""
    files: list[Path] = []
    lost: list[tuple[str, Path]] = []
    links = [folder]
    seen: set[tuple[int, int]] = set()
    while links:
        # One link at a time: what lies behind it by its own name must not come under a link's.
        found, more = _walk(links.pop(0), folder, seen, lost)
        files += found
        links = sorted([*links, *more])
    return Listing(tuple(sorted(files)), tuple(lost))


def files_under(folder: Path) -> list[Path]:
    """The files in a folder and below, sorted."""
    return list(list_folder(folder).files)


def _walk(
    start: Path, root: Path, seen: set[tuple[int, int]], lost: list[tuple[str, Path]]
) -> tuple[list[Path], list[Path]]:
    """The files in a folder and its sub-folders, and the links to folders; adds to what was seen, and what was not."""
    files: list[Path] = []
    links: list[Path] = []
    todo = [start]
    while todo:
        where = todo.pop()
        try:
            status = where.stat()
            if (status.st_dev, status.st_ino) in seen:
                lost.append((LINK_TO_SEEN, where))
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(where) as entries:
                names = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError:
            lost.append((NOT_LISTED, where))
            continue
        if where != root and any(entry.name == _SITE_FILE for entry in names):
            continue
        for entry in names:
            path = Path(entry.path)
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else todo).append(path)
                elif entry.is_file():
                    files.append(path)
                else:
                    is_link = entry.is_symlink() and not path.exists()
                    lost.append((LINK_TO_NOTHING if is_link else NO_FILE, path))
            except OSError:  # a link in a circle, or a disk that went away
                lost.append((LINK_TO_NOTHING, path))
    return files, links


__all__ = ["LINK_TO_NOTHING", "LINK_TO_SEEN", "NOT_LISTED", "NO_FILE", "Listing", "files_under", "list_folder"]
