import datetime
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from common.config import RunConfig, sha256_of
from common.config.rundocument import from_bundle, from_text, from_toml, issue
from common.errors import FederationError
from common.flower import calls
from common.identity import certificates
from common.wire.endings import Ending
from server.coordinator.doors import read_processes, write_processes
from server.coordinator.runs import MAX_STARTS, Runs
from server.federation.liveness import has_died, on_their_way
from server.home.folder import Home
from server.registry import store
from server.registry.registry import Registry
from server.views.watch import state_line
from tests import ROOT
from tests.patience import eventually
from tests.server.coordinators import RUN, RUN_TOML, enrol, new_home, signed

HASH = sha256_of(RUN)


class SuperLink:
    """Stands in for the control calls of common/flower/calls.py."""

    def __init__(self) -> None:
        self.started: list[bytes] = []
        self.live: set[int] = set()
        self.away = False
        self.meanwhile: Callable[[], object] = lambda: None  # happens while a ServerApp is being started

    def start_run(self, _port: int, bundle: bytes) -> int:
        if self.away:
            raise FederationError("away")
        self.started.append(bundle)
        self.live.add(len(self.started))
        self.meanwhile()
        return len(self.started)

    def run_is_live(self, _port: int, run_id: int) -> bool:
        return run_id in self.live

    def stop_run(self, _port: int, run_id: int) -> None:
        self.live.discard(run_id)

    def stop_runs_of(self, _port: int, bundle: bytes) -> None:
        self.live -= {run_id for run_id in self.live if self.started[run_id - 1] == bundle}


@pytest.fixture
def superlink(monkeypatch):
    fake = SuperLink()
    for name in ("start_run", "run_is_live", "stop_run", "stop_runs_of"):
        monkeypatch.setattr(calls, name, getattr(fake, name))
    return fake


@pytest.fixture
def clock(monkeypatch):
    """Monotonic seconds, moved by hand."""
    seconds = [1000.0]
    monkeypatch.setattr("server.coordinator.runs.time.monotonic", lambda: seconds[0])
    return seconds


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path / "home")


@pytest.fixture
def registry(home):
    registry = Registry(home.registry)
    for name in ("a", "b", "c"):
        enrol(home, registry, name)
    registry.propose(from_toml(RUN_TOML), ())
    return registry


@pytest.fixture
def running(home, registry, superlink, clock):
    registry.answer(HASH, "a", approved=True)
    registry.answer(HASH, "b", approved=True)
    runs = Runs(home, registry)
    runs.step()
    return runs


def summary(home: Home, status: str, reason: str | None = None) -> None:
    folder = home.run_folder(issue(RUN))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"status": status, "reason": reason}))


def test_a_run_starts_when_its_quorum_has_approved_and_not_before(home, registry, superlink):
    runs = Runs(home, registry)
    registry.answer(HASH, "a", approved=True)
    registry.answer(HASH, "c", approved=False)
    assert runs.step() == set()
    registry.answer(HASH, "b", approved=True)
    assert runs.step() == {1}
    assert superlink.started == [registry.proposal(HASH).bundle]


def test_a_run_that_goes_on_is_parsed_once_however_often_it_is_looked_at(home, registry, superlink, clock, monkeypatch):
    """Its text and its run.toml; in a process that has never seen it."""
    for remembered in (from_bundle, from_text):
        remembered.cache_clear()
    parsed, validate = [], RunConfig.model_validate

    def counted(*some, **more):
        parsed.append(1)
        return validate(*some, **more)

    monkeypatch.setattr(RunConfig, "model_validate", counted)
    registry.answer(HASH, "a", approved=True)
    registry.answer(HASH, "b", approved=True)
    runs = Runs(home, registry)
    for _ in range(20):
        assert runs.step() == {1}
        clock[0] += 5.0
        assert state_line(registry, registry.proposal(HASH))
    assert len(parsed) == 2


