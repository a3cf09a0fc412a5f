"""Files that are there whole or not at all, and sockets whose path may be long.

The bytes go into a hidden file beside the place, which then takes the place's name: POSIX `rename` replaces a file in
one step. File and folder are flushed to the disk, so that this holds for a power failure too. All that we write goes
through these functions; tests/test_architecture.py names the exceptions.
"""

import errno
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

# Bytes that the name of a unix socket may have: 104 on macOS, 108 on Linux, the zero at its end included.
LONGEST_ADDRESS = 100

Content: TypeAlias = bytes | Iterable[bytes]  # whole, or in parts that are written one after another

# What a file system says that knows no links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_OURS, _ALL = 0o700, 0o777  # of new folders, less the umask


def write_atomically(path: Path, content: Content, *, durable: bool = True) -> None:
    """Write a file so that a reader, or a crash, sees the old bytes or the new ones, never a part.

    Args:
        path: of the file.
        content: what it shall hold.
        durable: as of `write_private`; False also where the folder is moved to its place afterwards.
    """
    _make_folders(path.parent, _ALL)
    _write(path, content, mode=0o666, durable=durable)


def write_private(path: Path, content: Content, *, durable: bool = True) -> None:
    """`write_atomically`, for a file that only its owner can read (0600), in folders likewise where those are made.

    Args:
        path: of the file.
        content: what it shall hold.
        durable: False does without the flush to the disk, which takes long: for what can be made again. A crash still
            leaves the old bytes or the new ones; a power failure may leave others.
    """
    _make_folders(path.parent, _OURS)
    _write(path, content, mode=0o600, durable=durable)


def create_private(path: Path, content: Content) -> bool:
    """`write_private`, but never in another file's place; False: there is one, and it stays.

    The file is whole from its first moment, and no descriptor of it is closed here. No folder is made: where the one
    that belongs there is missing, so is what else it holds. Where the file system has no links (FAT, as of memory
    sticks) the file is looked for once more and then renamed.
    """
    if path.exists():
        return False
    fresh = _beside(path)
    _write(fresh, content, mode=0o600, durable=True)
    try:
        os.link(fresh, path)
    except FileExistsError:
        return False  # another was first
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync(path.parent)
    return True


def append(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Add bytes to the end of a file; a crash may leave a part of them.

    Args:
        path: of the file.
        data: what is added.
        durable: on disk when this returns, with all that was added before. False leaves that to the next one: the end
            of this process loses nothing, a power failure may.
    """
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def move(fresh: Path, place: Path) -> None:
    """Give a file that is written, or a whole folder, the name at which others look; on disk when this returns.

    A file takes the place of one that is there, a folder only that of an empty one. What a folder holds is flushed
    before it has the name, all of it once.
    """
    if fresh.is_dir():
        for folder, _, names in os.walk(fresh, topdown=False):
            for one in (*names, ""):
                _sync(Path(folder, one))
    fresh.replace(place)
    _sync(place.parent)


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """By which name to bind or reach a unix socket at this path: a link to its folder, where the path is too long."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="wr-") as folder:
        link = Path(folder) / "home"
        link.symlink_to(path.parent.resolve(), target_is_directory=True)
        yield str(link / path.name)


def _write(path: Path, content: Content, mode: int, *, durable: bool) -> None:
    fresh = _beside(path)
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _make_folders(folder: Path, mode: int) -> None:
    """Make a folder and those above it, each with this mode: `mkdir` gives it to the last one alone."""
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(mode=mode, exist_ok=True)


def _sync(path: Path) -> None:
    # Of a folder too: without it a rename may be lost in a power failure (POSIX leaves that open).
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "LONGEST_ADDRESS",
    "Content",
    "append",
    "create_private",
    "move",
    "socket_address",
    "write_atomically",
    "write_private",
]
