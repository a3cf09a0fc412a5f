"""What parses can hang, crash, eat memory or lie: one study is refused, and everything else goes on."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.data.isolate import child, pool
from client.data.isolate.isolation import Job, ReaderError, Readers, Reading
from client.data.isolate.pool import Pool
from client.data.read import sources
from client.data.study.study import Reference
from common.errors import DataError, ErrorCode
from tests.client.data.studies import source, write_pair
from tests.patience import PATIENCE_S

LIMIT_S = 10.0  # where a file holds its reader up
HOSTILE = Path(__file__).with_name("hostile_reader.py")


def study(folder: Path, name: str, *orders: str) -> Job:
    """A study of some files that tell the hostile reader what to do."""
    folder.mkdir(exist_ok=True)
    paths = tuple(folder / f"{name}-{number}" for number in range(len(orders)))
    for path, order in zip(paths, orders, strict=True):
        path.write_text(order)
    return Job(Reference("images", "P", name, paths), None)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers as in `hostile_reader`."""
    monkeypatch.setattr(child, "_COMMAND", (sys.executable, "-P", str(HOSTILE)))


def one(job: Job, *, memory: int = 1 << 30, limit_s: float = PATIENCE_S) -> Reading | DataError:
    with Readers(1, memory=memory, file_limit_s=limit_s) as readers:
        (outcome,) = readers.read([job])
    return outcome


def assert_refused(outcome: Reading | DataError, code: ErrorCode, text: str) -> None:
    assert isinstance(outcome, DataError)
    assert (outcome.code, text in str(outcome)) == (code, True), str(outcome)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("count", [1, 2])
def test_bad_studies_are_refused_and_the_good_ones_come_in_order(tmp_path: Path, count: int) -> None:
    orders = ["fine", "segfault", "fine", "hang", "exit", "fine", "fine", "segfault"]
    jobs = [study(tmp_path, str(number), *[order] * (number + 1)) for number, order in enumerate(orders)]
    with Readers(count, file_limit_s=LIMIT_S) as readers:
        outcomes = list(readers.read(jobs))
        assert readers.deaths == 4
    for number, (order, outcome) in enumerate(zip(orders, outcomes, strict=True)):
        if order == "fine":
            assert isinstance(outcome, Reading)
            assert outcome.study.image[0, 0, 0] == number + 1
            assert (outcome.study.patient, outcome.study.key) == ("P", str(number))  # ours, not the child's
        else:
            expected = f"longer than {LIMIT_S:g} s" if order == "hang" else "its reader crashed"
            assert_refused(outcome, ErrorCode.UNREADABLE, expected)


@pytest.mark.usefixtures("hostile")
def test_child_that_the_kernel_killed_ran_out_of_memory_and_the_next_study_is_read(tmp_path: Path) -> None:
    jobs = [study(tmp_path, "large", "kill"), study(tmp_path, "small", "fine")]
    with Readers(1, file_limit_s=PATIENCE_S) as readers:
        large, small = readers.read(jobs)
    assert_refused(large, ErrorCode.OUT_OF_MEMORY, "not enough memory")
    assert isinstance(small, Reading)


