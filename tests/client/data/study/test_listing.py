"""Every name in a folder ends as a file or as a count with its reason."""

import os
from pathlib import Path

import pytest

from client.data.read import sources
from client.data.study.listing import LINK_TO_NOTHING, LINK_TO_SEEN, NO_FILE, NOT_LISTED, files_under, list_folder
from client.data.study.study import NO_IMAGE
from tests.client.data.studies import source, write_ct, write_pair


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    data, disk = tmp_path / "data", tmp_path / "disk"
    data.mkdir()
    for patient in ("p0", "p1"):
        write_ct(disk / patient, patient=patient)
        (data / patient).symlink_to(disk / patient)
    write_ct(data / "p2", patient="p2")
    found = sources.find(source(path="data"), tmp_path)
    assert [reference.patient for reference in found.references] == ["p0", "p1", "p2"]
    assert all(reference.labels for reference in found.references)
    assert found.left_out == {}


def test_links_in_a_circle_end_and_each_folder_is_looked_at_once_by_its_own_name(tmp_path: Path) -> None:
    write_pair(tmp_path / "zz", "a")
    for name in "abcdefgh":  # whatever comes first in the folder, it is most likely a link
        (tmp_path / name).symlink_to(tmp_path / "zz")
    (tmp_path / "zz" / "up").symlink_to(tmp_path)
    (tmp_path / "zz" / "self").symlink_to(tmp_path / "zz" / "self")
    listing = list_folder(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in listing.files] == ["zz/images/a.png", "zz/labels/a.png"]
    assert listing.unseen == {LINK_TO_SEEN: 9, LINK_TO_NOTHING: 1}


def test_links_to_nothing_are_counted(tmp_path: Path) -> None:
    """A DataLad data set before `datalad get`."""
    write_pair(tmp_path, "p0")
    for name in ("p1", "p2"):
        for folder in ("images", "labels"):
            (tmp_path / folder / f"{name}.png").symlink_to("../.git/annex/objects/none.png")
    found = sources.find(source(path="."), tmp_path)
    assert [reference.key for reference in found.references] == ["p0"]
    assert found.left_out == {LINK_TO_NOTHING: 4}


def test_folder_of_links_to_nothing_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to("nowhere")
    assert sources.find(source(path="."), tmp_path).left_out == {LINK_TO_NOTHING: 1}


def test_what_is_neither_file_nor_folder_is_counted_and_hidden_names_are_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    assert sources.find(source(path="."), tmp_path).left_out == {NO_FILE: 1, NO_IMAGE: 1}


def test_folder_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every folder can be listed, so the refusal of the kernel is played."""
    write_pair(tmp_path, "a")
    (tmp_path / "images" / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("client.data.study.listing.os.scandir", refuse)
    found = sources.find(source(path="."), tmp_path)
    assert (len(found.references), found.left_out) == (1, {NOT_LISTED: 1})


def test_files_come_sorted_whatever_the_order_of_the_disk(tmp_path: Path) -> None:
    for name in ("b/2", "a/9", "b/1", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert files_under(tmp_path) == sorted(tmp_path / name for name in ("a/9", "b/1", "b/2", "c"))
