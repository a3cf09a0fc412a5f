"""One holder at a time, of all threads and processes, and none after a crash."""

import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.system.locks import is_locked, left_behind, locked

_HOLDS = """
import sys, time
from pathlib import Path
from common.system.locks import locked
with locked(Path(sys.argv[1])) as file:
    file.write("a word")
    file.flush()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "lock"


def test_second_holder_is_told_within_its_patience(path: Path) -> None:
    begun = time.monotonic()
    with locked(path), pytest.raises(ConfigError, match="busy"), locked(path, ConfigError("busy"), patience_s=0.05):
        pass
    assert time.monotonic() - begun < 5


def test_without_an_error_the_holder_is_waited_for(path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(path):
        inside.set()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_killed_process_leaves_its_words_and_no_lock(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDS, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_locked(path)
        assert left_behind(path) is None
        holder.kill()
    assert not is_locked(path)
    assert left_behind(path) == "a word"
    with locked(path, ConfigError("busy"), patience_s=0):
        pass


def test_whoever_only_looks_keeps_nobody_out(path: Path) -> None:
    """The lock was taken for a look, so that of two looks one saw a holder, and an agent did not start beside one."""
    with locked(path):
        pass
    stopped, seen = threading.Event(), set()

    def look() -> None:
        while not stopped.is_set():
            seen.add(is_locked(path))
            time.sleep(0.002)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for one in lookers:
        one.start()
    time.sleep(0.2)
    assert seen == {False}
    for _ in range(20):
        with locked(path, ConfigError("busy")):
            pass
    stopped.set()
    for one in lookers:
        one.join()


def test_nobody_holds_what_was_never_there_and_a_look_makes_nothing(path: Path) -> None:
    assert not is_locked(path)
    assert left_behind(path) is None
    assert not path.parent.exists()


def test_lock_is_its_owners_alone(path: Path) -> None:
    with locked(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
