"""What may come in: one file, or a ZIP of the files of a study, within limits that hold whatever a header says.

Names that a client gives are not used: files are numbered, and their first bytes say what they are. A ZIP is refused
as a whole for an entry with a name that leads out of a folder, a link, a device, a password, or a compression other
than none and deflate, and for a comment or the 64-bit form, so that it is read in one way only; bytes are counted as
they are unpacked. What lies in an archive within is a file that no reader opens.
Source: APPNOTE.TXT 6.3.10 of PKWARE (4.3.16, end of central directory).
"""

import asyncio
import stat
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from common.errors import DataError, ErrorCode

_CHUNK = 1 << 20
_END = struct.Struct("<4s4H2LH")  # of the central directory
_LONGEST_DIRECTORY = 4 << 20
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# First bytes -> suffix that the readers know; anything else is taken for DICOM, and read as that or refused.
_MAGIC = (
    (b"\x1f\x8b", ".nii.gz"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
    (b"BM", ".bmp"),
    (b"P2", ".pgm"),
    (b"P5", ".pgm"),
    (b"P3", ".ppm"),
    (b"P6", ".ppm"),
)
# What zipfile raises of a damaged archive.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(ValueError, OverflowError, NotImplementedError, RuntimeError, IndexError),
)
_NIFTI_AT, _NIFTI = (344, b"n+1\x00"), (4, b"n+2\x00")
_HEAD = 352


@dataclass(frozen=True)
class Limits:
    """upload: bytes of a body. unpacked: bytes of all files. files: in a ZIP. silence_s: between parts of a body."""

    upload: int = 1 << 30
    unpacked: int = 4 << 30
    files: int = 5000
    silence_s: float = 30.0


class TooLargeError(DataError):
    """It is more than is taken."""

    code = ErrorCode.UNSUPPORTED


async def receive(parts: AsyncIterator[bytes], path: Path, limits: Limits) -> None:
    """Write a body to a file, which must not be there.

    Raises:
        TooLargeError: it is longer than is taken.
        DataError: it is empty, or its sender fell silent.
    """
    count = 0
    with path.open("xb") as file:
        while True:
            try:
                part = await asyncio.wait_for(anext(parts, None), limits.silence_s)
            except TimeoutError:
                silent = f"no byte came for {limits.silence_s:g} s. Send it again."
                raise DataError(silent, ErrorCode.DEADLINE) from None
            if part is None:
                break
            count += len(part)
            if count > limits.upload:
                raise _too_large("the upload", limits.upload)
            file.write(part)
    if not count:
        raise DataError("the body is empty. Send a file, or a ZIP of the files of a study.", ErrorCode.UNREADABLE)


def unpack(path: Path, folder: Path, limits: Limits) -> int:
    """Put the files of an upload into a folder, which is made; the upload itself is removed.

    Returns:
        How many there are.

    Raises:
        DataError: the ZIP is refused.
    """
    folder.mkdir(mode=0o700)
    with path.open("rb") as file:
        if not file.read(4).startswith((b"PK\x03\x04", b"PK\x05\x06")):
            path.replace(folder / f"00001{_suffix_of(path)}")
            return 1
        _check_directory(file, path.stat().st_size)
        try:
            count = _unpack(file, folder, limits)
        except _DAMAGED as error:
            raise _refused("it is damaged") from error
    path.unlink()
    return count


def _check_directory(file: BinaryIO, size: int) -> None:
    """Refuse a ZIP that does not end with its directory, or whose directory does not fit into memory, unread."""
    file.seek(max(0, size - _END.size - 20))
    tail = file.read()
    if len(tail) < _END.size:
        raise _refused("it is damaged")
    signature, *_, length, _start, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\x05\x06" or comment:
        raise _refused("it has a comment, or does not end as a ZIP does")
    if tail[: -_END.size].startswith(b"PK\x06\x07"):
        raise _refused("it is in the 64-bit form")
    if length > _LONGEST_DIRECTORY:
        raise _refused("its directory is too long")
    file.seek(0)


def _unpack(file: BinaryIO, folder: Path, limits: Limits) -> int:
    left = limits.unpacked
    with zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > limits.files:
            raise _refused(f"it holds {len(entries)} files, and {limits.files} are taken")
        if not entries:
            raise _refused("it holds no file")
        for entry in archive.infolist():
            _check_entry(entry)
        for number, entry in enumerate(entries, start=1):
            place = folder / f"{number:05}"
            with archive.open(entry) as packed, place.open("xb") as plain:
                while part := packed.read(_CHUNK):
                    left -= len(part)
                    if left < 0:
                        raise _too_large("what is unpacked", limits.unpacked)
                    plain.write(part)
            place.replace(place.with_name(f"{place.name}{_suffix_of(place)}"))
    return len(entries)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.orig_filename or "\x00" in entry.orig_filename:
        raise _refused("the name of an entry leads out of a folder")
    if ":" in entry.filename.split("/", maxsplit=1)[0]:
        raise _refused("the name of an entry leads out of a folder")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused("an entry is a link or a device")
    if entry.flag_bits & _ENCRYPTED:
        raise _refused("an entry has a password")
    if entry.compress_type not in _METHODS:
        raise _refused("an entry is compressed otherwise than by deflate")


def _suffix_of(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if any(head[at : at + 4] == magic for at, magic in (_NIFTI_AT, _NIFTI)):
        return ".nii"
    return next((suffix for magic, suffix in _MAGIC if head.startswith(magic)), ".dcm")


def _refused(why: str) -> DataError:
    return DataError(f"the ZIP is refused: {why}. Send a plain ZIP of the study's files.", ErrorCode.UNREADABLE)


def _too_large(what: str, most: int) -> TooLargeError:
    return TooLargeError(f"{what} has more than {most} bytes. Send less at once.")


__all__ = ["Limits", "TooLargeError", "receive", "unpack"]
