"""Making a backup while the home is in use, looking through it, and restoring it into an empty folder.

A backup appears under its name whole, on disk, or not at all, and never in another file's place. A restored home is put
together beside its place and moved there when every member was checked; whatever goes wrong, nothing is left behind.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from common.errors import ConfigError
from common.rescue import archive, restored
from common.rescue.archive import About, Contents
from common.rescue.members import Side, Walk
from common.rescue.migration import HomeVersions, version_of
from common.system.files import create_private, move, write_private
from common.system.locks import locked

PASSPHRASE_VARIABLE = "WARDROUND_BACKUP_PASSPHRASE"  # noqa: S105 - a name

_SCRATCH, _LOCK = "backup.tmp", "backup.lock"


def make(
    home: Path,
    out: Path,
    side: Side,
    name: str,
    passphrase: str,
    *,
    outside: Collection[Path] = (),
    begin: Callable[[], object] = lambda: None,
    tell: Callable[[str, int], None] = lambda _name, _size: None,
) -> Contents:
    """Write a backup of a home.

    Args:
        home: which may be in use.
        out: a new file.
        side: what is taken.
        name: of the site; "" of a coordinator.
        passphrase: at least 12 characters.
        outside: folders of which nothing is taken, such as those of images.
        begin: called before the first file is taken, when nothing speaks against it.
        tell: told each file as it is taken, and its length in bytes.

    Raises:
        ConfigError: there is such a file, another backup of this home is being made, the passphrase is too short, or
            a file of the home cannot be copied.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already, and is not replaced. Give the name of a new file.")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {out.absolute().parent}. Make it, or give another file.")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    about = About(side.name, name, now, version("wardround"), version_of(home))
    taken: dict[str, int] = {}

    def note(member: str, size: int) -> None:
        taken[member] = size
        tell(member, size)

    busy = ConfigError(f"another backup of {home} is being made. Wait until it is done.")
    with locked(home / _LOCK, busy), _scratch(home) as scratch:
        walk = Walk(home, side, scratch, [one.resolve() for one in outside])
        if not create_private(out, archive.written(about, walk, passphrase, begin, note)):
            raise ConfigError(f"{out} is there already, and is not replaced. Give the name of a new file.")
    return Contents(about, taken, dict(sorted(walk.left_out.items())))


def look(path: Path, passphrase: str) -> Contents:
    """What a backup holds; all of it is opened and checked, and nothing is written.

    Raises:
        ConfigError: see `archive.read`.
    """
    return archive.read(path, passphrase, _look)


def restore(path: Path, home: Path, versions: HomeVersions, side: Side, passphrase: str) -> Contents:
    """Put a backup into a new home.

    Args:
        path: of the backup.
        home: a folder that is empty or not there.
        versions: of homes that this program knows.
        side: of which the backup must be.
        passphrase: that it was made with.

    Raises:
        ConfigError: see `archive.read`; or the folder is not empty, the backup is the other side's, or its home is of
            a later version. Nothing is left behind.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise ConfigError(
            f"{home} is not empty, and a backup is restored only into a new or empty folder, so that nothing is mixed "
            "with it. Give another folder, or move what is there aside."
        )
    if not home.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {home.absolute().parent}. Make it, or give another --home.")
    # A folder on which a disk is mounted keeps its name: what comes is put together in it, and moved out to it.
    within = os.path.ismount(home)
    stage = (home / ".restoring") if within else home.absolute().with_name(f".{home.name}.{secrets.token_hex(8)}")
    stage.mkdir(mode=0o700)
    try:
        modes: dict[Path, int] = {}
        contents = archive.read(path, passphrase, lambda *member: _put(stage, modes, *member))
        _check_kind(contents.about, side)
        versions.check_version(contents.about.home_version, contents.about.program)
        for name in side.folders:
            (stage / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        restored.mark(stage, contents.about.made)
        for folder, mode in reversed(list(modes.items())):
            folder.chmod(mode)
        if within:
            # Last of all what makes a home of it.
            for one in sorted(stage.iterdir(), key=lambda one: one.name == side.mark):
                move(one, home / one.name)
            home.chmod(0o700)
        else:
            move(stage, home)
    except BaseException:
        if within:
            for one in [one for one in home.iterdir() if one != stage]:
                _remove(one)
        _remove(stage)
        raise
    if within:
        stage.rmdir()
    return contents


def _put(stage: Path, modes: dict[Path, int], name: str, mode: int, content: Iterator[bytes] | None) -> None:
    path = stage / name
    if content is None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        modes[path] = mode
        return
    write_private(path, content, durable=False)  # `move` flushes all of it
    path.chmod(mode)


def _look(_name: str, _mode: int, content: Iterator[bytes] | None) -> None:
    for _ in content or ():
        pass


def _check_kind(about: About, side: Side) -> None:
    if about.side != side.name:
        other = "wardround-client" if about.side == "hospital" else "wardround-server"
        raise ConfigError(
            f"this is a backup of a {about.side}, and not of a {side.name}. Restore it with {other} restore."
        )


@contextlib.contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A folder for copies of databases, in the home: it holds what the home does. What a crash left there is gone."""
    folder = home / _SCRATCH
    _remove(folder)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


__all__ = ["PASSPHRASE_VARIABLE", "look", "make", "restore"]
