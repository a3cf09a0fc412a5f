"""A study is taken when it is whole: not sooner, not twice, not in pieces. Time stands still unless a test moves it."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.read.sources import find_images
from client.predict.dropfolder import Arrived, DropFolder
from common.errors import ErrorCode
from simulations.generators.phantoms import SCANNERS, WrittenSeries, write_study

SETTLE_S = 5.0


class Desk:
    """A drop folder with a clock, and who empties it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.known: set[str] = set()
        self.drop = DropFolder(folder, find_images, SETTLE_S, lambda: self.now)

    def look(self, after: float = 0.0) -> list[Arrived]:
        """Look, some seconds later."""
        self.now += after
        return list(self.drop.arrived(self.known, lambda: False))

    def take(self, after: float = 0.0) -> list[int]:
        """Look and do the work; returns the number of files of each study."""
        found = self.look(after)
        self.known |= {one.signature for one in found}
        return sorted(len(one.reference.images) for one in found)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "drop").mkdir()
    return Desk(tmp_path / "drop")


def _series(tmp_path: Path, patient: int, slices: int = 3) -> WrittenSeries:
    return write_study(
        tmp_path / f"archive-{patient}",
        scanner=SCANNERS["a"],
        seed=1,
        patient=patient,
        slices=slices,
        rows=16,
        labelled=False,
    )


def _copy(source: Path, target: Path, part: float = 1.0) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * part)])
    return target


def _picture(path: Path) -> Path:
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(path)
    return path


def test_study_that_comes_slice_by_slice_is_taken_once_and_whole(tmp_path: Path, desk: Desk) -> None:
    series = _series(tmp_path, 1, slices=4)
    for path in series.images:
        _copy(path, desk.folder / path.name)
        assert desk.take(after=SETTLE_S - 1) == []
    assert desk.take(after=SETTLE_S - 1) == []
    assert desk.take(after=1) == [4]
    assert desk.take(after=100) == []


def test_file_that_grows_slowly_holds_its_study_back(tmp_path: Path, desk: Desk) -> None:
    *first, last = _series(tmp_path, 1).images
    for path in first:
        _copy(path, desk.folder / path.name)
    desk.look()
    for part in (0.0, 0.1, 0.3, 0.9, 1.0):
        _copy(last, desk.folder / last.name, part)
        assert desk.take(after=SETTLE_S + 1) == []
    assert desk.take(after=SETTLE_S) == [3]


def test_arriving_study_does_not_hold_back_another_one(tmp_path: Path, desk: Desk) -> None:
    one, other = _series(tmp_path, 1), _series(tmp_path, 2)
    for path in one.images:
        _copy(path, desk.folder / f"one-{path.name}")
    desk.look()
    taken = []
    for path in other.images:
        _copy(path, desk.folder / f"other-{path.name}")
        taken.append(desk.take(after=SETTLE_S - 1))
    assert taken == [[], [3], []]
    assert desk.take(after=SETTLE_S) == [3]


def test_slices_that_come_late_make_the_whole_study_new(tmp_path: Path, desk: Desk) -> None:
    *first, last = _series(tmp_path, 1).images
    for path in first:
        _copy(path, desk.folder / path.name)
    desk.look()
    assert desk.take(after=SETTLE_S) == [2]
    _copy(last, desk.folder / last.name)
    desk.look()
    assert desk.take(after=SETTLE_S) == [3]


def test_loose_files_and_sub_folders_are_studies_of_their_own(tmp_path: Path, desk: Desk) -> None:
    for path in _series(tmp_path, 1).images:
        _copy(path, desk.folder / "a" / "deep" / path.name)
    for path in _series(tmp_path, 2, slices=2).images:
        _copy(path, desk.folder / path.name)
    _picture(desk.folder / "x.png")
    _picture(desk.folder / "y.pgm")
    (desk.folder / "letter.txt").write_text("no study")
    (desk.folder / ".hidden.png").write_bytes(b"")
    desk.look()
    assert desk.take(after=SETTLE_S) == [1, 1, 2, 3]


def test_broken_file_comes_with_its_problem_and_again_only_when_it_changes(desk: Desk) -> None:
    path = desk.folder / "broken.dcm"
    path.write_bytes(bytes(128) + b"DICM" + bytes(range(200)))
    desk.look()
    (found,) = desk.look(after=SETTLE_S)
    assert found.reference.problem is not None
    assert found.reference.problem.code == ErrorCode.UNREADABLE
    desk.known.add(found.signature)
    assert desk.take(after=100) == []
    path.write_bytes(path.read_bytes() + b"more")
    assert not desk.drop.is_unchanged(found)
    desk.look()
    assert desk.take(after=SETTLE_S) == [1]


def test_study_comes_back_until_it_is_known(tmp_path: Path, desk: Desk) -> None:
    path = _picture(desk.folder / "x.png")
    desk.look()
    assert [len(desk.look(after=SETTLE_S)) for _ in range(3)] == [1, 1, 1]
    assert desk.take() == [1]
    os.utime(path, ns=(1, 1))
    desk.look()
    assert desk.take(after=SETTLE_S) == [1], "another time of change is another signature"


def test_what_was_removed_is_forgotten(desk: Desk) -> None:
    path = _picture(desk.folder / "x.png")
    desk.look()
    (found,) = desk.look(after=SETTLE_S)
    path.unlink()
    assert not desk.drop.is_unchanged(found)
    assert desk.look() == []
    desk.folder.rmdir()  # as a network share that went away
    assert desk.look() == []


def test_look_ends_when_told_to_stop(desk: Desk) -> None:
    for name in ("x.png", "y.png"):
        _picture(desk.folder / name)
    desk.look()
    desk.now += SETTLE_S
    answers = iter([False, True])
    assert len(list(desk.drop.arrived((), lambda: next(answers)))) == 1
