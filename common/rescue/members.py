"""What of a home goes into a backup, and what stays out: every file is taken, or counted under a name and a reason.

A side names what it takes; whatever else lies in its home stays out. So images are never taken, wherever they lie. A
home is in use meanwhile: files are replaced and never changed in place, so a file that was opened is whole; databases
are copied by SQLite (its online backup), which waits for a transaction that is under way; small folders whose files
belong together are read again until nothing has changed. What is there first and gone a moment later, as a checkpoint
that a later round has replaced, is looked for again. The order in which a side names its files says which may be newer.
"""

import contextlib
import io
import os
import sqlite3
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from common.errors import ConfigError

# So long a program may hold a database, as in common/system/database.py.
_PATIENCE_S = 60.0
# Of looks at a folder that changes all the time.
_MOST_LOOKS = 20
_LOCK, _JOURNALS = ".lock", ("-journal", "-wal", "-shm")

# Reasons that are not a side's own.
IMAGES, UNKNOWN = "a data source: images are never in a backup", "not known to this program"
# What is not taken wherever it lies: by what it is called, and why.
LOCKS, UNFINISHED, LINKS = "lock files", "unfinished files", "links and sockets"
_WHY = {LOCKS: "made anew", UNFINISHED: "they have no name yet", LINKS: "what they lead to is elsewhere"}


@dataclass(frozen=True)
class Side:
    """What a backup of one side is made of. All names are relative to the home."""

    name: str  # "hospital" or "coordinator"
    program: str
    mark: str  # the file by which a home is known
    kept: tuple[str, ...]  # files and folders, in the order in which they are copied
    databases: tuple[str, ...]  # those of them that SQLite copies
    at_once: tuple[str, ...]  # small folders whose files belong together
    folders: tuple[str, ...]  # that a home has, even if empty
    left_out: Mapping[str, str]  # name, or a pattern of names -> why not


@dataclass(frozen=True)
class Member:
    """One file, open."""

    name: str
    mode: int  # the owner's permissions
    size: int  # bytes
    file: BinaryIO


@dataclass(frozen=True)
class LeftOut:
    """What a backup does not hold, by name."""

    why: str
    files: int
    size: int  # bytes


