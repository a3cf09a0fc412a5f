"""The ledger, with real processes that are killed or charge at once. What its file shows: test_journal.py."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import epsilon, noise_multiplier_for
from common.privacy.journal import Rows
from common.privacy.ledger import Ledger
from tests.patience import PATIENCE_S

KEY = bytes(range(32))
DELTA = 1e-3
ROUND = {"noise_multiplier": 2.0, "sampling_rate": 0.25, "steps": 10, "delta": DELTA}

CHARGE_FOREVER = """
import sys
from pathlib import Path
from common.privacy.journal import Rows
from common.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), bytes(range(32)))
for round_ in range(1, 100_000):
    ledger.charge("cohort", sys.argv[2], round_, "1", noise_multiplier=2.0, sampling_rate=0.25, steps=10, delta=1e-3,
                  lifetime_epsilon=None)
    print(round_, flush=True)
"""

CHARGE_A_RUN = """
import sys
from pathlib import Path
from common.errors import PrivacyError
from common.privacy.journal import Rows
from common.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), bytes(range(32)))
charged = 0
try:
    for round_ in range(1, 11):
        ledger.charge("cohort", sys.argv[2], round_, "1", noise_multiplier=2.0, sampling_rate=0.25, steps=10,
                      delta=1e-3, lifetime_epsilon=float(sys.argv[3]), rounds=11 - round_)
        charged += 1
except PrivacyError as error:
    pass
print(charged)
"""

CHARGE_UNTIL_REFUSED = """
import sys
from pathlib import Path
from common.errors import PrivacyError
from common.privacy.journal import Rows
from common.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), bytes(range(32)))
charged = 0
try:
    for round_ in range(1, 100):
        ledger.charge("cohort", sys.argv[2], round_, "1", noise_multiplier=2.0, sampling_rate=0.25, steps=10,
                      delta=1e-3, lifetime_epsilon=float(sys.argv[3]))
        charged += 1
except PrivacyError as error:
    print(charged, error.code)
"""


# Four threads that ask for the same attempt at once.
TAKE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from common.errors import PrivacyError
from common.privacy.journal import Rows
from common.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), bytes(range(32)))
def take(_):
    try:
        ledger.begin("cohort", "run", int(sys.argv[2]), "1")
        return "taken"
    except PrivacyError as error:
        return error.code
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(4) as pool:
    print(*pool.map(take, range(4)), sep="\\n")
"""

# Charges, and is killed by itself when the taking comes to the given statement.
TAKE_AND_DIE = """
import os, signal, sqlite3, sys
from pathlib import Path
from common.privacy.journal import Rows
from common.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), bytes(range(32)))
ledger.charge("cohort", "run", 1, "1", noise_multiplier=2.0, sampling_rate=0.25, steps=10, delta=1e-3,
              lifetime_epsilon=None)
connect = sqlite3.connect
class Watched(sqlite3.Connection):
    def execute(self, sql, *values):
        if sql.startswith(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(sql, *values)
sqlite3.connect = lambda *values, **named: connect(*values, factory=Watched, **named)
ledger.begin("cohort", "run", 1, "1")
print("taken")
"""


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite", KEY)


def charge(ledger, run="run", round_=1, attempt="1", *, cohort="cohort", lifetime=None, **changes):
    return ledger.charge(cohort, run, round_, attempt, lifetime_epsilon=lifetime, **(ROUND | changes))


def test_a_new_ledger_has_nothing_spent(ledger):
    assert ledger.spent("cohort", DELTA) == 0
    assert ledger.entries() == ()


def test_a_repeated_charge_costs_once(ledger):
    for _ in range(3):
        charge(ledger)
    assert ledger.history("cohort") == ((2.0, 0.25, 10),)


def test_a_repeated_charge_is_accepted_when_the_budget_is_spent_since(ledger):
    lifetime = epsilon([(2.0, 0.25, 10)], DELTA)
    charge(ledger, lifetime=lifetime)
    charge(ledger, lifetime=lifetime)
    with pytest.raises(PrivacyError):
        charge(ledger, round_=2, lifetime=lifetime)


