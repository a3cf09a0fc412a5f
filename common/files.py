"""Files that are there whole or not at all, and sockets whose path may be long.

The bytes go into a hidden file beside the place, which then takes the place's name: POSIX `rename` replaces a file in
one step. File and folder are flushed to the disk, so that this holds for a power failure too.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Bytes that the name of a unix socket may have: 104 on macOS, 108 on Linux, the zero at its end included.
LONGEST_ADDRESS = 100


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, data, mode=0o666)  # less the umask


def write_private(path: Path, data: bytes) -> None:
    """`write_atomically`, for a file that only its owner can read (0600), in a folder likewise where that is made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(path, data, mode=0o600)


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


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Without it the rename itself may be lost in a power failure (POSIX leaves that open).
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["LONGEST_ADDRESS", "socket_address", "write_atomically", "write_private"]