@dataclass
class Walk:
    """One walk through a home. `left_out` grows with it, and is whole when it is over."""

    home: Path
    side: Side
    scratch: Path  # an empty folder for copies of databases
    outside: Collection[Path] = ()  # folders of which nothing is taken, wherever they lie; resolved
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def members(self) -> Iterator[Member]:
        """Each file that is taken, once; it is closed when the next one is asked for.

        Raises:
            ConfigError: a database cannot be copied, or a folder does not come to rest.
        """
        for name in self.side.kept:
            if name in self.side.databases:
                yield from self._database(name)
            elif name in self.side.at_once:
                yield from self._at_once(name)
            else:
                yield from self._files(name)
        self._count_what_is_not_taken()

    def folders(self) -> dict[str, int]:
        """The folders that are taken, and their modes; those above come first."""
        found: dict[str, int] = {}
        for name in self.side.kept:
            for folder, names, _ in os.walk(self.home / name):
                names.sort()
                place = Path(folder)
                if self._is_outside(place):
                    names.clear()
                    continue
                found[place.relative_to(self.home).as_posix()] = stat.S_IMODE(place.stat().st_mode) & stat.S_IRWXU
        return found

    def _files(self, name: str) -> Iterator[Member]:
        done: set[str] = set()
        in_vain = 0
        while in_vain < _MOST_LOOKS:
            before, gone = len(done), list[object]()
            for path in self._listed(name, gone):
                place = path.relative_to(self.home).as_posix()
                if gone:
                    break  # what took its place may have to come before the others
                if place in done:
                    continue
                if place in self.side.databases:
                    yield from self._database(place)
                    done.add(place)
                    continue
                try:
                    file = path.open("rb")
                except FileNotFoundError as error:
                    gone.append(error)
                    break
                with file:
                    about = os.fstat(file.fileno())
                    yield Member(place, stat.S_IMODE(about.st_mode) & stat.S_IRWXU, about.st_size, file)
                done.add(place)
            if not gone:
                return
            in_vain = in_vain + 1 if len(done) == before else 0
        raise _restless(name)

    def _listed(self, name: str, gone: list[object]) -> Iterator[Path]:
        """The files below a name, those of inner folders first; what vanished meanwhile is put into `gone`."""
        top = self.home / name
        if top.is_file() and not self._is_outside(top):
            yield top
        if not top.is_dir():
            return
        for folder, _, files in os.walk(top, topdown=False, onerror=gone.append):
            if self._is_outside(Path(folder)):
                continue
            for one in sorted(files):
                path = Path(folder, one)
                try:
                    if not one.endswith(_JOURNALS) and _refused(path) is None:  # a database is whole without them
                        yield path
                except FileNotFoundError as error:
                    gone.append(error)

    def _at_once(self, name: str) -> Iterator[Member]:
        for _ in range(_MOST_LOOKS):
            gone: list[object] = []
            paths = list(self._listed(name, gone))
            try:
                before = [_stamp(path) for path in paths]
                data = [path.read_bytes() for path in paths]
                same = not gone and paths == list(self._listed(name, gone)) and before == [_stamp(p) for p in paths]
            except FileNotFoundError:
                continue
            if same:
                for path, content in zip(paths, data, strict=True):
                    mode = stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXU
                    place = path.relative_to(self.home).as_posix()
                    yield Member(place, mode, len(content), io.BytesIO(content))
                return
        raise _restless(name)

    def _database(self, name: str) -> Iterator[Member]:
        source = self.home / name
        if not source.exists():
            return
        copy = self.scratch / source.name
        copy_database(source, copy)
        with copy.open("rb") as file:
            yield Member(name, stat.S_IRUSR | stat.S_IWUSR, copy.stat().st_size, file)
        copy.unlink()

    def _count_what_is_not_taken(self) -> None:
        for name in self.side.kept:
            for folder, names, files in os.walk(self.home / name):
                if self._is_outside(Path(folder)):
                    self._count(IMAGES, name, Path(folder))
                    names.clear()
                    continue
                for one in (*files, *(name for name in names if Path(folder, name).is_symlink())):
                    with contextlib.suppress(FileNotFoundError):
                        if (what := _refused(Path(folder, one))) is not None and not one.endswith(_JOURNALS):
                            self._note(_WHY[what], what, 1, 0)
        for path in sorted(self.home.iterdir()):
            if path.name in self.side.kept or path == self.scratch or path.name.endswith(_JOURNALS):
                continue
            named = (why for name, why in self.side.left_out.items() if fnmatchcase(path.name, name))
            if self._is_outside(path):
                self._count(IMAGES, path.name, path)
            elif (why := next(named, None)) is not None:
                self._count(why, path.name, path)
            else:
                what = _refused(path)
                self._count(UNKNOWN if what is None else _WHY[what], what or path.name, path)

    def _count(self, why: str, name: str, top: Path) -> None:
        """What lies at a place that is not taken."""
        files = size = 0
        for folder, _, names in os.walk(top):
            files += len(names)
            size += sum(path.lstat().st_size for one in names if (path := Path(folder, one)).is_file())
        if not top.is_dir():
            files, size = 1, top.lstat().st_size
        self._note(why, name, files, size)

    def _note(self, why: str, name: str, files: int, size: int) -> None:
        before = self.left_out.get(name, LeftOut(why, 0, 0))
        self.left_out[name] = LeftOut(why, before.files + files, before.size + size)

    def _is_outside(self, path: Path) -> bool:
        return any(path.resolve().is_relative_to(one) for one in self.outside)


def copy_database(source: Path, copy: Path) -> None:
    """A copy of a SQLite file as it is at one moment between two transactions; nobody has to stop for it.

    Args:
        source: in use, perhaps.
        copy: a new file.

    Raises:
        ConfigError: another program holds the file, or it is damaged.
    """
    try:
        # Not read-only: a journal that a crash left has to be rolled back first.
        with (
            closing(sqlite3.connect(f"file:{quote(str(source))}?mode=rw", timeout=_PATIENCE_S, uri=True)) as database,
            closing(sqlite3.connect(copy, isolation_level=None)) as target,
        ):
            database.execute("BEGIN")
            database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # takes the lock, with patience
            database.backup(target)
            (found,) = target.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise ConfigError(
            f"{source} cannot be copied ({error}). End the program that holds it, and try again; a damaged file is "
            "restored from an earlier backup."
        ) from error
    if found != "ok":
        raise ConfigError(f"{source} is damaged ({found}). Restore it from an earlier backup.")


def _refused(path: Path) -> str | None:
    """What a file is called that is not taken wherever it lies; None: it is."""
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return LINKS
    if path.name.startswith("."):
        return UNFINISHED  # as common/system/files.py names a file that has no name yet
    return LOCKS if path.name == "lock" or path.name.endswith(_LOCK) else None


def _stamp(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


def _restless(name: str) -> ConfigError:
    return ConfigError(f"{name} in the home changes all the time and cannot be copied whole. Try again in a moment.")


__all__ = ["IMAGES", "LINKS", "LOCKS", "UNFINISHED", "UNKNOWN", "LeftOut", "Member", "Side", "Walk", "copy_database"]
