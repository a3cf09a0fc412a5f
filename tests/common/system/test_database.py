"""The transaction that the audit log and the ledger share; what it means to them is in test_log and test_journal."""

import errno
import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import AuditError, ErrorCode
from common.system.database import transaction


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.sqlite"


def begun(path):
    return transaction(path, lambda name, error, code: AuditError(f"{name}: {type(error).__name__}", code))


def add(path, number):
    with begun(path) as database:
        database.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY)")
        database.execute("INSERT INTO rows VALUES (?)", (number,))


def numbers_in(path):
    with begun(path) as database:
        return [number for (number,) in database.execute("SELECT number FROM rows ORDER BY number")]


def test_file_and_journal_are_their_owners_alone_from_the_start(path):
    before = os.umask(0o022)
    try:
        with begun(path) as database:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            database.execute("CREATE TABLE rows (number INTEGER)")
            assert {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {
                "rows.sqlite": 0o600,
                "rows.sqlite-journal": 0o600,
            }
    finally:
        os.umask(before)


def test_what_is_committed_is_synced_with_its_folder_and_needs_no_second_file(path):
    with begun(path) as database:
        # Of sqlite.org/pragma.html: 3 is EXTRA.
        assert database.execute("PRAGMA synchronous").fetchone() == (3,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    add(path, 1)
    assert list(path.parent.iterdir()) == [path]


def test_threads_that_begin_the_file_at_once_lose_nothing(path):
    threads = [threading.Thread(target=add, args=(path, number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers_in(path) == list(range(8))
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_another_made_in_the_meantime_is_used_and_kept(path, monkeypatch):
    add(path, 1)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    add(path, 2)
    monkeypatch.undo()
    assert numbers_in(path) == [1, 2]
    assert list(path.parent.iterdir()) == [path]


def test_an_error_of_sqlite_in_the_body_is_told_with_the_files_name_and_leaves_nothing(path):
    add(path, 1)

    def work():
        with begun(path) as database:
            database.execute("INSERT INTO rows VALUES (2)")
            database.execute("INSERT INTO rows VALUES (1)")

    with pytest.raises(AuditError, match=r"rows\.sqlite: IntegrityError") as caught:
        work()
    assert caught.value.code is ErrorCode.INTERNAL
    assert numbers_in(path) == [1]


def test_another_error_of_the_body_stays_what_it_is_and_leaves_nothing(path):
    """An image that cannot be read is no fault of the log."""
    add(path, 1)

    def work():
        with begun(path) as database:
            database.execute("INSERT INTO rows VALUES (2)")
            raise OSError(errno.ENOSPC, "elsewhere")

    with pytest.raises(OSError, match="elsewhere"):
        work()
    assert numbers_in(path) == [1]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, ErrorCode.DISK_FULL), (errno.EACCES, ErrorCode.INTERNAL)])
def test_a_disk_that_refuses_the_file_is_told_with_its_code(path, monkeypatch, number, code):
    def refuse(*_):
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(AuditError, match=r"rows\.sqlite") as caught:
        add(path, 1)
    assert caught.value.code is code
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_told_with_its_code(path):
    def work():
        with begun(path) as database:
            database.execute("PRAGMA max_page_count = 1")
            database.execute("CREATE TABLE rows (number INTEGER)")

    with pytest.raises(AuditError) as caught:
        work()
    assert caught.value.code is ErrorCode.DISK_FULL
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_an_error_in_the_middle_of_reading_is_rolled_back_while_the_cursor_still_lives(path):
    """In a traceback, say; a connection with a cursor that is not at its end is not quite closed by closing it."""
    add(path, 1)
    cursors = []

    def work():
        with begun(path) as database:
            database.execute("INSERT INTO rows VALUES (2)")
            cursors.append(database.execute("SELECT number FROM rows"))
            next(cursors[0])
            raise KeyError

    with pytest.raises(KeyError):
        work()
    with closing(sqlite3.connect(path, timeout=0.05)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT number FROM rows").fetchall() == [(1,)]