def test_a_charge_tells_what_its_run_had_before_and_has_now(ledger):
    charge(ledger, run="other", steps=7)
    first = charge(ledger)
    assert (first.before, first.after, first.delta) == ((), ((2.0, 0.25, 10),), DELTA)
    second = charge(ledger, round_=2, steps=5)
    assert (second.before, second.after) == (((2.0, 0.25, 10),), ((2.0, 0.25, 15),))
    assert second.epsilon == ledger.spent("cohort", DELTA, "run") == epsilon(((2.0, 0.25, 15),), DELTA)
    assert second.cost == second.epsilon - epsilon(((2.0, 0.25, 10),), DELTA)
    again = charge(ledger, round_=2, attempt="2", steps=5)
    assert (again.before, again.after) == (((2.0, 0.25, 10),), ((2.0, 0.25, 20),))
    assert charge(ledger, round_=2, steps=5) == again


def test_a_charge_that_carries_another_attempts_costs_nothing_and_is_taken_at_once(ledger):
    charge(ledger, attempt="agent.1")
    carried = charge(ledger, attempt="agent.2", carried="agent.", begin=True)
    assert (carried.before, carried.after) == ((), ((2.0, 0.25, 10),))
    assert [one.attempt for one in ledger.entries()] == ["agent.2"]
    for attempt in ("agent.1", "agent.2"):
        with pytest.raises(PrivacyError):
            ledger.begin("cohort", "run", 1, attempt)
    with pytest.raises(PrivacyError, match="one training only"):
        charge(ledger, attempt="agent.2", begin=True)
    fresh = charge(ledger, attempt="mine.1", carried="mine.")
    assert fresh.after == ((2.0, 0.25, 20),)


def test_a_check_sees_what_is_charged_and_stops_the_charge(ledger):
    charge(ledger)
    seen: list[int] = []

    def check(charges):
        seen.extend(one.round for one in charges)
        raise PrivacyError("outdated")

    with pytest.raises(PrivacyError, match="outdated"):
        charge(ledger, round_=2, check=check, begin=True)
    assert seen == [1]
    assert len(ledger.entries()) == 1


def test_a_charge_reads_the_file_once_whatever_else_it_does(ledger, monkeypatch):
    charge(ledger, attempt="agent.1")
    read = Rows._read
    readings: list[Rows] = []

    def counted(rows: Rows) -> None:
        readings.append(rows)
        read(rows)

    monkeypatch.setattr(Rows, "_read", counted)
    charge(ledger, attempt="agent.2", carried="agent.", begin=True, check=list)
    assert len(readings) == 1


def test_a_new_attempt_costs_again(ledger):
    charge(ledger, attempt="1")
    charge(ledger, attempt="2")
    assert ledger.history("cohort") == ((2.0, 0.25, 20),)


@pytest.mark.parametrize("change", [{"noise_multiplier": 9.0}, {"steps": 1}, {"sampling_rate": 0.1}, {"delta": 1e-4}])
def test_an_attempt_cannot_be_charged_twice_with_different_values(ledger, change):
    charge(ledger)
    with pytest.raises(PrivacyError, match="new attempt"):
        charge(ledger, **change)
    assert ledger.history("cohort") == ((2.0, 0.25, 10),)


def test_runs_add_up_in_their_cohort_and_cohorts_stand_alone(ledger):
    charge(ledger, "a", 1)
    charge(ledger, "a", 2)
    charge(ledger, "b", 1, noise_multiplier=3.0)
    charge(ledger, "a", 1, cohort="other")
    assert ledger.history("cohort") == ((2.0, 0.25, 20), (3.0, 0.25, 10))
    assert ledger.history("cohort", "a") == ((2.0, 0.25, 20),)
    assert ledger.spent("cohort", DELTA) == epsilon([(2.0, 0.25, 20), (3.0, 0.25, 10)], DELTA)
    assert ledger.spent("cohort", DELTA, "b") == epsilon([(3.0, 0.25, 10)], DELTA)
    assert [(entry.cohort, entry.run_hash, entry.round) for entry in ledger.entries()] == [
        ("cohort", "a", 1), ("cohort", "a", 2), ("cohort", "b", 1), ("other", "a", 1),
    ]  # fmt: skip


def test_a_ledger_outlives_its_object(ledger, tmp_path):
    charge(ledger)
    assert Ledger(tmp_path / "ledger.sqlite", KEY).entries() == ledger.entries()


def test_a_run_is_refused_before_it_starts_with_the_number_of_rounds_that_fit(ledger):
    lifetime = epsilon([(2.0, 0.25, 70)], DELTA)  # seven rounds
    charge(ledger, "earlier", 1, lifetime=lifetime, rounds=1)
    with pytest.raises(PrivacyError, match=r"10 rounds .* 6 would fit") as caught:
        charge(ledger, "late", 1, lifetime=lifetime, rounds=10)
    assert caught.value.code is ErrorCode.BUDGET_SPENT
    assert len(ledger.entries()) == 1
    for round_ in range(1, 7):
        charge(ledger, "late", round_, lifetime=lifetime, rounds=7 - round_)
    with pytest.raises(PrivacyError, match="0 would fit"):
        charge(ledger, "late", 7, lifetime=lifetime)
    assert ledger.spent("cohort", DELTA) == lifetime


