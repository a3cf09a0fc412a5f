"""What the ledger's file shows, and that nobody without the site key changes it unnoticed."""

import base64
import json
import os
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import threading

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import ErrorCode, PrivacyError
from common.privacy.ledger import Ledger
from tests import ROOT
from tests.common.privacy.test_ledger import TAKE_AND_DIE
from tests.dresses import dressed, found_in
from tests.patience import PATIENCE_S

KEY = bytes(range(32))
COHORT, RUN, ATTEMPT = "c0ffee1234567890", "5eed" * 16, "message-4711.abcd"
NOISE, RATE, DELTA = 2.345678, 0.2468, 1.357e-4


@pytest.fixture
def path(tmp_path):
    """A ledger of three rounds, of which two were trained, and a release."""
    made = tmp_path / "state" / "ledger.sqlite"
    made.parent.mkdir()
    fill(Ledger(made, KEY))
    return made


def fill(ledger, rounds=3):
    for number in range(1, rounds + 1):
        charge(ledger, number, rounds=5)
        if number > 1:
            ledger.begin(COHORT, RUN, number, ATTEMPT)
    ledger.release(RUN)


def charge(ledger, number, attempt=ATTEMPT, rounds=1):
    ledger.charge(
        COHORT, RUN, number, attempt, noise_multiplier=NOISE, sampling_rate=RATE, steps=10, delta=DELTA,
        lifetime_epsilon=None, rounds=rounds,
    )  # fmt: skip


def change(path, *statements):
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def assert_refused_and_kept(path, match="does not open"):
    before = path.read_bytes()
    for deed in (
        lambda ledger: ledger.entries(),
        lambda ledger: charge(ledger, 9),
        lambda ledger: ledger.begin(COHORT, RUN, 1, ATTEMPT),
        lambda ledger: ledger.release(RUN),
        lambda ledger: ledger.spent(COHORT, DELTA),
    ):
        with pytest.raises(PrivacyError, match=match) as caught:
            deed(Ledger(path, KEY))
        assert caught.value.code is ErrorCode.INTERNAL
        assert "Do not delete" in str(caught.value)
    assert path.read_bytes() == before


# --- what it shows


def test_nothing_that_was_charged_stands_in_the_file_or_its_journal(path):
    killed = [sys.executable, "-c", TAKE_AND_DIE.replace('"cohort"', repr(COHORT)), str(path), "COMMIT"]
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    files = sorted(path.parent.iterdir())
    assert [one.name for one in files] == ["ledger.sqlite", "ledger.sqlite-journal"]
    words: list[str | bytes] = [
        COHORT,
        RUN,
        RUN[:20],
        ATTEMPT,
        "message-",
        "charge",
        "begin",
        "release",
        "cohort",
        "run_hash",
        str(NOISE),
    ]
    words += [str(RATE), str(DELTA), Ledger(path, KEY).entries()[0].charged_at[:10], KEY]
    numbers = [struct.pack(order + "d", number) for order in "<>" for number in (NOISE, RATE, DELTA)]
    assert found_in([*words, KEY, *numbers], files) == []


@pytest.mark.parametrize("dress", ["{}", "<{}>", "x{}", "xx{}y"])
def test_the_search_finds_what_is_there(tmp_path, dress):
    text = dress.format(COHORT)
    for number, data in enumerate([
        text.encode(), text.encode("utf-16"), text.encode("utf-16-be"), base64.b64encode(text.encode()),
        text.encode().hex().encode(), base64.urlsafe_b64encode(text.encode()),
    ]):  # fmt: skip
        (tmp_path / "file").write_bytes(data)
        assert found_in([COHORT], [tmp_path / "file"]) == [("file", COHORT)], number
    assert len(set(dressed(COHORT))) > 6


def test_rows_open_with_what_the_docstring_says_and_nothing_else(path):
    derived = HKDF(SHA256(), length=32, salt=None, info=b"wardround ledger v1: encryption").derive(KEY)
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT number, name, content FROM rows ORDER BY number").fetchall()
    kinds, before = [], b""
    for number, name, content in rows:
        place = b"|".join((b"rows", number.to_bytes(8, "big"), name, before))
        row = json.loads(AESGCM(derived).decrypt(content[:12], content[12:], place))
        kinds.append(row[0])
        before = content[-16:]
    assert kinds == ["charge", "charge", "begin", "charge", "begin", "release"]
    assert row[1] == RUN


