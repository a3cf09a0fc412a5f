"""One holder at a time, of all threads and processes, and none after a crash."""

import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from common.system import locks
from common.system.locks import is_locked, left_behind, locked
from tests.patience import PATIENCE_S, eventually

_HOLDS = """
import sys, time
from pathlib import Path
from common.system.locks import locked
with locked(Path(sys.argv[1])) as file:
    file.write("a word")
    file.flush()
    print("held", flush=True)
    time.sleep(600)
"""


def is_waited_for(path: Path) -> bool:
    """Whether somebody waits for it, as the kernel says: `7: -> FLOCK ADVISORY WRITE pid major:minor:inode ...`."""
    waiting = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(fields[6].endswith(f":{path.stat().st_ino}") for fields in waiting)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "lock"


def test_second_holder_is_told_when_its_patience_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 100.0 + sum(waited), sleep=waited.append)
    monkeypatch.setattr(locks, "time", clock)
    with locked(path), pytest.raises(ConfigError, match="busy"), locked(path, ConfigError("busy"), patience_s=3.0):
        pass
    assert 3.0 < sum(waited) <= 3.0 + 2 * max(waited)


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
        eventually(lambda: is_waited_for(path))
        order.append("first")
    thread.join(timeout=PATIENCE_S)
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
    stopped, seen, looks = threading.Event(), set(), threading.Semaphore(0)

    def look() -> None:
        while not stopped.is_set():
            seen.add(is_locked(path))
            looks.release()

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for one in lookers:
        one.start()
    try:
        assert all(looks.acquire(timeout=PATIENCE_S) for _ in range(200))
        assert seen == {False}
        for _ in range(20):
            with locked(path, ConfigError("busy")):
                pass
    finally:
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
