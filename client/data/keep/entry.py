"""Where what was made of a study is kept, and what it was made from: the name and the stamp of its sealed file.

The stamp tells an old entry from a current one: all of the study's reference (paths, patient, label map), how its label
is read, and of every file of it the size and the times of modification and of change, to the nanosecond. To
look at them takes microseconds, where hashing the content would cost more than reading the entry. The time of change is
set by the kernel alone, so a file that was replaced and given its old time back is seen. What it cannot see is a second
write of the same length within one tick of the file system's clock.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from client.data.isolate.isolation import Job
from client.data.keep.vault import Vault
from client.data.study.study import Reference

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Made BEFORE the study is read, so that files which changed meanwhile make it out of date."""

    path: Path
    stamp: bytes


def entry_of(job: Job, path: Path, vault: Vault, *program: str) -> Entry | None:
    """The entry of a study; None where it has none, because it cannot be read at all.

    Args:
        job: names its files, and says how its label is read.
        path: of the sealed file.
        vault: seals it.
        program: what reads and judges the study, where the path does not say so.
    """
    reference = job.reference
    if reference.problem is not None:
        return None
    try:
        files = [path.stat() for path in reference.files]
    except OSError:
        return None  # reading it will say why
    times = [(file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in files]
    way = (None if job.wanted is None else job.wanted.to_json(), job.empty_is_negative, job.most_missing)
    return Entry(path, vault.mac("stamp", vars(reference), times, way, program))


def name_of(vault: Vault, reference: Reference, *way: object) -> str:
    """The name of a study's file; way: what else tells it from another of the same study."""
    # The first file too: two sources of a site may use the same keys.
    return vault.name("study", reference.kind, reference.key, reference.images[:1], *way)


def keep_only(names: Collection[str], folder: Path, what: str) -> None:
    """Drop all files of a folder but these: of studies that are gone, and what a crash left behind."""
    try:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in names:
                path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("old entries of the %s cannot be removed (%s)", what, error.strerror)


__all__ = ["Entry", "entry_of", "keep_only", "name_of"]