def test_the_approval_of_a_revoked_site_does_not_count(home, registry, superlink):
    registry.answer(HASH, "a", approved=True)
    registry.answer(HASH, "b", approved=True)
    registry.revoke("b")
    assert Runs(home, registry).step() == set()
    assert "1 of 2 approvals; waiting for c" in state_line(registry, registry.proposal(HASH))
    registry.revoke("c")
    assert "1 of 2 approvals; 1 site is enrolled, fewer than its quorum; waiting" in state_line(
        registry, registry.proposal(HASH)
    )


def test_approvals_are_waited_for_without_a_clock(home, registry, superlink, monkeypatch):
    runs = Runs(home, registry)
    registry.answer(HASH, "a", approved=True)
    registry.answer(HASH, "c", approved=False)
    weeks_later = certificates.now() + datetime.timedelta(weeks=6)
    monkeypatch.setattr(certificates, "now", lambda: weeks_later)
    runs.step()
    waiting = registry.proposal(HASH)
    assert waiting.state == "proposed"
    assert "1 of 2 approvals; denied by c; waiting for b" in state_line(registry, waiting)
    registry.answer(HASH, "b", approved=True)
    assert runs.step() == {1}


def test_a_run_that_too_many_policies_refuse_does_not_hang_and_can_be_resumed(home, registry, superlink):
    runs = Runs(home, registry)
    registry.answer(HASH, "a", approved=True)
    assert registry.answer(HASH, "b", approved=False, code="policy-refused")
    assert not registry.answer(HASH, "b", approved=False, code="policy-refused")
    runs.step()
    waiting = registry.proposal(HASH)
    assert waiting.state == "proposed"
    assert "refused by the policy of b (policy-refused); waiting for c" in state_line(registry, waiting)
    registry.answer(HASH, "c", approved=False)
    runs.step()
    closed = registry.proposal(HASH)
    assert closed.state == "failed"
    assert "refused by the policy of b (policy-refused); denied by c" in closed.reason
    assert closed.ending == Ending("failed", "too-few-sites", 0)
    registry.reopen(HASH, signed(home, registry, "resume", HASH))
    runs.step()
    assert registry.proposal(HASH).state == "proposed"
    registry.answer(HASH, "b", approved=True)
    assert registry.proposal(HASH).refused == {}
    assert runs.step() == {1}


def test_a_run_is_completed_when_its_summary_says_so(home, registry, running):
    summary(home, "running")
    assert running.step() == {1}
    summary(home, "completed")
    assert running.step() == set()
    assert registry.proposal(HASH).state == "completed"


def test_a_failed_run_keeps_its_reason(home, registry, running):
    summary(home, "failed", "NaN from b")
    running.step()
    assert (registry.proposal(HASH).state, registry.proposal(HASH).reason) == ("failed", "NaN from b")
    assert registry.proposal(HASH).ending == Ending("failed", "", 0)  # of an earlier version's summary


def test_hospitals_are_told_how_a_run_ended_and_after_how_many_rounds(home, registry, running):
    folder = home.run_folder(issue(RUN))
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"event": "round", "round": number}) for number in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"event": "run-failed"})]))
    (folder / "summary.json").write_text(json.dumps({"status": "failed", "reason": "x", "code": "too-few-updates"}))
    running.step()
    assert registry.proposal(HASH).ending == Ending("failed", "too-few-updates", 2)


def test_a_server_app_that_died_is_started_again_but_not_for_ever(registry, running, superlink, clock):
    for _ in range(200):
        superlink.live.clear()
        clock[0] += 10.0
        running.step()
    assert len(superlink.started) == MAX_STARTS
    assert registry.proposal(HASH).state == "failed"
    assert f"ended {MAX_STARTS} times without completing a round" in registry.proposal(HASH).reason
    assert registry.proposal(HASH).ending == Ending("failed", "internal", 0)


def complete_a_round(home: Home, number: int) -> None:
    (home.run_folder(issue(RUN)) / "checkpoint" / f"round-{number:05d}").mkdir(parents=True)


