"""The queue: places are bounded and come back, what is finished goes after a while, and with its last file."""

import stat
from pathlib import Path

import pytest

from client.serve.jobs import BusyError, Job, Jobs, State, StoppingError
from common.errors import ErrorCode


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(tmp_path: Path, clock: Clock) -> Jobs:
    return Jobs(tmp_path, places=2, keep_s=60.0, clock=clock)


def finished(jobs: Jobs, files: int = 1) -> Job:
    job = jobs.reserve()
    job.studies.mkdir()
    (job.studies / "image").write_bytes(b"patient")
    jobs.enqueue(job)
    assert jobs.take(0.0) is job
    job.results.mkdir()
    for number in range(files):
        path = job.results / str(number)
        path.write_bytes(b"result")
        job.files[str(number)] = path
    jobs.finish(job, {"found": 1})
    return job


def test_places_are_counted_from_the_upload_to_the_end_of_the_work(jobs: Jobs) -> None:
    first, second = jobs.reserve(), jobs.reserve()
    with pytest.raises(BusyError):
        jobs.reserve()
    jobs.forget(first)  # the upload broke off
    third = jobs.reserve()
    for job in (second, third):
        jobs.enqueue(job)
    assert [jobs.position(job) for job in (second, third)] == [0, 1]
    assert jobs.take(0.0) is second
    with pytest.raises(BusyError):
        jobs.reserve()
    jobs.finish(second, {})
    assert jobs.reserve().state is State.RECEIVING


def test_only_the_owner_can_look_into_a_jobs_folder(jobs: Jobs) -> None:
    assert stat.S_IMODE(jobs.reserve().folder.stat().st_mode) == 0o700


def test_job_that_is_forgotten_while_it_waits_is_not_worked_on(jobs: Jobs, tmp_path: Path) -> None:
    job, other = jobs.reserve(), jobs.reserve()
    for one in (job, other):
        jobs.enqueue(one)
    jobs.forget(job)
    assert job.ended.done()  # who waits for it is told
    assert jobs.position(other) == 0
    assert jobs.take(0.0) is other
    assert jobs.take(0.0) is None
    assert list(tmp_path.iterdir()) == [other.folder]


def test_images_go_with_the_work_and_results_when_they_are_fetched(jobs: Jobs, tmp_path: Path) -> None:
    job = finished(jobs, files=2)
    assert not job.studies.exists()
    assert jobs.find(job.name) is job
    assert jobs.fetch(job, "0") == b"result"
    assert [path.name for path in job.results.iterdir()] == ["1"]
    assert jobs.fetch(job, "0") is None
    assert jobs.fetch(job, "../1") is None
    assert jobs.fetch(job, "1") == b"result"
    assert jobs.find(job.name) is None
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_fetches_goes_after_its_time(jobs: Jobs, clock: Clock, tmp_path: Path) -> None:
    job = finished(jobs)
    clock.now = 59.0
    assert jobs.find(job.name) is job
    clock.now = 60.0
    assert jobs.find(job.name) is None
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_the_newest_finished_are_kept(jobs: Jobs, clock: Clock, tmp_path: Path) -> None:
    made = []
    for second in range(40):
        clock.now = second
        made.append(finished(jobs))
    assert [jobs.find(job.name) is not None for job in made] == [False] * 8 + [True] * 32
    assert len(list(tmp_path.iterdir())) == 32


def test_job_that_is_forgotten_while_it_is_worked_on_leaves_nothing(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.reserve()
    jobs.enqueue(job)
    jobs.take(0.0)
    jobs.forget(job)
    assert job.folder.exists()  # under the hands of the worker
    jobs.finish(job, {})
    assert list(tmp_path.iterdir()) == []
    assert jobs.find(job.name) is None


def test_a_stop_takes_nothing_more_and_fails_what_waits(tmp_path: Path) -> None:
    signals: list[int] = []
    jobs = Jobs(tmp_path, places=2, keep_s=60.0, stopped=lambda: bool(signals))
    job, late = jobs.reserve(), jobs.reserve()
    jobs.enqueue(job)
    signals.append(15)
    with pytest.raises(StoppingError):
        jobs.enqueue(late)  # its upload came to an end when the work had
    with pytest.raises(StoppingError):
        jobs.reserve()
    jobs.abandon()
    assert job.problem is not None
    assert job.problem[0] == ErrorCode.DEADLINE
    assert job.ended.done()


def test_names_cannot_be_guessed(jobs: Jobs) -> None:
    names = []
    for _ in range(50):
        job = jobs.reserve()
        names.append(job.name)
        jobs.forget(job)
    assert len(set(names)) == 50
    assert all(len(name) >= 22 for name in names)  # 128 bits in base64
