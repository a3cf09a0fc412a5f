"""What a killed process left of a result is taken away, and never what a living one makes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.predict.files import write_result

MAKES = """
import sys, time
from pathlib import Path
from client.predict import files

def stop(path, data):
    path.write_bytes(data)
    print("writing", flush=True)
    time.sleep(600)

files.write_atomically = stop
files.write_result(Path(sys.argv[1]), {"labels.png": b"patient"})
"""


def _at_work(folder: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of a result."""
    process = subprocess.Popen([sys.executable, "-c", MAKES, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    return process


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    dead, alive = _at_work(tmp_path), _at_work(tmp_path)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert len(list(tmp_path.glob(".partial-*/labels.png"))) == 2
        write_result(tmp_path, {"overlay.png": b"new"})
        (left,) = tmp_path.glob(".partial-*")
        assert (left / "labels.png").read_bytes() == b"patient"
    finally:
        alive.kill()
        alive.wait()
    write_result(tmp_path, {"overlay.png": b"newer"})
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.png"]


@pytest.mark.parametrize("name", [".partial-notes", ".partial-abcdefgh.txt", "partial-abcdefgh"])
def test_a_folder_that_is_none_of_ours_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".partial-abcdefgh").symlink_to(elsewhere)
    write_result(tmp_path, {"overlay.png": b"new"})
    assert (tmp_path / name).is_dir()
    assert elsewhere.is_dir()
    assert not any(elsewhere.iterdir())