def test_a_started_run_goes_on_while_single_rounds_fit(ledger):
    lifetime = epsilon([(2.0, 0.25, 30)], DELTA)
    charge(ledger, round_=1, lifetime=lifetime, rounds=3)
    charge(ledger, round_=1, attempt="2", lifetime=lifetime, rounds=3)  # a crash made the plan of three rounds too long
    charge(ledger, round_=2, lifetime=lifetime, rounds=2)


def test_a_run_planned_for_the_whole_budget_is_charged_to_its_end(ledger):
    noise = noise_multiplier_for(3.0, DELTA, 0.25, 50)
    for round_ in range(1, 6):
        charge(ledger, round_=round_, lifetime=3.0, rounds=6 - round_, noise_multiplier=noise)
    assert 2.97 <= ledger.spent("cohort", DELTA) <= 3.0


def test_noise_of_zero_fits_no_budget(ledger):
    with pytest.raises(PrivacyError, match="0 would fit"):
        charge(ledger, lifetime=1e9, noise_multiplier=0.0)


def test_two_processes_share_a_budget_without_passing_it(tmp_path):
    path, lifetime = tmp_path / "ledger.sqlite", epsilon([(2.0, 0.25, 130)], DELTA)  # thirteen rounds
    command = [sys.executable, "-c", CHARGE_UNTIL_REFUSED, str(path)]
    processes = [
        subprocess.Popen([*command, run, repr(lifetime)], stdout=subprocess.PIPE, text=True) for run in ("a", "b")
    ]
    answers = [process.communicate(timeout=PATIENCE_S)[0].split() for process in processes]
    assert [code for _, code in answers] == ["budget-spent", "budget-spent"]
    assert sum(int(charged) for charged, _ in answers) == 13
    assert Ledger(path, KEY).history("cohort") == ((2.0, 0.25, 130),)


def rounds_of_budget(rounds: int) -> float:
    return epsilon([(2.0, 0.25, 10 * rounds)], DELTA)


def test_a_run_reserves_its_rounds_so_that_another_that_does_not_fit_beside_it_cannot_start(ledger):
    lifetime = rounds_of_budget(13)
    charge(ledger, "first", 1, lifetime=lifetime, rounds=10)
    with pytest.raises(PrivacyError, match=r"10 rounds .* 3 would fit beside what other runs") as caught:
        charge(ledger, "second", 1, lifetime=lifetime, rounds=10)
    assert caught.value.code is ErrorCode.BUDGET_SPENT
    for round_ in range(2, 11):
        charge(ledger, "first", round_, lifetime=lifetime, rounds=11 - round_)
    assert ledger.history("cohort") == ((2.0, 0.25, 100),)


def test_a_run_that_fits_beside_another_starts_and_both_come_to_their_end(ledger):
    lifetime = rounds_of_budget(13)
    for round_ in range(1, 11):
        charge(ledger, "long", round_, lifetime=lifetime, rounds=11 - round_)
        if round_ <= 3:
            charge(ledger, "short", round_, lifetime=lifetime, rounds=4 - round_)
    assert ledger.spent("cohort", DELTA) == lifetime
    assert ledger.reservations() == ()


def test_of_two_runs_that_start_at_once_only_the_one_that_fits_does(tmp_path):
    command = [sys.executable, "-c", CHARGE_A_RUN, str(tmp_path / "ledger.sqlite")]
    processes = [
        subprocess.Popen([*command, run, repr(rounds_of_budget(13))], stdout=subprocess.PIPE) for run in ("a", "b")
    ]
    assert sorted(int(process.communicate(timeout=PATIENCE_S)[0]) for process in processes) == [0, 10]


def test_a_reservation_shrinks_with_every_round_and_ends_with_the_last(ledger):
    left = []
    for round_ in range(1, 4):
        charge(ledger, round_=round_, rounds=4 - round_)
        charge(ledger, round_=round_, rounds=4 - round_)  # the worker repeats what the agent charged
        left.append([(one.run_hash, one.steps) for one in ledger.reservations()])
    assert left == [[("run", 20)], [("run", 10)], []]