def test_ten_starts_of_a_coordinator_leave_a_healthy_run_going(home, registry, running, superlink, clock):
    for _ in range(10):
        superlink.live.clear()  # a new SuperLink knows no run
        again = Runs(home, registry)
        for _ in range(5):
            clock[0] += 10.0
            again.step()
        assert registry.proposal(HASH).state == "running"
    assert len(superlink.started) == 11


def test_deaths_with_rounds_between_them_do_not_count(home, registry, running, superlink, clock):
    for number in range(1, 3 * MAX_STARTS):
        complete_a_round(home, number)
        superlink.live.clear()
        for _ in range(5):
            clock[0] += 10.0
            running.step()
    assert registry.proposal(HASH).state == "running"
    for _ in range(200):  # and from now on none is completed
        superlink.live.clear()
        clock[0] += 10.0
        running.step()
    assert registry.proposal(HASH).state == "failed"
    assert len(superlink.started) == 3 * MAX_STARTS + MAX_STARTS - 1


HOLDER = """
import sys, time
from pathlib import Path
from server.federation.liveness import alive
with alive(Path(sys.argv[1]), int(sys.argv[2])):
    print("here", flush=True)
    time.sleep(600)
"""


def server_app(home: Home, run_id: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(home.run_folder(issue(RUN))), str(run_id)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def test_a_killed_server_app_is_noticed_at_once_though_flower_believes_in_it(home, registry, running, superlink, clock):
    process = server_app(home, run_id=1)
    clock[0] += 2.5
    assert running.step() == {1}
    process.kill()
    process.wait()
    assert superlink.live == {1}
    clock[0] += 0.5
    running.step()
    assert superlink.live == set()
    clock[0] += 1.5
    assert running.step() == {2}
    clock[0] += 10.0
    assert running.step() == {2}, "the lock that the first has left is not the second's"


# As Flower's SuperExec, which never waits for its children: starts one for each line, and says its process id.
SUPEREXEC = """
import subprocess, sys
children = []
for line in sys.stdin:
    command = [sys.executable, "-c", "import time; time.sleep(600)", "flwr-serverapp"]
    children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
    print(children[-1].pid, flush=True)
for child in children:
    child.kill()
"""


@pytest.fixture
def loading(home):
    """Has a ServerApp loaded, which never begins; ends the one it is given."""
    superexec = subprocess.Popen(
        [sys.executable, "-c", SUPEREXEC], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert superexec.stdin is not None
    assert superexec.stdout is not None
    orders, told = superexec.stdin, superexec.stdout
    write_processes(home, {"superexec": superexec.pid})

    def start() -> int:
        orders.write("\n")
        orders.flush()
        return int(told.readline())

    yield start
    orders.close()
    superexec.wait()


def killed(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    eventually(lambda: process.status() == psutil.STATUS_ZOMBIE, "it is dead")


def test_server_app_that_dies_before_it_takes_its_lock_is_noticed_within_five_seconds(
    running, superlink, clock, loading
):
    pid = loading()
    clock[0] += 1.0
    assert running.step() == {1}
    killed(pid)
    for _ in range(8):  # seconds / 2
        clock[0] += 0.5
        running.step()
    assert superlink.live == {2}, "Flower believes in the first for a minute"


def test_server_app_that_is_loaded_slowly_is_waited_for(home, running, superlink, clock, loading):
    loading()
    for _ in range(200):
        clock[0] += 0.5
        assert running.step() == {1}
    assert len(superlink.started) == 1


def test_server_app_that_nobody_has_seen_yet_is_not_given_up(running, superlink, clock, loading):
    for _ in range(20):
        clock[0] += 0.5
        assert running.step() == {1}
    assert len(superlink.started) == 1


def test_server_app_that_holds_the_lock_of_its_run_is_not_on_its_way(home, loading):
    loading()
    holder = server_app(home, run_id=1)
    superexec = read_processes(home)["superexec"]
    assert on_their_way(superexec, []) == 1
    assert on_their_way(superexec, [home.run_folder(issue(RUN))]) == 0
    holder.kill()
    holder.wait()


def test_a_second_server_app_of_a_run_waits_for_the_first_to_end(home, registry, running):
    first = server_app(home, run_id=1)
    threading.Timer(0.5, first.kill).start()
    second = server_app(home, run_id=2)
    assert first.wait(0) is not None
    assert has_died(home.run_folder(issue(RUN)), 1) is False
    second.kill()
    second.wait()
    assert has_died(home.run_folder(issue(RUN)), 2)


def test_a_summary_written_at_the_last_moment_counts(home, registry, running, superlink, clock):
    superlink.live.clear()
    clock[0] += 10.0
    running.step()
    summary(home, "completed")
    clock[0] += 10.0
    running.step()
    assert registry.proposal(HASH).state == "completed"
    assert len(superlink.started) == 1


def test_a_stopped_run_is_stopped_at_the_superlink(registry, running, superlink):
    registry.close(HASH, "stopped")
    assert running.step() == set()
    assert not superlink.live
    assert registry.unfinished() == []


def test_run_that_is_resumed_before_anybody_saw_that_it_was_stopped_has_one_server_app(
    home, registry, running, superlink
):
    registry.close(HASH, "stopped", act=signed(home, registry, "stop", HASH))
    registry.reopen(HASH, signed(home, registry, "resume", HASH))
    assert running.step() == {2}
    assert superlink.live == {2}


def test_run_that_is_stopped_while_its_server_app_is_started_has_none(home, registry, superlink):
    registry.answer(HASH, "a", approved=True)
    registry.answer(HASH, "b", approved=True)
    superlink.meanwhile = lambda: registry.close(HASH, "stopped", act=signed(home, registry, "stop", HASH))
    runs = Runs(home, registry)
    assert (runs.step(), runs.step()) == (set(), set())
    assert superlink.live == set()


def test_server_app_that_a_locked_registry_does_not_learn_of_is_ended_before_another_is_started(
    home, registry, superlink, monkeypatch
):
    registry.answer(HASH, "a", approved=True)
    registry.answer(HASH, "b", approved=True)
    # One that waits for nobody; a backup program holds the file from the moment at which the ServerApp is there.
    monkeypatch.setattr(store, "PATIENCE_S", 0.2)
    holder = sqlite3.connect(home.registry, isolation_level=None)
    superlink.meanwhile = lambda: holder.execute("BEGIN IMMEDIATE")
    runs = Runs(home, Registry(home.registry))
    runs.step()
    assert registry.proposal(HASH).state == "proposed"
    holder.execute("ROLLBACK")
    superlink.meanwhile = lambda: None
    assert runs.step() == {2}
    assert superlink.live == {2}


def test_an_interruption_noted_as_failure_is_forgiven_after_a_restart(home, registry, running, superlink, clock):
    superlink.live.clear()
    summary(home, "failed", "interrupted")
    again = Runs(home, registry)
    for _ in range(5):
        clock[0] += 10.0
        again.step()
    assert registry.proposal(HASH).state == "running"
    assert len(superlink.started) == 2


def test_a_resumed_run_starts_over_without_its_old_verdict(home, registry, running, superlink):
    summary(home, "failed", "no quorum")
    running.step()
    registry.reopen(HASH, signed(home, registry, "resume", HASH))
    running.step()
    assert registry.proposal(HASH).state == "running"
    assert len(superlink.started) == 2


def test_a_superlink_that_is_away_is_waited_for(home, registry, superlink):
    registry.answer(HASH, "a", approved=True)
    registry.answer(HASH, "b", approved=True)
    runs = Runs(home, registry)
    superlink.away = True
    assert runs.step() == set()
    superlink.away = False
    assert runs.step() == {1}