def test_rows_do_not_tell_their_kind_by_their_length(path):
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT DISTINCT length(name), length(content) FROM rows").fetchall() == [(32, 540)]


def test_file_and_journal_are_their_owners_alone_from_the_start(tmp_path):
    path = tmp_path / "ledger.sqlite"
    before = os.umask(0o022)
    try:
        ledger = Ledger(path, KEY)
        with ledger._journal.transaction():
            assert {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {
                "ledger.sqlite": 0o600,
                "ledger.sqlite-journal": 0o600,
            }
    finally:
        os.umask(before)


def test_two_ledgers_of_the_same_charges_have_no_name_or_content_in_common(path, tmp_path):
    fill(Ledger(tmp_path / "other", bytes(32)))
    with sqlite3.connect(path) as one, sqlite3.connect(tmp_path / "other") as other:
        query = "SELECT name, content FROM rows"
        cells = [{cell for row in database.execute(query) for cell in row} for database in (one, other)]
    assert not cells[0] & cells[1]


# --- what is noticed


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE rows SET content = substr(content, 1, 20) WHERE number = 2"],
        ["UPDATE rows SET content = x'' WHERE number = 6"],
        ["UPDATE rows SET name = randomblob(32) WHERE number = 1"],
        ["UPDATE rows SET content = (SELECT content FROM rows WHERE number = 2) WHERE number = 4"],
        ["UPDATE rows SET content = (SELECT content FROM head)"],
        ["DELETE FROM rows WHERE number = 1"],
        ["DELETE FROM rows WHERE number = 3"],
        ["DELETE FROM rows WHERE number = 6"],
        ["DELETE FROM rows WHERE number > 3"],
        ["DELETE FROM rows"],
        ["DELETE FROM rows WHERE number = 3", "UPDATE rows SET number = number - 1 WHERE number > 3"],
        ["DELETE FROM rows WHERE number = 5", "UPDATE rows SET number = 5 WHERE number = 6"],
        ["UPDATE rows SET number = -number", "UPDATE rows SET number = 7 + number"],
        ["UPDATE rows SET number = 99 WHERE number = 2", "UPDATE rows SET number = 2 WHERE number = 4",
         "UPDATE rows SET number = 4 WHERE number = 99"],
        ["UPDATE rows SET number = 7 WHERE number = 6"],
        ["INSERT INTO rows SELECT 7, randomblob(32), content FROM rows WHERE number = 1"],
        ["INSERT INTO rows VALUES (7, randomblob(32), randomblob(540))"],
        ["DELETE FROM head"],
        ["UPDATE head SET content = randomblob(28)"],
        ["DROP TABLE head"],
        ["DROP TABLE rows"],
        ["CREATE TRIGGER gone AFTER INSERT ON rows BEGIN DELETE FROM rows WHERE number = new.number; END"],
        ["CREATE TABLE more (number INTEGER)"],
        ["ALTER TABLE rows ADD COLUMN more INTEGER"],
    ],
    ids=lambda statements: "; ".join(statements)[:60],
)  # fmt: skip
def test_whatever_is_altered_exchanged_copied_or_removed_is_noticed(path, statements):
    change(path, *statements)
    assert_refused_and_kept(path)


@pytest.mark.parametrize("number", [1, 4, 6])
@pytest.mark.parametrize(("column", "at"), [("name", 0), ("content", 0), ("content", 100), ("content", -1)])
def test_one_bit_is_noticed(path, number, column, at):
    with sqlite3.connect(path) as database:
        (old,) = database.execute(f"SELECT {column} FROM rows WHERE number = ?", (number,)).fetchone()  # noqa: S608
        new = bytearray(old)
        new[at] ^= 1
        database.execute(f"UPDATE rows SET {column} = ? WHERE number = ?", (bytes(new), number))  # noqa: S608
    database.close()
    assert_refused_and_kept(path)


