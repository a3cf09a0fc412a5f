"""The demo is interrupted, and nothing of it stays behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import ROOT
from tests.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.system


def processes_naming(folder: Path) -> list[str]:
    """Command lines on this machine that name the folder, or work in it."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def play_until(stage: str, folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-u", "-m", "deploy.demo", "--out", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    while_it_plays(demo, lambda: stage in log.read_text(), log)
    return demo, log


def while_it_plays(demo: "subprocess.Popen[bytes]", check: Callable[[], bool], log: Path) -> None:
    def came() -> bool:
        assert demo.poll() is None, log.read_text()
        return check()

    eventually(came, log.read_text)


@pytest.mark.parametrize(
    ("stage", "works", "number"),
    [("2/6", "server.coordinator.serve", signal.SIGINT), ("4/6", "client.worker.main", signal.SIGTERM)],
    ids=["coordinator", "agents"],
)
def test_interrupted_demo_leaves_no_process_and_can_be_played_again(
    stage: str, works: str, number: signal.Signals, tmp_path: Path
) -> None:
    folder = tmp_path / "demo"
    demo, log = play_until(stage, folder)
    # In the middle of that stage.
    while_it_plays(demo, lambda: any(works in line for line in processes_naming(folder)), log)
    demo.send_signal(number)
    assert demo.wait(timeout=PATIENCE_S) == 130, log.read_text()
    eventually(lambda: not processes_naming(folder), lambda: f"all have ended: {processes_naming(folder)}")

    again, log = play_until("2/6", folder)
    again.send_signal(signal.SIGINT)
    assert again.wait(timeout=PATIENCE_S) == 130, log.read_text()
