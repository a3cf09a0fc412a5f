"""A key in a file: the same key with and without a passphrase, and no key where something is wrong."""

import dataclasses
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from common.crypto.keyfile import KeyFile
from common.errors import ConfigError

PASSPHRASE = "five random words would do"  # noqa: S105 - of these tests alone


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "any.key", "any key", "ANY_PASSPHRASE")


def test_plain_key_is_made_once_and_for_its_owner_alone(file: KeyFile) -> None:
    key = file.make()
    assert len(set(key)) > 16
    assert file.open() == key == file.path.read_bytes()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert not file.is_protected
    with pytest.raises(ConfigError, match="is there already"):
        file.make()
    assert file.open() == key


def test_those_who_come_at_the_same_time_get_the_same_key(file: KeyFile) -> None:
    start = Barrier(8)

    def first_use(_: int) -> bytes:
        start.wait()
        file.ensure()
        return file.open()

    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(first_use, range(8)))
    assert keys == {file.path.read_bytes()}
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert list(file.path.parent.iterdir()) == [file.path]


def test_first_use_leaves_a_key_that_is_there(file: KeyFile) -> None:
    file.make(PASSPHRASE)
    before = file.path.read_bytes()
    file.ensure()
    assert file.path.read_bytes() == before
    assert list(file.path.parent.iterdir()) == [file.path]


def test_passphrase_comes_and_goes_and_the_key_stays(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    key = file.make()
    file.write(key, PASSPHRASE)
    assert file.is_protected
    assert key not in file.path.read_bytes()
    assert key.hex().encode() not in file.path.read_bytes()
    monkeypatch.setenv("ANY_PASSPHRASE", PASSPHRASE)
    assert file.open() == key
    file.write(key, None)
    assert file.path.read_bytes() == key


def test_passphrase_may_lie_in_a_file(file: KeyFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = file.make(PASSPHRASE)
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n")
    monkeypatch.setenv("ANY_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    assert file.open() == key


def test_passphrase_is_asked_for_on_a_terminal(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    key = file.make(PASSPHRASE)
    asked: list[str] = []

    def typed(prompt: str) -> str:
        asked.append(prompt)
        return PASSPHRASE

    monkeypatch.setattr("common.crypto.keyfile.getpass.getpass", typed)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda _: True})())
    assert file.open() == key
    assert asked == ["Passphrase of the any key: "]


def test_wrong_passphrase_or_none_says_what_to_do(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.make(PASSPHRASE)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match=r"any key is under a passphrase\. Set ANY_PASSPHRASE"):
        file.open()
    monkeypatch.setenv("ANY_PASSPHRASE", PASSPHRASE + "!")
    with pytest.raises(ConfigError, match="any key does not open: the passphrase is another"):
        file.open()


def test_missing_short_or_open_file_gives_no_key(file: KeyFile) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read.*backup"):
        file.open()
    file.make()
    file.path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"chmod 600 \S+any\.key$"):
        file.open()
    with pytest.raises(ConfigError, match=r"chmod 600 \S+any\.key\. Or move it$"):
        dataclasses.replace(file, advice="Or move it").open()
    file.path.chmod(0o600)
    file.path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="holds 5 bytes, expected 32"):
        file.open()