def test_a_crash_keeps_the_reservation_and_a_release_gives_it_back(ledger, tmp_path):
    lifetime = rounds_of_budget(10)
    charge(ledger, "crashed", 1, lifetime=lifetime, rounds=10)
    reopened = Ledger(tmp_path / "ledger.sqlite", KEY)
    with pytest.raises(PrivacyError, match="0 would fit beside"):
        charge(reopened, "next", 1, lifetime=lifetime, rounds=9)
    reopened.release("crashed")
    reopened.release("crashed")
    reopened.release("never heard of")
    assert reopened.history("cohort") == ((2.0, 0.25, 10),)  # what was charged stays
    charge(reopened, "next", 1, lifetime=lifetime, rounds=9)
    with pytest.raises(PrivacyError):  # and what was given back is not the old run's any more
        charge(reopened, "crashed", 2, lifetime=lifetime, rounds=9)


def test_a_second_attempt_takes_from_its_own_run_and_never_from_another(ledger):
    lifetime = rounds_of_budget(10)
    charge(ledger, "a", 1, lifetime=lifetime, rounds=5)
    charge(ledger, "b", 1, lifetime=lifetime, rounds=5)
    charge(ledger, "a", 1, "again", lifetime=lifetime, rounds=5)
    assert {one.run_hash: one.steps for one in ledger.reservations()} == {"a": 30, "b": 40}
    for round_ in range(2, 6):
        charge(ledger, "b", round_, lifetime=lifetime, rounds=6 - round_)
    for round_ in range(2, 5):
        charge(ledger, "a", round_, lifetime=lifetime, rounds=6 - round_)
    with pytest.raises(PrivacyError, match="0 would fit"):
        charge(ledger, "a", 5, lifetime=lifetime)


def test_reservations_of_other_cohorts_do_not_count(ledger):
    lifetime = rounds_of_budget(10)
    charge(ledger, "a", 1, cohort="one", lifetime=lifetime, rounds=10)
    charge(ledger, "a", 1, cohort="two", lifetime=lifetime, rounds=10)
    ledger.release("a")
    assert ledger.reservations() == ()


def test_a_refused_run_reserves_nothing(ledger):
    with pytest.raises(PrivacyError):
        charge(ledger, lifetime=rounds_of_budget(3), rounds=10)
    assert ledger.reservations() == ()


def test_the_budget_is_measured_at_the_smallest_delta_of_the_cohort(ledger):
    lifetime = epsilon([(2.0, 0.25, 20)], 1e-5)
    charge(ledger, "strict", 1, lifetime=lifetime, delta=1e-5)
    with pytest.raises(PrivacyError, match="1 would fit"):
        charge(ledger, "loose", 1, lifetime=lifetime, delta=1e-2, rounds=2)
    charge(ledger, "loose", 1, lifetime=lifetime, delta=1e-2, rounds=1)


