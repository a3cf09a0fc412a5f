"""Twelve sites at a real coordinator: every update of every round arrives, under a receipt, and all is measured."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from common.audit.entries import Entry
from server.home.folder import open_home
from server.registry.audit_trail import open_log
from simulations.bench.many_sites import PROCESSES, SMALL, measure
from tests.patience import PATIENCE_S

SITES, ROUNDS = 12, 2


def test_no_update_and_no_receipt_of_twelve_sites_is_lost(tmp_path: Path) -> None:
    figures = measure(tmp_path, sites=SITES, rounds=ROUNDS, idle_s=1.0, channels=SMALL)
    assert (figures.lost, len(figures.seconds)) == (0, ROUNDS)
    made = ROUNDS + 1
    # One reply to each request to train, and to those to validate and to test: nothing was asked twice.
    assert figures.met["replies"] == SITES * (made + 2)
    entries = open_log(open_home(tmp_path / "coordinator")).entries()
    assert _counted(entries, "arrived") == _counted(entries, "entered") == _counted(entries, "round")
    assert _counted(entries, "entered") == {(number, 1): SITES for number in range(1, made + 1)}
    assert set(figures.cpu_s) == set(PROCESSES)
    assert all(unit and value >= 0 for _, value, unit in figures.rows())


def test_a_bench_that_is_terminated_leaves_no_coordinator_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "simulations.commands.main", "bench", "sites", "--small"]
    process = subprocess.Popen(
        [*command, "--sites", "2", "--rounds", "1000"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started: list[psutil.Process] = []
    try:
        started = _family(process, until="server.coordinator.serve")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        _, left = psutil.wait_procs(started, timeout=PATIENCE_S)
        assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()
        for one in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def _family(process: subprocess.Popen[bytes], *, until: str) -> list[psutil.Process]:
    """All that a process has started, once one of them runs that module."""
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # one has just ended
            found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
            if any(until in one.cmdline() for one in found):
                return found
        time.sleep(0.2)
    raise AssertionError(f"it ended before {until} was started")


def _counted(entries: tuple[Entry, ...], kind: str) -> dict[tuple[int, int], int]:
    """(round, how often) -> the number of sites of which the log has the entry so often."""
    about = [dict(one.fields.get("receipt") or one.fields) for one in entries if one.kind == kind]
    often = Counter((one["round"], one["site"]) for one in about)
    return dict(Counter((number, times) for (number, _), times in often.items()))
