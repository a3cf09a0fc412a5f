"""What may come in, and what may not: limits that hold whatever an archive says of itself."""

import asyncio
import io
import stat
import struct
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from client.serve.upload import Limits, TooLargeError, receive, unpack
from common.errors import DataError

LIMITS = Limits(upload=1 << 20, unpacked=1 << 20, files=5, silence_s=0.05)


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in entries:
            made.writestr(name, data)
    return buffer.getvalue()


def special(kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    return info


def flagged(data: bytes) -> bytes:
    """The first entry is said to have a password, in both of its headers."""
    where = data.index(b"PK\x01\x02")
    return data[:6] + b"\x01\x00" + data[8 : where + 8] + b"\x01\x00" + data[where + 10 :]


def lying_size(data: bytes) -> bytes:
    """The directory says that the file is unpacked to 10 bytes."""
    where = data.index(b"PK\x01\x02") + 24
    return data[:where] + struct.pack("<L", 10) + data[where + 4 :]


def long_directory() -> bytes:
    """Ends as a ZIP does, and says that its directory has a gibibyte."""
    return b"PK\x03\x04" + bytes(100) + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60000, 60000, 1 << 30, 0, 0)


SMALL = archive(("a", b"x"))
HOSTILE = {
    "traversal": ("leads out", archive(("../../etc/passwd", b"x"))),
    "absolute": ("leads out", archive(("/etc/passwd", b"x"))),
    "backslash": ("leads out", archive(("..\\..\\x", b"x"))),
    "folder that leads out": ("leads out", archive(("../", b""), ("a", b"x"))),
    "end of a name": ("leads out", archive(("aXb", b"x")).replace(b"aXb", b"a\0b")),
    "drive": ("leads out", archive(("C:/x", b"x"))),
    "symlink": ("link or a device", archive((special(stat.S_IFLNK), b"/etc/passwd"))),
    "device": ("link or a device", archive((special(stat.S_IFCHR), b""))),
    "password": ("password", flagged(SMALL)),
    "too many": ("6 files", archive(*((str(number), b"x") for number in range(6)))),
    "bomb": ("more than 1048576", archive(("zeros", bytes(3 << 20)))),
    "bomb in parts": ("more than 1048576", archive(*((str(number), bytes(1 << 19)) for number in range(4)))),
    "size that lies": ("damaged", lying_size(archive(("zeros", bytes(3 << 20))))),
    "comment": ("comment", SMALL[:-2] + b"\x02\x00hi"),
    "64 bits": ("64-bit", SMALL[:-22] + b"PK\x06\x07" + bytes(16) + SMALL[-22:]),
    "long directory": ("directory is too long", long_directory()),
    "cut": ("does not end as a ZIP", SMALL[:-10]),
    "empty": ("no file", archive()),
    "folders only": ("no file", archive(("a/", b""))),
    "bzip2": ("otherwise than by deflate", archive(("a", b"x"), method=zipfile.ZIP_BZIP2)),
    "damaged": ("damaged", SMALL[:31] + b"\xff\xff\xff" + SMALL[34:]),
    "only a beginning": ("damaged", b"PK\x03\x04"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_archive_that_a_study_would_not_be_is_refused_whole(tmp_path: Path, name: str) -> None:
    told, data = HOSTILE[name]
    (tmp_path / "upload").write_bytes(data)
    with pytest.raises(DataError, match=told):
        unpack(tmp_path / "upload", tmp_path / "studies", LIMITS)
    outside = [path.name for path in tmp_path.iterdir() if path.name not in ("upload", "studies")]
    assert outside == []
    assert sum(path.stat().st_size for path in (tmp_path / "studies").iterdir()) <= LIMITS.unpacked


def test_files_are_numbered_and_named_by_what_they_hold(tmp_path: Path) -> None:
    entries = {
        "a/b/EVIL\nname.txt": b"\x89PNG\r\n\x1a\n...",
        "scan.exe": bytes(128) + b"DICM",
        "volume": bytes(344) + b"n+1\0",
        "volume of the second version": bytes(4) + b"n+2\0" + bytes(344),
        "a/b/packed": b"\x1f\x8b...",
    }
    (tmp_path / "upload").write_bytes(archive(*entries.items()))
    assert unpack(tmp_path / "upload", tmp_path / "studies", LIMITS) == 5
    found = {path.name: path.read_bytes() for path in sorted((tmp_path / "studies").iterdir())}
    suffixes = (".png", ".dcm", ".nii", ".nii", ".nii.gz")
    assert found == {
        f"{number:05}{suffix}": data
        for number, (suffix, data) in enumerate(zip(suffixes, entries.values(), strict=True), start=1)
    }
    assert not (tmp_path / "upload").exists()
    assert stat.S_IMODE((tmp_path / "studies").stat().st_mode) == 0o700


def test_files_of_the_most_that_is_unpacked_are_taken(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(archive(*((str(number), bytes(1 << 18)) for number in range(4))))
    assert unpack(tmp_path / "upload", tmp_path / "studies", LIMITS) == 4
    assert sum(path.stat().st_size for path in (tmp_path / "studies").iterdir()) == LIMITS.unpacked


def test_file_that_is_no_archive_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"P5\n1 1\n255\n\0")
    assert unpack(tmp_path / "upload", tmp_path / "studies", LIMITS) == 1
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["00001.pgm"]


async def _parts(*parts: bytes, silent: bool = False) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if silent:
        await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("parts", "error", "told"),
    [
        (lambda: _parts(bytes(1 << 20), b"x"), TooLargeError, "more than"),
        (lambda: _parts(b"x", silent=True), DataError, "no byte came"),
        (_parts, DataError, "empty"),
    ],
    ids=["long", "silent", "empty"],
)
def test_body_is_refused(
    tmp_path: Path, parts: Callable[[], AsyncIterator[bytes]], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        asyncio.run(receive(parts(), tmp_path / "upload", LIMITS))
    assert not (tmp_path / "upload").exists() or (tmp_path / "upload").stat().st_size <= LIMITS.upload


def test_body_of_the_longest_that_is_taken_arrives_whole(tmp_path: Path) -> None:
    asyncio.run(receive(_parts(bytes(1 << 19), b"x" * (1 << 19)), tmp_path / "upload", LIMITS))
    assert (tmp_path / "upload").read_bytes() == bytes(1 << 19) + b"x" * (1 << 19)


def test_upload_that_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"another patient's")
    with pytest.raises(FileExistsError):
        asyncio.run(receive(_parts(b"x"), tmp_path / "upload", LIMITS))
    assert (tmp_path / "upload").read_bytes() == b"another patient's"