@pytest.mark.usefixtures("hostile")
def test_limit_of_time_is_for_a_file_not_for_a_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file takes 100 s by the clock that counts, and may take 190 s."""
    late, wait = [0.0], Pool._wait

    def after_long(self: Pool, busy: Sequence[child.Child]) -> list[child.Child]:
        late[0] += 100.0
        return wait(self, busy)

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
    monkeypatch.setattr(child, "time", clock)
    monkeypatch.setattr(pool, "time", clock)
    monkeypatch.setattr(Pool, "_wait", after_long)
    assert isinstance(one(study(tmp_path, "long", *["fine"] * 10), limit_s=190.0), Reading)
    assert late[0] >= 1000.0


@pytest.mark.usefixtures("hostile")
def test_memory_has_a_limit(tmp_path: Path) -> None:
    too_much = one(study(tmp_path, "a", f"eat {3 << 30}"), memory=1 << 30)
    assert_refused(too_much, ErrorCode.OUT_OF_MEMORY, "not enough memory")
    little = one(study(tmp_path, "b", f"eat {1 << 26}"), memory=1 << 30)
    assert_refused(little, ErrorCode.UNREADABLE, "ate 64 MiB")


LIES = ["spacing", "affine", "order", "order negative", "axes", "label unasked", "kind", "problem"]
LIES += ["padding", "padding untold", "size", "negative", "dtype", "garbage", "beats"]


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("what", LIES)
def test_answer_that_breaks_the_rules_is_a_crash_and_takes_no_memory(tmp_path: Path, what: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Readers(1, file_limit_s=PATIENCE_S) as readers:
        outcomes = list(readers.read([study(tmp_path, "a", f"lie {what}"), study(tmp_path, "b", "fine")]))
        assert readers.deaths == 1
    assert_refused(outcomes[0], ErrorCode.UNREADABLE, "its reader crashed")
    assert isinstance(outcomes[1], Reading)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.usefixtures("hostile")
def test_half_a_frame_does_not_hold_us(tmp_path: Path) -> None:
    assert isinstance(one(study(tmp_path, "a", "lie dribble"), limit_s=1.0), DataError)


@pytest.mark.usefixtures("hostile")
def test_text_of_a_child_cannot_drive_a_terminal(tmp_path: Path) -> None:
    outcome = one(study(tmp_path, "a", "lie terminal"))
    assert_refused(outcome, ErrorCode.UNREADABLE, "cleared")
    assert str(outcome).isprintable()
    assert len(str(outcome)) <= 2000


@pytest.mark.usefixtures("hostile")
def test_what_a_parser_raises_crosses_as_a_code_and_a_sentence(tmp_path: Path) -> None:
    outcome = one(study(tmp_path, "a", "raise"))
    assert_refused(outcome, ErrorCode.UNREADABLE, "this study could not be decoded")
    assert "SECRET" not in str(outcome)


@pytest.mark.usefixtures("hostile")
def test_child_has_no_secret_no_network_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "WARDROUND_SITE_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret")
    told = str(one(study(tmp_path, "a", "environment")))
    assert "OPENBLAS_NUM_THREADS" in told
    assert not any(name in told for name in ("SECRET", "SITE_KEY", "PROXY"))
    assert_refused(one(study(tmp_path, "b", f"write {tmp_path / 'file'}")), ErrorCode.UNREADABLE, "write: OSError")
    assert (tmp_path / "file").read_bytes() == b""
    assert isinstance(one(study(tmp_path, "c", "print")), Reading)
    assert "SECRET" not in "".join(capfd.readouterr())
    if sys.platform == "linux" and subprocess.run(["unshare", "-Urn", "true"], check=False).returncode == 0:
        with socket.create_server(("127.0.0.1", 0)) as server:
            outcome = one(study(tmp_path, "d", f"network {server.getsockname()[1]}"))
        assert_refused(outcome, ErrorCode.UNREADABLE, "connect:")


@pytest.mark.usefixtures("hostile")
def test_few_studies_are_in_flight_while_the_first_one_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes until nobody else has work."""
    monkeypatch.setattr(pool, "_WORTH_STARTING_S", -1.0)
    go_on, wait = tmp_path / "go-on", Pool._wait

    def when_alone(self: Pool, busy: Sequence[child.Child]) -> list[child.Child]:
        if self.started == 2 and len(busy) == 1:
            go_on.touch()
        return wait(self, busy)

    monkeypatch.setattr(Pool, "_wait", when_alone)
    jobs = [
        study(tmp_path, "0", f"until {go_on}"),
        *(study(tmp_path, str(number), "fine") for number in range(1, 9)),
    ]
    with Readers(2, file_limit_s=PATIENCE_S) as readers:
        outcomes = readers.read(jobs)
        next(outcomes)
        assert readers.started == 2
        for job in jobs[3:]:  # what was read by now was read too early
            job.reference.images[0].write_text("raise")
        rest = list(outcomes)
    assert [isinstance(outcome, Reading) for outcome in rest] == [True] * 2 + [False] * 6


@pytest.mark.usefixtures("hostile")
def test_children_end_with_the_context_also_in_the_middle_of_work(tmp_path: Path) -> None:
    before = _children()
    with Readers(2, file_limit_s=PATIENCE_S) as readers:
        outcomes = readers.read([study(tmp_path, "a", "fine"), study(tmp_path, "b", "hang")])
        next(outcomes)
        assert _children() > before
        assert isinstance(outcomes, Generator)
        outcomes.close()
    assert _children() == before


def _children() -> set[str]:
    """Process ids of our readers."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rsplit(")", 1)[1].split()[1] == str(os.getpid()):
                found.add(path.parent.name)
        except OSError:
            continue
    return found


def test_nothing_is_parsed_when_no_child_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, "p1")
    jobs = [Job(reference, None) for reference in sources.find(source(path="."), tmp_path).references]
    for command in (("/nonexistent/python",), ("/bin/false",), ("/bin/echo", "hello")):
        monkeypatch.setattr(child, "_COMMAND", command)
        with Readers(1) as readers, pytest.raises(ReaderError, match="could not be started"):
            list(readers.read(jobs))
