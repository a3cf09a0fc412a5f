"""The coordinator's key: given by the coordinator that runs to its own processes, else only for a passphrase."""

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import ConfigError
from server.home.folder import KEY_PASSPHRASE, Home, open_home
from server.home.key_agent import SOCKET_NAME, KeyAgent, ask
from server.home.root import create, rotate_root
from server.registry.registry import Registry
from tests.server.coordinators import enrol, new_home
from tests.server.search import found, private_keys

KEY = bytes(range(32))
PASSPHRASE = "five random words would do"  # noqa: S105 - of these tests alone


@contextmanager
def holding(folder: Path, key: bytes) -> Iterator[None]:
    """A process that holds the key, as the launcher does."""
    stop = threading.Event()
    with KeyAgent(folder, key) as holder:

        def wait() -> None:
            while not stop.is_set():
                holder.rest(0.05)

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return new_home(tmp_path / "home")


@pytest.fixture
def protected(home: Home) -> Home:
    home.key_file.write(home.key, PASSPHRASE)
    return open_home(home.path)


def test_key_is_given_in_a_folder_whose_path_is_longer_than_a_sockets_name_may_be(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    with holding(folder, KEY):
        assert ask(folder) == KEY
        assert stat.S_IMODE((folder / SOCKET_NAME).stat().st_mode) == 0o600
    assert list(folder.iterdir()) == []


def test_key_is_given_as_often_as_it_is_asked_for_while_it_is_held(tmp_path: Path) -> None:
    assert ask(tmp_path) is None
    with holding(tmp_path, KEY):
        assert [ask(tmp_path) for _ in range(3)] == [KEY] * 3
    assert ask(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with KeyAgent(tmp_path, KEY):
            assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_socket_of_a_killed_holder_is_replaced(tmp_path: Path) -> None:
    KeyAgent(tmp_path, bytes(32))._socket.close()
    assert (tmp_path / SOCKET_NAME).exists()
    assert ask(tmp_path) is None
    with holding(tmp_path, KEY):
        assert ask(tmp_path) == KEY


def test_coordinator_that_runs_needs_no_passphrase_again(protected: Home, home: Home) -> None:
    with holding(home.path, home.key):
        assert protected.key == home.key
        assert protected.log_key.public_key() == home.log_key.public_key()


def test_stopped_coordinator_opens_for_the_passphrase_alone(
    protected: Home, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=KEY_PASSPHRASE):
        _ = protected.key
    monkeypatch.setenv(KEY_PASSPHRASE, "another passphrase altogether")
    with pytest.raises(ConfigError, match="coordinator key does not open: the passphrase is another"):
        _ = protected.key
    monkeypatch.setenv(KEY_PASSPHRASE, PASSPHRASE)
    assert protected.key == home.key


def test_lost_key_is_not_made_anew(home: Home) -> None:
    home.key_file.path.unlink()
    with pytest.raises(ConfigError, match=r"coordinator\.key cannot be read.*backup"):
        _ = open_home(home.path).key
    assert not home.key_file.path.exists()


def test_no_private_key_lies_in_the_clear(home: Home) -> None:
    enrol(home, Registry(home.registry), "a")
    rotate_root(home)
    secrets = private_keys(home)
    assert len(secrets) > 12
    assert found(home.path, secrets) == []
    assert found(home.path, secrets | {home.key}) == ["coordinator.key"]
    home.key_file.write(home.key, PASSPHRASE)
    assert found(home.path, secrets | {home.key, home.key.hex().encode()}) == []


def test_keys_cannot_be_exchanged(home: Home) -> None:
    folder = home.path / "pki"
    shutil.copyfile(folder / "log.key", folder / "server.key")
    with pytest.raises(ConfigError, match="server key does not open"):
        home.open_key("server")
    other = new_home(home.path.parent / "other")
    shutil.copyfile(other.path / "pki" / "log.key", folder / "log.key")
    with pytest.raises(ConfigError, match="log key does not open"):
        _ = home.log_key


def test_key_is_in_no_repr(home: Home) -> None:
    made = create(home.path.parent / "made", home.config)
    assert made.held == made.key
    assert made.key.hex() not in repr(made)
    assert str(made.key) not in repr(made)
