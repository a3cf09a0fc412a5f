"""The ServerApp's process does not outlive the one that started it, whatever it hangs on."""

import contextlib
import subprocess
import sys
import time

import psutil

from tests import ROOT

# As the process was found after a killing: SIGINT has no effect, and the main thread waits for a lock.
HANGS = """
import signal, threading
from server.app import _end_with_parent
signal.signal(signal.SIGINT, signal.SIG_IGN)
_end_with_parent()
print("ready", flush=True)
threading.Event().wait()
"""
STARTS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.pid, flush=True)
time.sleep(600)
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
        time.sleep(2.0)
        assert child.is_running()
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 120
    with contextlib.suppress(psutil.NoSuchProcess):  # gone between two looks
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "it has outlived its parent"
            time.sleep(0.2)
