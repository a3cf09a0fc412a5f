"""What may be written of what comes, when a study is whole, and which one never will be; however it came."""

from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, DeflatedExplicitVRLittleEndian

from client.pacs.arrivals.arriving import (
    CLASS_NOT_TAKEN,
    LONGEST_PAUSE_S,
    NO_ROOM,
    NOT_AS_BEFORE,
    NOT_UNDERSTOOD,
    STORED,
    SYNTAX_NOT_TAKEN,
    Arrivals,
    Limits,
    head_of,
)
from tests.client.pacs.objects import COUNT, encoded, object_of, uid_of

ALL = [object_of(number) for number in range(COUNT)]
PLENTY = Limits(spare=0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def took(coming: Arrivals, association: str, one: Dataset) -> int:
    return coming.take(association, encoded(one), head_of(encoded(one)))


def arrivals(folder: Path, clock: Clock, limits: Limits = PLENTY) -> Arrivals:
    return Arrivals(folder, 5.0, limits, clock)


def test_a_study_is_whole_when_its_association_is_released_and_it_is_quiet(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock)
    assert [took(coming, "a", one) for one in (*ALL, ALL[0])] == [STORED] * (COUNT + 1)
    clock.now += 30
    assert list(coming.finished()) == [], "its association is open"
    coming.ended("a")
    clock.now += 4
    assert list(coming.finished()) == [], "another association may bring more"
    clock.now += 1
    (one,) = coming.finished()
    assert (one.objects, one.repeated, one.problem) == (COUNT, 1, None)
    assert sorted(path.stem for path in (tmp_path / one.name).glob("*/*.dcm")) == [uid_of(n) for n in range(COUNT)]
    assert list(coming.finished()) == []


def test_an_association_that_is_kept_open_does_not_keep_a_study_for_ever(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock)
    took(coming, "a", ALL[0])
    clock.now += LONGEST_PAUSE_S
    assert [one.problem for one in coming.finished()] == [None]


def test_what_breaks_off_is_not_whole_unless_it_is_another_study(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock)
    took(coming, "a", ALL[0])
    took(coming, "b", object_of(0, study="1.2.4", series="1.2.4.1", uid="1.2.4.1.1"))
    coming.ended("a", "its association broke off")
    coming.ended("b")
    coming.ended("b", "its association broke off")  # the connection is closed after a release
    clock.now += 5
    assert [one.problem for one in coming.finished()] == ["its association broke off", None]


@pytest.mark.parametrize(
    ("limits", "objects", "status", "problem"),
    [
        (PLENTY, [ALL[0], object_of(0, value=9)], NOT_AS_BEFORE, "one object came twice with two contents"),
        (Limits(spare=0, objects=1), ALL[:2], NO_ROOM, "it is larger than is taken"),
        (Limits(spare=0, size=len(encoded(ALL[0]))), ALL[:2], NO_ROOM, "it is larger than is taken"),
        (Limits(spare=1 << 60), ALL[:1], NO_ROOM, "the disk is full"),
    ],
)
def test_a_study_of_which_an_object_is_refused_is_not_whole(
    tmp_path: Path, limits: Limits, objects: list[Dataset], status: int, problem: str
) -> None:
    clock = Clock()
    coming = arrivals(tmp_path, clock, limits)
    answers = [took(coming, "a", one) for one in objects]
    assert answers[-1] == status
    coming.ended("a")
    clock.now += 5
    assert [one.problem for one in coming.finished()] == [problem]


def test_studies_in_the_making_are_bounded_and_what_is_no_object_is_refused(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock, Limits(studies=1, spare=0))
    assert took(coming, "a", ALL[0]) == STORED
    assert took(coming, "b", object_of(0, study="1.2.4")) == NO_ROOM
    assert coming.take("a", b"", head_of(b"nothing that is DICOM")) == NOT_UNDERSTOOD
    assert coming.refused == 2
    with pytest.warns(UserWarning, match="VR UI"):  # pydicom's, that it is no UID
        assert took(coming, "c", object_of(1, study="../../x")) == NOT_UNDERSTOOD, "a name is no path"
    coming.ended("a")
    clock.now += 5
    assert [one.problem for one in coming.finished()] == ["an object came that is no DICOM object"]


def test_what_is_still_coming_is_waited_for_however_long_it_takes(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock)
    took(coming, "a", ALL[0])
    for _ in range(3):
        clock.now += LONGEST_PAUSE_S - 1
        coming.alive("a")
        coming.alive("another")
    assert list(coming.finished()) == []
    clock.now += LONGEST_PAUSE_S
    assert [one.objects for one in coming.finished()] == [1]


def test_an_object_of_another_class_is_refused_and_the_study_is_whole_without_it(tmp_path: Path, clock: Clock) -> None:
    coming, report = arrivals(tmp_path, clock), object_of(9)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    assert [took(coming, "a", one) for one in (report, *ALL)] == [CLASS_NOT_TAKEN, *[STORED] * COUNT]
    coming.ended("a")
    clock.now += 5
    assert [(one.objects, one.problem) for one in coming.finished()] == [(COUNT, None)]
    assert coming.refused == 1


def test_an_image_that_cannot_be_read_later_leaves_no_study_of_its_association_whole(
    tmp_path: Path, clock: Clock
) -> None:
    coming, packed = arrivals(tmp_path, clock), object_of(0)
    packed.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert [took(coming, "a", one) for one in (packed, *ALL[1:])] == [SYNTAX_NOT_TAKEN, *[STORED] * (COUNT - 1)]
    took(coming, "b", object_of(0, study="1.2.4"))
    for association in ("a", "b"):
        coming.ended(association)
    clock.now += 5
    told = [one.problem for one in coming.finished()]
    assert told == ["an image came in a transfer syntax that is not taken", None]
    took(coming, "a", ALL[0])
    coming.ended("a")
    clock.now += 5
    assert [one.problem for one in coming.finished()] == [None], "it is forgotten with its association"
