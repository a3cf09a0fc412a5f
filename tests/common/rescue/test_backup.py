"""A backup of a home in use, and its restoration: real files, real SQLite; files are broken by hand."""

import json
import os
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from common.crypto.passphrase import SHORTEST_PASSPHRASE
from common.errors import ConfigError
from common.rescue import archive, backup, restored
from common.rescue.archive import Contents
from common.rescue.members import IMAGES, LINKS, LOCKS, UNKNOWN, Side, Walk
from common.rescue.migration import HomeVersions, Step

PASSPHRASE = "correct horse battery"  # noqa: S105 - of these tests alone
CHUNK = 2**20
SIDE = Side(
    name="hospital",
    program="wardround-client",
    mark="site.toml",
    kept=("log.sqlite", "runs", "tls", "site.toml"),
    databases=("log.sqlite", "runs/ledger.sqlite"),
    at_once=("tls",),
    folders=("tls", "empty"),
    left_out={"cache": "made again", "before-version-*": "of before"},
)
VERSIONS = HomeVersions("hospital", "wardround-client", "agent.lock", (Step("first", (), lambda _: None),))


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.crypto.passphrase._N", 2**10)  # half a second each time with what is meant


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for name, text in {
        "site.toml": "name",
        "runs/1/journal": "round 1",
        "runs/1/checkpoint/round-1/a": "a1",
        "runs/1/checkpoint/round-1/b": "b1",
        "tls/key": "key",
        "tls/certificate": "certificate",
        "cache/x": "xx",
        "images/patient.png": "pixels",
        "notes": "note",
        "agent.lock": "",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    for name in SIDE.databases:
        write(home / name, 1)
    VERSIONS.begin(home)
    return home


def write(path: Path, number: int) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS entries (number)")
        database.execute("INSERT INTO entries VALUES (?)", (number,))


def numbers(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [number for (number,) in database.execute("SELECT number FROM entries")]


def make(home: Path, out: Path, tell: Callable[[str, int], None] = lambda *_: None) -> Contents:
    return backup.make(home, out, SIDE, "north", PASSPHRASE, outside=[home / "images"], tell=tell)


def restore(out: Path, home: Path) -> Contents:
    return backup.restore(out, home, VERSIONS, SIDE, PASSPHRASE)


def files(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_what_is_kept_comes_back_and_the_rest_is_counted_and_named(home: Path, tmp_path: Path) -> None:
    (home / "runs/elsewhere").symlink_to("/etc")
    (home / "runs/1").chmod(0o500)
    made = make(home, tmp_path / "b")
    assert (made.about.side, made.about.name, made.about.home_version) == ("hospital", "north", 1)
    assert {name: (one.why, one.files, one.size) for name, one in made.left_out.items()} == {
        "cache": ("made again", 1, 2),
        "images": (IMAGES, 1, 6),
        "notes": (UNKNOWN, 1, 4),
        "home.json": (UNKNOWN, 1, (home / "home.json").stat().st_size),
        LOCKS: ("made anew", 2, 0),
        LINKS: ("what they lead to is elsewhere", 1, 0),
    }
    assert backup.look(tmp_path / "b", PASSPHRASE) == made
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert b"certificate" not in (tmp_path / "b").read_bytes()

    new = tmp_path / "new"
    assert restore(tmp_path / "b", new) == made
    there = files(new)
    assert json.loads(there.pop(restored.MARK_NAME))["made"] == made.about.made
    assert there.keys() == made.members.keys()
    plain = {name: data for name, data in there.items() if name not in SIDE.databases}
    assert plain == {name: (home / name).read_bytes() for name in plain}
    assert [numbers(new / name) for name in SIDE.databases] == [[1], [1]]
    assert (new / "empty").is_dir()
    assert ((new / "runs/1").stat().st_mode & 0o777, new.stat().st_mode & 0o777) == (0o500, 0o700)
    assert not (home / "backup.tmp").exists()


def changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:-1], "cut off or was changed"),
        (lambda data: data[: len(data) // 2], "cut off or was changed"),
        (lambda data: data[: data.index(b"WRBACKUP")], "cut off or was changed"),
        # To the end of a chunk, where what is left is whole by itself.
        (lambda data: data[: data.index(b"WRBACKUP") + 24 + CHUNK + 16], "cut off or was changed"),
        (lambda data: changed(data, len(data) - 20), "cut off or was changed"),
        (lambda data: changed(data, data.index(b"WRBACKUP") + 10), "cut off or was changed"),
        (lambda data: data + b"\0", "cut off or was changed"),
        (lambda data: changed(data, data.index(b'"salt": "') + 12), "the passphrase is another"),
        (lambda data: data[1:], "no backup"),
        (lambda _: b"", "no backup"),
    ],
)
def test_cut_or_changed_file_is_a_clear_error_and_leaves_nothing_behind(
    home: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], said: str
) -> None:
    (home / "runs/large").write_bytes(os.urandom(CHUNK + CHUNK // 2))
    make(home, tmp_path / "b")
    (tmp_path / "b").write_bytes(spoil((tmp_path / "b").read_bytes()))
    with pytest.raises(ConfigError, match=said):
        restore(tmp_path / "b", tmp_path / "new")
    with pytest.raises(ConfigError, match=said):
        backup.look(tmp_path / "b", PASSPHRASE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "home"]


def test_another_passphrase_is_a_clear_error_and_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    make(home, tmp_path / "b")
    with pytest.raises(ConfigError, match="the passphrase is another"):
        backup.restore(tmp_path / "b", tmp_path / "new", VERSIONS, SIDE, "another horse battery")
    with pytest.raises(ConfigError, match=f"at least {SHORTEST_PASSPHRASE}"):
        backup.make(home, tmp_path / "c", SIDE, "north", "short")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "home"]


def test_nothing_is_ever_replaced(home: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        make(home, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "mine"
    make(home, tmp_path / "c")
    before = files(home)
    with pytest.raises(ConfigError, match="not empty"):
        restore(tmp_path / "c", home)
    assert files(home) == before
    with pytest.raises(ConfigError, match="no folder"):
        make(home, tmp_path / "nowhere" / "b")


def test_file_that_appears_while_a_backup_is_made_stays(home: Path, tmp_path: Path) -> None:
    def other(_name: str, _size: int) -> None:
        (tmp_path / "b").write_text("mine")

    with pytest.raises(ConfigError, match="is there already"):
        make(home, tmp_path / "b", other)
    assert (tmp_path / "b").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "home"]


def test_backup_of_the_other_side_and_one_of_a_later_version_are_refused(home: Path, tmp_path: Path) -> None:
    make(home, tmp_path / "b")
    other = Side("coordinator", "wardround-server", "server.toml", (), (), (), (), {})
    with pytest.raises(ConfigError, match="backup of a hospital, and not of a coordinator"):
        backup.restore(tmp_path / "b", tmp_path / "new", VERSIONS, other, PASSPHRASE)
    with pytest.raises(ConfigError, match=r"version 1, written by wardround .* knows versions up to 0"):
        backup.restore(tmp_path / "b", tmp_path / "new", HomeVersions("hospital", "p", "l", ()), SIDE, PASSPHRASE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "home"]


def test_database_is_copied_between_two_transactions_and_nobody_waits(home: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home / "log.sqlite", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO entries VALUES (2)")
        make(home, tmp_path / "b")
        writer.execute("COMMIT")
    restore(tmp_path / "b", tmp_path / "new")
    assert (numbers(home / "log.sqlite"), numbers(tmp_path / "new/log.sqlite")) == ([1, 2], [1])


def test_damaged_database_is_no_part_of_a_backup(home: Path, tmp_path: Path) -> None:
    (home / "log.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be copied"):
        make(home, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_checkpoint_replaced_meanwhile_is_taken_whole_and_before_its_journal(home: Path, tmp_path: Path) -> None:
    def next_round(name: str, _size: int) -> None:
        if name.endswith("round-1/a"):
            after = home / "runs/1/checkpoint/round-2"
            after.mkdir()
            (after / "a").write_text("a2")
            (after / "b").write_text("b2")
            (home / "runs/1/journal").write_text("round 1, round 2")
            (home / "runs/1/checkpoint/round-1/b").unlink()

    made = make(home, tmp_path / "b", next_round)
    order = list(made.members)
    assert order.index("runs/1/checkpoint/round-2/b") < order.index("runs/1/journal")
    restore(tmp_path / "b", tmp_path / "new")
    found = files(tmp_path / "new")
    assert found["runs/1/journal"] == b"round 1, round 2"
    assert (found["runs/1/checkpoint/round-2/a"], found["runs/1/checkpoint/round-2/b"]) == (b"a2", b"b2")


def test_files_that_belong_together_are_of_one_moment(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, left = Path.read_bytes, ["renewed"]

    def renewed(path: Path) -> bytes:
        data = read(path)
        if path.parent.name == "tls" and left:
            left.clear()
            for name in ("key", "certificate"):
                (home / "tls" / name).write_text(f"next {name}")
        return data

    monkeypatch.setattr(Path, "read_bytes", renewed)
    make(home, tmp_path / "b")
    monkeypatch.undo()
    monkeypatch.setattr("common.crypto.passphrase._N", 2**10)
    restore(tmp_path / "b", tmp_path / "new")
    assert {path.read_text() for path in (tmp_path / "new/tls").iterdir()} == {"next key", "next certificate"}


def test_memory_is_bounded_whatever_the_size(home: Path, tmp_path: Path) -> None:
    with (home / "runs/large").open("wb") as file:
        file.truncate(48 * CHUNK)
    tracemalloc.start()
    make(home, tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "new")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "new/runs/large").stat().st_size == 48 * CHUNK
    assert peak < 16 * CHUNK


def test_backup_is_restored_into_a_folder_on_which_a_disk_is_mounted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(home, tmp_path / "b")
    new = tmp_path / "new"
    new.mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == new)
    inode = new.stat().st_ino
    (tmp_path / "cut").write_bytes((tmp_path / "b").read_bytes()[:-1])
    with pytest.raises(ConfigError, match="cut off"):
        restore(tmp_path / "cut", new)
    assert list(new.iterdir()) == []
    restore(tmp_path / "b", new)
    assert (new / "site.toml").read_text() == "name"
    assert (new.stat().st_ino, (new / ".restoring").exists()) == (inode, False)


def test_nothing_may_stand_behind_the_end_of_an_archive(home: Path, tmp_path: Path) -> None:
    """Nor be missing there: all of it is read, and so proved to be whole."""
    about, scratch = archive.About("hospital", "north", "", "", 1), tmp_path / "scratch"
    scratch.mkdir()
    parts = [*archive._archive(about, Walk(home, SIDE, scratch), lambda *_: None), bytes(2 * CHUNK)]
    archive._contents(archive._Stream(parts), backup._look)
    with pytest.raises(ValueError, match="behind its end"):
        archive._contents(archive._Stream([*parts, b"more"]), backup._look)


def test_member_that_leads_out_of_the_home_is_refused(home: Path, tmp_path: Path) -> None:
    for name in ("../up", "/etc/passwd", "runs/../../up"):
        with pytest.raises(ValueError, match="not of a home"):
            archive._safe(f"home/{name}")
