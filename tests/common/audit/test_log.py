"""The log in its file: many writers, a killed writer, a full or foreign file."""

import random
import select
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit import merkle, notes
from common.audit.entries import Entry
from common.audit.log import AuditLog
from common.audit.verify import verify
from common.errors import AuditError
from tests.common.audit.federation import POLICY, RUN, Clock, lines_of, tamper
from tests.common.audit.test_merkle import mth

SECRET = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SECRET)
KEYS = {"site/north": (notes.public_bytes(KEY),)}

APPEND = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from common.audit.log import AuditLog
log = AuditLog(Path(sys.argv[1]), "site/north", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    print(log.append("refusal", {"code": "no-data", "round": number}), flush=True)
    if number % 7 == 0:
        log.checkpoint()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.sqlite"


@pytest.fixture
def log(path):
    return AuditLog(path, "site/north", KEY, clock=Clock())


def test_a_new_log_says_whose_it_is(log):
    (first,) = log.entries()
    assert (first.seq, first.kind) == (0, "created")
    assert first.fields == {"origin": "site/north", "key": notes.public_bytes(KEY).hex()}


def test_entries_come_back_in_their_order(log):
    assert log.append("policy-changed", {"policy": POLICY}) == 1
    assert log.append("data-forgotten") == 2
    assert [(entry.seq, entry.kind) for entry in log.entries()] == [
        (0, "created"), (1, "policy-changed"), (2, "data-forgotten"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("remark", {}), ("data-added", {"path": "/data/mueller"}), ("data-added", {"patients": 37}), ("crashed", {}),
        ("revoked", {"site": "south", "certificate": RUN}),
    ],
)  # fmt: skip
def test_what_is_not_on_the_list_is_not_written(log, kind, fields):
    with pytest.raises(AuditError):
        log.append(kind, fields)
    assert len(log.entries()) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7, 8, 30])
def test_the_root_is_that_of_the_stored_bytes(log, path, count):
    for number in range(count):
        log.append("refusal", {"code": "no-data", "round": number})
    checkpoint = notes.read(log.checkpoint(), log.public_key)
    assert (checkpoint.origin, checkpoint.size) == ("site/north", count + 1)
    assert checkpoint.root == mth(lines_of(path))


def test_the_same_state_is_the_same_checkpoint(log):
    first = log.checkpoint()
    assert log.checkpoint() == first
    log.append("data-forgotten")
    assert log.checkpoint() != first


def test_proofs_hold_between_all_sizes(log):
    roots = [merkle.root(0, lambda *_: b"")]
    for _ in range(12):
        roots.append(notes.peek(log.checkpoint()).root)
        log.append("data-forgotten")
    for new in range(13):
        for old in range(new + 1):
            assert merkle.is_consistent(old, roots[old], new, roots[new], log.prove(old, new))


@pytest.mark.parametrize(("old", "new"), [(0, 9), (2, 1), (-1, 1)])
def test_there_is_no_proof_for_sizes_the_log_never_had(log, old, new):
    with pytest.raises(AuditError):
        log.prove(old, new)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries", "DELETE FROM nodes", "DELETE FROM checkpoints", "UPDATE entries SET entry = 'x'",
        "UPDATE nodes SET level = 1", "UPDATE checkpoints SET note = 'x'",
    ],
)  # fmt: skip
def test_the_file_refuses_to_change_or_forget(log, path, statement):
    log.checkpoint()
    with sqlite3.connect(path) as database, pytest.raises(sqlite3.IntegrityError, match="only grows"):
        database.execute(statement)


