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
    """files: sorted. unseen: names that are no file one could open, counted by reason."""

    files: tuple[Path, ...] = field(repr=False)
    unseen: Mapping[str, int]


def list_folder(folder: Path) -> Listing:
    """All that lies in a folder and below."""
    files: list[Path] = []
    unseen = Counter[str]()
    links = [folder]
    seen: set[tuple[int, int]] = set()
    while links:
        # One link at a time: what lies behind it by its own name must not come under a link's.
        found, more = _walk(links.pop(0), folder, seen, unseen)
        files += found
        links = sorted([*links, *more])
    return Listing(tuple(sorted(files)), +unseen)


def files_under(folder: Path) -> list[Path]:
    """The files in a folder and below, sorted."""
    return list(list_folder(folder).files)


def _walk(start: Path, root: Path, seen: set[tuple[int, int]], unseen: Counter[str]) -> tuple[list[Path], list[Path]]:
    """The files in a folder and its sub-folders, and the links to folders; adds to what was seen, and what was not."""
    files: list[Path] = []
    links: list[Path] = []
    todo = [start]
    while todo:
        where = todo.pop()
        try:
            status = where.stat()
            if (status.st_dev, status.st_ino) in seen:
                unseen[LINK_TO_SEEN] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(where) as entries:
                names = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError:
            unseen[NOT_LISTED] += 1
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
                    unseen[LINK_TO_NOTHING if entry.is_symlink() and not path.exists() else NO_FILE] += 1
            except OSError:  # a link in a circle, or a disk that went away
                unseen[LINK_TO_NOTHING] += 1
    return files, links


__all__ = ["LINK_TO_NOTHING", "LINK_TO_SEEN", "NOT_LISTED", "NO_FILE", "Listing", "files_under", "list_folder"]
