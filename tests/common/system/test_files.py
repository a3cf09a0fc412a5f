"""A file is there whole or not at all, and a private one is its owner's alone."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from common.system.files import append, create_private, move, write_atomically, write_private

Write = Callable[[Path, bytes], None]
both = pytest.mark.parametrize("write", [write_atomically, write_private])


@both
def test_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write(path, b"a first and longer text")
    write(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_what_is_added_is_there_and_flushed_where_it_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    append(tmp_path / "log", b"one ")
    append(tmp_path / "log", b"two ", durable=False)
    assert (tmp_path / "log").read_bytes() == b"one two "
    assert flushed == [4]
    append(tmp_path / "log", b"three")
    assert flushed == [4, 13]


@both
def test_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    write(tmp_path / "file", b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(("write", "mode"), [(write_atomically, 0o644), (write_private, 0o600)])
def test_private_file_and_its_folder_are_the_owners_alone_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, mode: int
) -> None:
    seen: list[int] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    before = os.umask(0o022)
    try:
        write(tmp_path / "keys" / "site.key", b"secret")
    finally:
        os.umask(before)
    folder = 0o700 if mode == 0o600 else 0o755
    assert seen == [mode, folder]  # the file before it has its name, then the folder
    assert stat.S_IMODE((tmp_path / "keys" / "site.key").stat().st_mode) == mode


def test_private_file_takes_the_place_of_one_that_all_could_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o644)
    write_private(tmp_path / "file", b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_folders_that_a_private_file_needs_are_the_owners_alone_all_of_them(tmp_path: Path) -> None:
    write_private(tmp_path / "site" / "cache" / "file", b"x")
    for folder in (tmp_path / "site", tmp_path / "site" / "cache"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_content_in_parts_is_one_file(tmp_path: Path) -> None:
    write_private(tmp_path / "file", iter((b"first ", b"second")), durable=False)
    assert (tmp_path / "file").read_bytes() == b"first second"
    assert len(list(tmp_path.iterdir())) == 1


def test_created_file_never_takes_anothers_place(tmp_path: Path) -> None:
    assert create_private(tmp_path / "key", b"first")
    assert not create_private(tmp_path / "key", b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_of_two_that_create_a_file_at_once_one_is_told_that_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def another_was_first(source: Path, target: Path) -> None:
        target.write_bytes(b"another's")
        link(source, target)

    monkeypatch.setattr(os, "link", another_was_first)
    assert not create_private(tmp_path / "key", b"ours")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"another's"]


@pytest.mark.parametrize("step", ["append", "move a file", "move a folder"])
def test_what_is_added_or_moved_is_on_the_disk_on_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    within = [tmp_path / "fresh" / "of a part" / "file", tmp_path / "fresh" / "file"] if step == "move a folder" else []
    for path in within:
        write_private(path, b"new", durable=False)
    if not within:
        (tmp_path / "fresh").write_bytes(b"new")
    before = [path.stat().st_ino for one in within for path in (one, one.parent)]
    flushed: list[tuple[int, int]] = []

    def look(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        named.append((tmp_path / "place").exists())

    named: list[bool] = []
    monkeypatch.setattr(os, "fsync", look)
    if step == "append":
        append(tmp_path / "fresh", b" and more")
        assert flushed == [((tmp_path / "fresh").stat().st_ino, len(b"new and more"))]
    else:
        move(tmp_path / "fresh", tmp_path / "place")
        # What a folder holds, each file before its folder, and all of it before it has the name.
        assert [inode for inode, _ in flushed] == [*before, tmp_path.stat().st_ino]
        assert named == [False] * len(before) + [True]
        assert (tmp_path / "place").exists()