def test_only_the_owner_can_read_the_file(log, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_goes_on_when_it_is_opened_again(log, path):
    log.append("data-forgotten")
    assert AuditLog(path, "site/north", KEY).append("data-forgotten") == 2


@pytest.mark.parametrize("origin_and_key", [("site/south", KEY), ("site/north", Ed25519PrivateKey.generate())])
def test_a_log_is_not_continued_by_another(log, path, origin_and_key):
    with pytest.raises(AuditError, match="was begun by"):
        AuditLog(path, *origin_and_key)


def test_a_name_that_is_no_site_makes_no_log(path):
    with pytest.raises(AuditError):
        AuditLog(path, "site/Hans Mueller", KEY)


@pytest.mark.parametrize(
    "content", [b"not a database at all, but quite long" * 100, b"SQLite format 3\0" + b"x" * 5000]
)
def test_a_file_that_is_no_log_is_an_error_with_advice(path, content):
    path.write_bytes(content)
    with pytest.raises(AuditError, match="cannot be used"):
        AuditLog(path, "site/north", KEY)
    assert path.read_bytes() == content


def test_a_newer_format_is_refused(log, path):
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(AuditError, match="format 9"):
        log.append("data-forgotten")


def test_a_folder_that_is_not_there_is_an_error_with_advice(tmp_path):
    with pytest.raises(AuditError, match="cannot be used"):
        AuditLog(tmp_path / "nowhere" / "audit.sqlite", "site/north", KEY)


def test_a_hole_in_the_stored_tree_is_not_built_upon(log, path):
    tamper(path, ("DELETE FROM nodes",))
    with pytest.raises(AuditError, match="hole"):
        log.append("data-forgotten")
    assert len(lines_of(path)) == 1


@pytest.mark.parametrize(
    "read",
    [
        lambda log: log.entries(),
        lambda log: within(log, lambda transaction: transaction.latest("refusal", count=2)),
        lambda log: within(log, lambda transaction: transaction.about("refusal", RUN, 3)),
    ],
)
def test_an_entry_that_cannot_be_read_does_not_keep_the_log_locked(log, path, monkeypatch, read):
    """As long as the error is handled, its traceback holds the cursor that was not read to its end."""
    monkeypatch.setattr("common.system.database._LOCK_TIMEOUT_S", 0.5)
    for _ in range(2):
        log.append("refusal", {"run": RUN, "round": 3, "code": "no-data"})
    tamper(path, ("UPDATE entries SET entry = json_remove(entry, '$.time') WHERE seq > 0",))
    with pytest.raises(AuditError, match="expected form") as caught:
        read(log)
    assert log.append("data-forgotten") == 3
    assert caught.tb is not None


def within(log, work):
    with log.transaction() as transaction:
        return work(transaction)


def test_a_transaction_that_fails_leaves_nothing(log, path):
    def work():
        with log.transaction() as transaction:
            transaction.append("data-forgotten")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert len(lines_of(path)) == 1


def test_others_wait_while_a_transaction_reads_and_then_writes(log, path):
    with log.transaction() as transaction:
        with closing(sqlite3.connect(path, timeout=0.0)) as impatient, pytest.raises(sqlite3.Error, match="is locked"):
            impatient.execute("BEGIN IMMEDIATE")
        other = threading.Thread(target=log.append, args=("data-forgotten",))
        other.start()
        assert transaction.append("policy-changed", {"policy": POLICY}) == 1
    other.join()
    assert [entry.kind for entry in log.entries()] == ["created", "policy-changed", "data-forgotten"]


def test_a_clock_that_goes_back_is_written_as_it_is(path):
    times = iter([1000.9, 2000.0, 1500.0])
    log = AuditLog(path, "site/north", KEY, clock=lambda: next(times))
    log.append("data-forgotten")
    log.append("data-forgotten")
    assert [Entry.from_bytes(line).time for line in lines_of(path)] == [1000, 2000, 1500]


def writer(path, count):
    """A process that is ready to append, and waits for a line."""
    command = [sys.executable, "-c", APPEND, str(path), str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_write_at_once_lose_nothing(path):
    writers = [writer(path, 25) for _ in range(3)]
    for process in writers:
        process.stdin.write("\n")
        process.stdin.flush()
    numbers = [int(line) for process in writers for line in process.communicate()[0].split()]
    assert all(process.returncode == 0 for process in writers)
    assert sorted(numbers) == list(range(1, 76))
    AuditLog(path, "site/north", KEY).checkpoint()
    verdict = verify([path], KEYS)
    assert verdict.findings == ()
    assert verdict.histories[0].size == 76


def test_threads_and_a_process_that_come_during_a_transaction_wait_and_lose_nothing(log, path):
    """A thread that opened and closed the file beside SQLite would drop the lock of the one that has it (POSIX)."""
    process = writer(path, 5)
    with ThreadPoolExecutor(3) as pool:
        with log.transaction() as transaction:
            numbers = [transaction.append("data-forgotten")]
            threads = [pool.submit(append_five, log) for _ in range(3)]
            wait(threads, timeout=0.3)  # by now they stand at the lock
            process.stdin.write("\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 1.0)[0] == []  # what it appended, it would say
            numbers.append(transaction.append("data-forgotten"))
        numbers += [number for thread in threads for number in thread.result()]
    numbers += [int(line) for line in process.communicate()[0].split()]
    assert process.returncode == 0
    assert numbers[:2] == [1, 2]
    assert sorted(numbers) == list(range(1, 23))
    assert notes.read(log.checkpoint(), log.public_key).root == mth(lines_of(path))
    assert verify([path], KEYS).is_well  # the clocks of this log and of the process differ, which is a warning


def append_five(log):
    return [log.append("data-forgotten") for _ in range(5)]


def test_killed_at_any_moment_nothing_acknowledged_is_lost(path):
    randomness = random.Random(4)  # noqa: S311 - when to kill
    acknowledged = 0
    for _ in range(6):
        process = writer(path, 100_000)
        process.stdin.write("\n")
        process.stdin.flush()
        first = int(process.stdout.readline())
        time.sleep(randomness.uniform(0, 0.1))
        process.kill()
        numbers = [first, *(int(line) for line in process.communicate()[0].split("\n")[:-1])]
        assert numbers[0] > acknowledged
        acknowledged = numbers[-1]
        # As it lies there, with whatever journal the kill left; an entry may be on disk that was not acknowledged.
        verdict = verify([path], KEYS)
        assert verdict.is_well
        assert verdict.findings == ()
        assert verdict.histories[0].size >= acknowledged + 1
