"""Which studies in a folder are whole, while files still arrive one by one.

A study is whole when none of its files has changed for some seconds, by this computer's clock, and no other new file is
still too incomplete to say where it belongs. Every sub-folder is looked at on its own; DICOM files that lie loose are
grouped by series, other loose files are a study each. Hidden files are left alone. The folder is polled:
notifications do not cross network shares. Headers are read again only where something changed.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from client.data.read import images, nifti
from client.data.read.pairs import has_suffix
from client.data.study.listing import files_under
from client.data.study.study import Reference, parsing
from common.errors import DataError

Find: TypeAlias = Callable[[Path, Sequence[Path] | None], tuple[Reference, ...]]

_Version: TypeAlias = tuple[int, int]  # bytes, modification time in ns
_Listing: TypeAlias = dict[Path, _Version]

# Formats in which a loose file is a study of its own.
_SINGLE = (*nifti.SUFFIXES, *images.SUFFIXES)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrived:
    """A study that is whole. signature: changes when a file of it changes, comes or goes; 64 hex digits."""

    reference: Reference = field(repr=False)
    signature: str


@dataclass
class _Unit:
    """Files that are looked at together, and the studies that were found when they were like that."""

    listing: _Listing
    references: tuple[Reference, ...]
    settled: bool = False  # all is known; nothing to do until the listing changes


class DropFolder:
    """A folder in which studies arrive. Remembers about 1 KB for each file that lies there."""

    def __init__(self, folder: Path, find: Find, settle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is looked at yet.

        Args:
            folder: absolute.
            find: the studies at a path, or among some files under it, such as `sources.find_images`.
            settle_s: how long a file must not have changed.
            clock: seconds that only grow.
        """
        self._folder = folder
        self._find_images = find
        self._settle_s = settle_s
        self._clock = clock
        self._since: dict[Path, tuple[_Version, float]] = {}
        self._units: dict[str, _Unit] = {}

    def arrived(self, known: Collection[str], stopped: Callable[[], bool]) -> Iterator[Arrived]:
        """Look once: the studies that are whole and whose signature is not known.

        Args:
            known: signatures that need no work; may grow between two results.
            stopped: asked before every sub-folder; ends the look.

        Raises:
            WardroundError: `find` fails for another reason than what lies there.
        """
        files = _versions(files_under(self._folder))
        moving = self._moving(files)
        units = self._grouped(files)
        self._units = {name: unit for name, unit in self._units.items() if name in units}
        for name, listing in units.items():
            if stopped():
                return
            unit = self._units.get(name)
            if unit is None or unit.listing != listing:
                unit = self._units[name] = _Unit(listing, self._find(name, listing))
            if unit.settled:
                continue
            moving_here = moving & listing.keys()
            whole = [self._describe(one, listing) for one in _whole(unit.references, moving_here)]
            yield from (one for one in whole if one.signature not in known)
            unit.settled = not moving_here and all(one.signature in known for one in whole)

    def is_unchanged(self, study: Arrived) -> bool:
        """Whether the files of a study are what they were when it was found whole."""
        return _signature(self._folder, _versions(_files_of(study.reference))) == study.signature

    def _moving(self, files: _Listing) -> set[Path]:
        """The files that have not been at rest for long enough."""
        now = self._clock()
        before = self._since
        self._since = {
            path: before[path] if path in before and before[path][0] == version else (version, now)
            for path, version in files.items()
        }
        return {path for path, (_, since) in self._since.items() if now - since < self._settle_s}

    def _grouped(self, files: _Listing) -> dict[str, _Listing]:
        """Files by sub-folder; loose ones by their own name, or "" together if they may be slices."""
        groups: dict[str, _Listing] = {}
        for path, version in files.items():
            first, *rest = path.relative_to(self._folder).parts
            name = first if rest or has_suffix(path, _SINGLE) else ""
            groups.setdefault(name, {})[path] = version
        return groups

    def _find(self, name: str, listing: _Listing) -> tuple[Reference, ...]:
        path = self._folder / name
        try:
            with parsing("folder"):
                return self._find_images(path, list(listing) if path.is_dir() else None)
        except DataError as error:
            _log.info(
                "%s no study (%s)",
                "1 new file is" if len(listing) == 1 else f"{len(listing)} new files are",
                error.code,
            )
            return ()

    def _describe(self, reference: Reference, listing: _Listing) -> Arrived:
        # A film of a mini-MIAS archive or a slice is always among the files it was found in.
        return Arrived(reference, _signature(self._folder, {path: listing[path] for path in _files_of(reference)}))


def _versions(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Size and modification time of the files that are there."""
    found = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # gone since it was listed
        found[path] = (status.st_size, status.st_mtime_ns)
    return found


def _whole(references: Iterable[Reference], moving: Collection[Path]) -> list[Reference]:
    references = list(references)
    # What is still written and does not name its series yet may be the last slice of any of them.
    placed = {path for one in references if one.key and one.problem is None for path in one.images}
    if any(path not in placed for path in moving):
        return []
    return [one for one in references if not any(path in moving for path in one.images)]


def _files_of(reference: Reference) -> tuple[Path, ...]:
    """Its files, and those that keep it from being whole: when they come right, it is another study."""
    return (*reference.images, *reference.beside)


def _signature(folder: Path, listing: _Listing) -> str:
    digest = hashlib.sha256()
    for path, version in sorted(listing.items()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{version}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


__all__ = ["Arrived", "DropFolder", "Find"]
