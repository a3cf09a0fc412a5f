"""Processes change nothing about a model or a ledger, survive the death of a worker, and leave nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from client.site import Site
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import FederationError
from common.wire.frames import Frame
from common.wire.messages import EvaluateRequest, Request, TrainRequest
from server.federation.events import JOURNAL_NAME, Summary, read_events
from server.federation.rounds import federate
from simulations.backends import BACKENDS, Backend, Resources, forked, opened, started, worker
from simulations.backends import nursery as nursery_module
from simulations.backends.forked import ForkedWorker
from simulations.backends.nursery import Nursery
from simulations.backends.open_sites import OpenSites
from simulations.backends.processes import over
from simulations.backends.worker import Place
from simulations.backends.workers import AHEAD, ATTEMPTS, Job, Workers, chosen
from simulations.faults.faulty_grid import FaultyGrid
from simulations.faults.scaled import Scaled
from simulations.scenarios.homes import make_site
from tests.patience import PATIENCE_S, eventually
from tests.simulations.tiny import tiny_run, tiny_run_of_format, tiny_scenario, tiny_site

pytestmark = pytest.mark.slow
RUN = tiny_run()
_SHARED = Path("/dev/shm")  # noqa: S108 - looked at
PRIVATE = {"target-epsilon": 50.0, "sampling-rate": 0.3, "crops-per-patient": 1}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Loads what workers need once for all these tests."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    folder, counts = tmp_path_factory.mktemp("processes"), {"north": 5, "south": 29, "east": 17}
    return [make_site(folder, tiny_site(folder / "images" / name, name, count)) for name, count in counts.items()]


@pytest.fixture
def backend(nursery: Nursery) -> Iterator[Callable[[int], Backend]]:
    """The backend with so many workers, one thread each."""
    begun: list[Workers] = []

    def with_workers(count: int) -> Backend:
        begun.append(Workers(count, lambda: ForkedWorker(nursery)))
        return over(begun[-1], Resources(count, 1))

    yield with_workers
    for one in begun:
        one.stop()
        one.join()


def federated(backend: Backend, sites: list[Site], out: Path, run: RunConfig = RUN) -> Summary:
    with backend(sites, issue(run)) as grid:
        return federate(grid, issue(run), out)


def test_the_model_does_not_depend_on_the_number_of_workers(
    sites: list[Site], tmp_path: Path, backend: Callable[[int], Backend]
) -> None:
    one = federated(opened, sites, tmp_path / "one")
    assert [federated(backend(count), sites, tmp_path / str(count)).model_sha256 for count in (1, 2, 3)] == [
        one.model_sha256
    ] * 3
    journals = [read_events(tmp_path / name / JOURNAL_NAME) for name in ("one", "1", "3")]
    # In the order of the sites, however long each took.
    assert [[(event["event"], event.get("site")) for event in one] for one in journals[1:]] == [
        [(event["event"], event.get("site")) for event in journals[0]]
    ] * 2
    scores = [[event["dice"] for event in one if event["event"] == "evaluate"] for one in journals]
    assert scores[0] == scores[1] == scores[2]


def test_strategies_that_remember_and_own_models_work_wherever_a_site_works(
    sites: list[Site], tmp_path: Path, backend: Callable[[int], Backend]
) -> None:
    run = tiny_run_of_format(2, strategy={"kind": "ditto"}, federation={"rounds": 3}, training={"optimizer": "sgd"})
    usual = federated(opened, sites, tmp_path / "one", run)
    assert federated(backend(2), sites, tmp_path / "two", run).model_sha256 == usual.model_sha256
    own, other = (
        [event for event in read_events(tmp_path / name / JOURNAL_NAME) if event.get("phase") == "test"]
        for name in ("one", "two")
    )
    named = [key for key in own[0] if "personal" in key]
    assert named
    assert [[event[key] for key in named] for event in other[:3]] == [
        [event[key] for key in named] for event in own[:3]
    ]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_rounded_updates_are_the_same_wherever_a_site_works(
    sites: list[Site], tmp_path: Path, backend: Callable[[int], Backend], precision: str
) -> None:
    federation = {"rounds": 3, "update-precision": precision}
    run, plain = tiny_run_of_format(2, federation=federation), tiny_run(federation={"rounds": 3})
    usual = federated(opened, sites, tmp_path / "one", run)
    assert federated(backend(2), sites, tmp_path / "two", run).model_sha256 == usual.model_sha256
    assert usual.model_sha256 != federated(backend(2), sites, tmp_path / "plain", plain).model_sha256
    journals = [read_events(tmp_path / name / JOURNAL_NAME) for name in ("one", "plain")]
    small, large = (sum(event["bytes-up"] for event in one if event["event"] == "round") for one in journals)
    assert small <= {"bfloat16": 0.51, "int8": 0.26}[precision] * large


def test_a_fault_is_the_same_on_it(sites: list[Site], tmp_path: Path, backend: Callable[[int], Backend]) -> None:
    fault = Scaled(name="half", sites=("east", "south"), factor=0.5)

    def with_fault(opened: Backend, out: Path) -> str | None:
        with opened(sites, issue(RUN)) as grid:
            return federate(FaultyGrid(grid, fault, RUN), issue(RUN), out).model_sha256

    honest = federated(opened, sites, tmp_path / "honest").model_sha256
    assert with_fault(opened, tmp_path / "one") == with_fault(backend(2), tmp_path / "two") != honest


def test_a_model_goes_once_to_each_worker(
    sites: list[Site], tmp_path: Path, backend: Callable[[int], Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, bool]] = []
    to_frame = worker.question_to_frame

    def noted(*arguments: Any, **options: Any) -> Frame:
        frame = to_frame(*arguments, **options)
        sent.append((frame.header["kind"], "weights" in frame.parts))
        return frame

    monkeypatch.setattr(forked, "question_to_frame", noted)
    federated(backend(1), sites, tmp_path / "out", tiny_run(federation={"rounds": 1}))
    trained = [with_parts for kind, with_parts in sent if kind == "train"]
    scored = [with_parts for kind, with_parts in sent if kind == "evaluate"]
    assert trained == [True, False, False]
    assert scored[:3] == [True, False, False]


def killing(monkeypatch: pytest.MonkeyPatch, site: Site, times: int, ready: Callable[[], bool]) -> list[int]:
    """Workers that train for a site are killed, as soon as it is ready for that, the first times; which those were."""
    killed: list[int] = []
    ask, wait = ForkedWorker._ask, ForkedWorker._await
    asked: dict[ForkedWorker, Job] = {}

    def noted(self: ForkedWorker, job: Job, attempt: str) -> Any:
        asked[self] = job
        return ask(self, job, attempt)

    def waited(self: ForkedWorker, fd: int) -> None:
        job = asked[self]
        if job.site.home == site.home and isinstance(job.request, TrainRequest) and len(killed) < times:
            eventually(ready, "it is ready", every_s=0.005)
            killed.append(self._pid)
            os.kill(self._pid, signal.SIGKILL)
        wait(self, fd)

    monkeypatch.setattr(ForkedWorker, "_ask", noted)
    monkeypatch.setattr(ForkedWorker, "_await", waited)
    return killed


def test_a_worker_that_is_killed_is_replaced_and_its_round_is_paid_once(
    sites: list[Site], tmp_path: Path, backend: Callable[[int], Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the charge, before the update: as at a hospital, the charge pays for the next attempt."""
    run = tiny_run(privacy=PRIVATE, training={"local-steps": 40})
    south = sites[1]
    killed = killing(monkeypatch, south, 2, lambda: bool(south.ledger.entries()))
    summary = federated(backend(2), sites, tmp_path / "out", run)
    assert len(set(killed)) == 2
    assert summary.status == "completed"
    assert [event["sites"] for event in read_events(tmp_path / "out" / JOURNAL_NAME) if event["event"] == "round"] == [
        ["east", "north", "south"]
    ] * 2
    for site in sites:
        assert sorted(one.round for one in site.ledger.entries()) == [1, 2]
    first = min(south.ledger.entries(), key=lambda one: one.round)
    assert first.attempt.endswith(".2")  # the third attempt