def test_the_last_charge_cannot_be_taken_off_with_the_head_of_another_state(path, tmp_path):
    """Only the file as a whole as it was before would do."""
    shutil.copy(path, tmp_path / "before")
    charge(Ledger(path, KEY), 4)
    charge(Ledger(path, KEY), 5)
    change(
        path, f"ATTACH '{tmp_path / 'before'}' AS old", "UPDATE head SET content = (SELECT content FROM old.head)",
        "DELETE FROM rows WHERE number = 8",
    )  # fmt: skip
    assert_refused_and_kept(path)


def test_a_charge_of_an_abandoned_continuation_is_no_charge_of_this_one(path, tmp_path):
    """The same site wrote both, at the same place; a backup was put back in between."""
    other = shutil.copy(path, tmp_path / "other")
    for one in (path, other):
        charge(Ledger(one, KEY), 4)
        charge(Ledger(one, KEY), 5)
    change(path, f"ATTACH '{other}' AS o", "REPLACE INTO rows SELECT * FROM o.rows WHERE number = 7")
    assert_refused_and_kept(path)


def test_a_ledger_of_another_site_is_refused(path):
    content = path.read_bytes()
    for key in (bytes(32), KEY[:-1] + b"\x00"):
        with pytest.raises(PrivacyError, match="another site key"):
            charge(Ledger(path, key), 9)
    assert path.read_bytes() == content
    assert len(Ledger(path, KEY).entries()) == 3


def test_a_whole_earlier_copy_is_not_noticed_here(path, tmp_path):
    """The limit that the docstring states: the audit log has the charges that are missing."""
    shutil.copy(path, tmp_path / "before")
    charge(Ledger(path, KEY), 4)
    shutil.copy(tmp_path / "before", path)
    assert len(Ledger(path, KEY).entries()) == 3


PLAIN = """
CREATE TABLE charges (id INTEGER PRIMARY KEY, cohort TEXT NOT NULL) STRICT;
PRAGMA user_version = 2;
"""


def test_a_plain_ledger_of_an_earlier_version_is_refused_and_kept(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(PLAIN)
    assert_refused_and_kept(path, match="format 2, written in the clear, by an earlier version")


@pytest.mark.parametrize("version", [0, 1, 2, 4])
def test_a_ledger_that_says_it_has_another_format_is_refused(path, version):
    change(path, f"PRAGMA user_version = {version}")
    assert_refused_and_kept(path, match=f"format {version}, .* this program knows 3")


# --- at once


def test_a_thread_that_comes_late_does_not_drop_the_lock_of_another(path, monkeypatch):
    """Whoever opens and closes the file beside SQLite would (POSIX locks)."""
    monkeypatch.setattr("common.system.database._LOCK_TIMEOUT_S", 0.05)
    late = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.05).execute('BEGIN IMMEDIATE')"
    with Ledger(path, KEY)._journal.transaction():
        refused = []

        def comes() -> None:
            with pytest.raises(PrivacyError, match="locked"):
                Ledger(path, KEY).entries()
            refused.append(True)

        thread = threading.Thread(target=comes)
        thread.start()
        thread.join()
        assert refused
        assert subprocess.run([sys.executable, "-c", late, str(path)], stderr=subprocess.PIPE, check=False).returncode


def test_processes_that_begin_the_file_at_once_lose_no_charge(tmp_path):
    path = tmp_path / "ledger.sqlite"
    program = (
        "import sys; from pathlib import Path; from tests.common.privacy.test_journal import KEY, charge, Ledger; "
        "charge(Ledger(Path(sys.argv[1]), KEY), int(sys.argv[2]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(path), str(n)], cwd=ROOT) for n in range(4)]
    assert [process.wait(timeout=PATIENCE_S) for process in processes] == [0, 0, 0, 0]
    assert {entry.round for entry in Ledger(path, KEY).entries()} == {0, 1, 2, 3}
    assert [one.name for one in tmp_path.iterdir()] == ["ledger.sqlite"]
