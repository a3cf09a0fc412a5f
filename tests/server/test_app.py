"""The ServerApp's process does not outlive the one that started it, whatever it hangs on."""

import contextlib
import subprocess
import sys

import psutil

from tests import ROOT
from tests.patience import eventually

# As the process was found after a killing: SIGINT has no effect, and the main thread waits for a lock.
HANGS = """
import contextlib, os, signal, threading
from server.app import _end_with_parent
parent = os.getppid
def look():
    with contextlib.suppress(OSError):  # when nobody reads any more
        os.write(1, b"look\\n")
    return parent()
os.getppid = look
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
_end_with_parent()
threading.Event().wait()
"""
STARTS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.pid, flush=True)
for line in child.stdout:
    print(line.strip(), flush=True)
"""


def test_process_that_hangs_ends_with_its_parent_and_not_before() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS, HANGS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    try:
        word, pid = parent.stdout.readline().split()
        child = psutil.Process(int(pid))
        assert word == "ready"
        assert [parent.stdout.readline() for _ in range(4)] == ["look\n"] * 4
        assert child.is_running()
    finally:
        parent.kill()
        parent.wait()
    with contextlib.suppress(psutil.NoSuchProcess):  # gone between two looks
        eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "its end with its parent")