def test_a_site_whose_workers_all_die_is_named(
    sites: list[Site], tmp_path: Path, backend: Callable[[int], Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(federation={"rounds": 1, "quorum": 2}, training={"local-steps": 40})
    killed = killing(monkeypatch, sites[0], ATTEMPTS, lambda: True)
    federated(backend(2), sites, tmp_path / "out", run)
    (round_,) = (event for event in read_events(tmp_path / "out" / JOURNAL_NAME) if event["event"] == "round")
    assert len(set(killed)) == ATTEMPTS
    assert (round_["sites"], round_["refused"]) == (["east", "south"], {"north": "worker-failed"})


def test_what_nobody_waits_for_is_given_up(
    sites: list[Site], tmp_path: Path, backend: Callable[[int], Backend]
) -> None:
    """An interrupted run leaves no site at work, and the next one finds the workers free."""
    several = backend(2)
    long = tiny_run(training={"local-steps": 10**6})

    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), several(sites, issue(long)) as grid:
        federate(grid, issue(long), tmp_path / "long", wake=stop)
    assert federated(several, sites, tmp_path / "out").status == "completed"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_stays_when_the_command_ends(tmp_path: Path, how: signal.Signals) -> None:
    scenario = tiny_scenario(tmp_path)
    scenario.write_text(scenario.read_text().replace("local-steps = 2", "local-steps = 1000000"))
    command = [sys.executable, "-m", "simulations.commands.main", "run", str(scenario), "--out", str(tmp_path / "out")]
    shared = set(_SHARED.iterdir())
    # A signal that a shell in the background lets its programs ignore would be ignored by the command too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([*command, "--backend", "processes"], start_new_session=True) as process:
        try:
            below = psutil.Process(process.pid)
            # The nursery, and two workers that have begun.
            while len(born := below.children(recursive=True)) < 3 or sum(_busy(one) for one in born) < 2:
                assert process.poll() is None
                time.sleep(0.1)
            os.killpg(process.pid, how)
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            signal.signal(signal.SIGINT, before)
    gone, alive = psutil.wait_procs(born, timeout=PATIENCE_S)
    assert not alive
    assert len(gone) == len(born)
    assert set(_SHARED.iterdir()) <= shared


NURSERY = """
import os, signal, sys
import scipy.linalg  # with numpy's, two OpenBLAS and their threads
from simulations.backends.nursery import Nursery
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
fork = os.fork
def interrupted():
    pid = fork()
    if not pid and "interrupted" in sys.argv:
        os.kill(os.getpid(), signal.SIGINT)
    return pid
os.fork = interrupted
try:
    nursery = Nursery()
    pid, _ = nursery.start()
    told = f"{nursery._process is None} {nursery.end(pid)}"
    nursery.close()
finally:
    os.write(1 if sys.stderr is None else 2, (told + "\\n").encode())
"""


def nursery_of(closing: str, *arguments: str) -> str:
    """What a program says that starts a nursery: whether that was forked, and how its worker ended."""
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", NURSERY, *arguments]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "3"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="nobody knows elsewhere whether there is one thread")
def test_the_nursery_is_forked_although_openblas_has_threads() -> None:
    assert nursery_of("") == "True -9\n"


@pytest.mark.skipif(sys.platform != "linux", reason="nobody knows elsewhere whether there is one thread")
def test_an_interrupt_while_a_process_is_forked_leaves_one_command() -> None:
    assert nursery_of("", "interrupted") == "True -9\n"


@pytest.mark.parametrize("closing", [">&-", "2>&-"])
def test_without_standard_output_or_error_it_is_started_anew(closing: str) -> None:
    assert nursery_of(closing) == "False -9\n"


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[socket.socket] = []

    def slow(control: socket.socket, _level: int) -> "subprocess.Popen[bytes]":
        ends.append(control.dup())
        return subprocess.Popen(["true"])

    monkeypatch.setattr(nursery_module, "_spawned", slow)
    monkeypatch.setattr(nursery_module, "_may_fork", lambda: False)
    late = Nursery()
    late._control.settimeout(0.05)
    for _ in range(2):
        with pytest.raises(FederationError, match="no worker could be started"):
            late.start()
        with contextlib.suppress(OSError):  # nobody listens any more
            ends[0].sendall(nursery_module._ANSWER.pack(7))
    late.close()
    ends[0].close()


def _busy(process: psutil.Process) -> bool:
    """Whether a process has trained for a while."""
    try:
        return bool(process.cpu_times().user > 0.5)
    except psutil.NoSuchProcess:
        return False


def job(home: str, kind: type[TrainRequest | EvaluateRequest] = TrainRequest) -> Job:
    site = Site(Path(home), None, None, b"")  # type: ignore[arg-type]  # it is not opened
    request = TrainRequest("", 1, {}) if kind is TrainRequest else EvaluateRequest("", 1, "test", {})
    return Job(site, issue(RUN), request, "a", Place(home, 1, 1, told=True))


def test_the_longest_goes_first_and_a_worker_keeps_its_sites() -> None:
    jobs = [job("a"), job("b"), job("c")]
    seconds: dict[tuple[Path, type[Request]], float]
    seconds = {(Path("a"), TrainRequest): 1.0, (Path("b"), TrainRequest): 9.0, (Path("c"), TrainRequest): 9.5}
    order: list[str] = []
    left = list(jobs)
    while left:
        left.remove(one := chosen(left, seconds, {}))
        order.append(one.site.home.name)
    assert order == ["b", "c", "a"]  # b and c take about as long: in their own order
    assert chosen(jobs, seconds, {Path("c"): None, Path("a"): None}).site.home.name == "c"
    assert chosen([*jobs, job("d")], seconds, {Path("c"): None}).site.home.name == "d"  # nobody knows how long
    scores = [job("a", EvaluateRequest), job("b", EvaluateRequest)]
    assert chosen(scores, {(Path("a"), EvaluateRequest): 1.0, (Path("b"), EvaluateRequest): 2.0}, {}) is scores[1]


def test_no_job_is_begun_long_before_the_turn_of_the_first_that_waits(nursery: Nursery) -> None:
    """Replies are taken in the order of the jobs: those that are ready before their turn are in memory."""
    some = Workers(1, lambda: ForkedWorker(nursery))
    jobs = [job(f"{number}") for number in range(3 * AHEAD)]
    some._seconds = {one.kind: 1.0 if one is jobs[0] else 9.0 for one in jobs}  # the first is the shortest
    some._waiting = list(jobs)
    begun: list[int] = []
    for _ in jobs:
        taken = some._take(ForkedWorker(nursery))
        assert taken is not None
        del some._at_work[taken]
        begun.append(jobs.index(taken))
    assert begun.index(0) == AHEAD - 1
    assert sorted(begun) == list(range(3 * AHEAD))


def test_studies_of_the_sites_that_worked_last_stay_as_far_as_they_fit(sites: list[Site]) -> None:
    held = [5 * 2400, 29 * 2400, 17 * 2400]  # bytes: 20 x 24 voxels of 4 and 1
    for most, stay in ((held[1] + held[2], [False, True, True]), (held[1] + held[2] - 1, [False, False, True])):
        for site in sites:
            site.cohort(RUN)
        assert [site.held_bytes for site in sites] == held
        kept = OpenSites(most_bytes=most)
        for site in (sites[1], sites[0], sites[1], sites[2]):
            kept.used(site)
        assert [site.has_read(RUN) for site in sites] == stay


@pytest.mark.parametrize(
    ("sites", "cores", "expected"), [(4, 2, "processes"), (1, 8, "in-process"), (4, 1, "in-process")]
)
def test_processes_are_used_where_two_sites_can_work_at_once(
    monkeypatch: pytest.MonkeyPatch, sites: int, cores: int, expected: str
) -> None:
    begun: list[str] = []
    for name in BACKENDS:
        monkeypatch.setitem(BACKENDS, name, lambda _resources, name=name: begun.append(name))
    started(None, sites, Resources(cores))
    assert begun == [expected]