def test_a_killed_process_never_loses_an_acknowledged_charge(tmp_path):
    path, acknowledged = tmp_path / "ledger.sqlite", 0
    for attempt in range(4):
        command = [sys.executable, "-c", CHARGE_FOREVER, str(path), f"run-{attempt}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"
            time.sleep(random.uniform(0, 0.15))  # noqa: S311 -- any moment
            os.kill(process.pid, signal.SIGKILL)
            acknowledged += 1 + sum(line.endswith("\n") for line in process.stdout)
        recorded = len(Ledger(path, KEY).entries())
        # At most the one charge in flight at each kill was recorded and not acknowledged.
        assert acknowledged <= recorded <= acknowledged + attempt + 1
    charge(Ledger(path, KEY), "after")


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_ledger_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(PrivacyError, match="restore the file from a backup") as caught:
        charge(Ledger(path, KEY))
    assert caught.value.code is ErrorCode.INTERNAL
    assert path.read_bytes() == content


def test_a_ledger_that_cannot_be_written_refuses(tmp_path):
    with pytest.raises(PrivacyError, match="right to write"):
        charge(Ledger(tmp_path / "no-such-folder" / "ledger.sqlite", KEY))


def test_a_full_disk_refuses_with_its_code(ledger, monkeypatch):
    charge(ledger)
    connect = sqlite3.connect

    def with_a_full_disk(*arguments, **options):
        database = connect(*arguments, **options)
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database

    monkeypatch.setattr(sqlite3, "connect", with_a_full_disk)
    with pytest.raises(PrivacyError, match="Free disk space") as caught:
        charge(ledger, attempt="x" * 100_000)
    assert caught.value.code is ErrorCode.DISK_FULL
    monkeypatch.undo()
    assert len(ledger.entries()) == 1


@pytest.mark.parametrize("change", [{"steps": -1}, {"sampling_rate": 0.0}, {"noise_multiplier": float("nan")}])
def test_a_charge_without_meaning_is_refused(ledger, change):
    with pytest.raises(PrivacyError, match="privacy history"):
        charge(ledger, **change)
    assert ledger.entries() == ()


# --- one charge, one training


def test_a_charged_attempt_is_taken_once(ledger, tmp_path):
    charge(ledger)
    ledger.begin("cohort", "run", 1, "1")
    charge(ledger)  # the same charge again costs nothing, and gives no second taking
    for again in (ledger, Ledger(tmp_path / "ledger.sqlite", KEY)):
        with pytest.raises(PrivacyError, match="new attempt") as caught:
            again.begin("cohort", "run", 1, "1")
        assert caught.value.code is ErrorCode.BAD_REQUEST
    charge(ledger, attempt="2")
    ledger.begin("cohort", "run", 1, "2")
    assert ledger.history("cohort") == ((2.0, 0.25, 20),)


@pytest.mark.parametrize(
    "other",
    [("other", "run", 1, "1"), ("cohort", "other", 1, "1"), ("cohort", "run", 2, "1"), ("cohort", "run", 1, "2")],
)
def test_an_attempt_without_a_charge_is_not_let_through(ledger, other):
    charge(ledger)
    with pytest.raises(PrivacyError, match="has no charge") as caught:
        ledger.begin(*other)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    ledger.begin("cohort", "run", 1, "1")


def test_of_many_processes_and_threads_exactly_one_takes_an_attempt(ledger, tmp_path):
    path = tmp_path / "ledger.sqlite"
    for number in range(5):
        charge(ledger, round_=number)
        command = [sys.executable, "-c", TAKE, str(path), str(number)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) for _ in range(3)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        let_through = b"".join(process.communicate(timeout=PATIENCE_S)[0] for process in processes)
        assert let_through.count(b"taken") == 1
        assert let_through.count(b"bad-request") == 3 * 4 - 1


@pytest.mark.parametrize("place", ["INSERT INTO rows", "REPLACE INTO head", "COMMIT"])
def test_a_kill_while_an_attempt_is_taken_leaves_it_free_or_taken_and_never_uncharged(tmp_path, place):
    path = tmp_path / "ledger.sqlite"
    command = [sys.executable, "-c", TAKE_AND_DIE, str(path), place]
    killed = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout == b""  # it was not let through: nothing was trained
    ledger = Ledger(path, KEY)
    assert ledger.history("cohort") == ((2.0, 0.25, 10),)
    ledger.begin("cohort", "run", 1, "1")
    with pytest.raises(PrivacyError):
        ledger.begin("cohort", "run", 1, "1")


def test_a_budget_is_measured_at_the_smallest_delta_and_beside_what_others_reserve(ledger):
    assert ledger.delta("cohort", 1e-2) == 1e-2
    charge(ledger, "strict", delta=1e-5, rounds=4)
    charge(ledger, "loose", delta=1e-2, rounds=3)
    charge(ledger, "elsewhere", cohort="other", delta=1e-9, rounds=9)
    assert (ledger.delta("cohort", 1e-2), ledger.delta("cohort", 1e-6)) == (1e-5, 1e-6)
    assert ledger.reserved("cohort", but="strict") == ((2.0, 0.25, 20),)
    assert ledger.reserved("cohort", but="loose") == ((2.0, 0.25, 30),)
    assert ledger.reserved("cohort", but="new") == ((2.0, 0.25, 50),)


def test_releases_outlive_the_process_and_cost_no_row_where_nothing_is_reserved(ledger, tmp_path):
    path = tmp_path / "ledger.sqlite"
    charge(ledger, rounds=3)
    ledger.release("run")
    size = path.stat().st_size
    for _ in range(40):
        ledger.release("run")
    assert path.stat().st_size == size
    assert Ledger(path, KEY).reservations() == ()


def test_a_release_is_of_one_run_in_all_its_cohorts(ledger):
    for run, cohort in (("over", "one"), ("over", "two"), ("going on", "one")):
        charge(ledger, run, cohort=cohort, rounds=3)
    ledger.release("over")
    assert [(one.run_hash, one.steps) for one in ledger.reservations()] == [("going on", 20)]
