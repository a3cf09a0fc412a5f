"""The health check of a coordinator's container, beside `status`: it costs little, and finds what hangs too.

That it says well of a coordinator that runs is part of test_supervisor.py.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.system.locks import locked
from server.coordinator import health
from server.home.folder import DEFAULT, ENVIRONMENT
from tests import ROOT

LONG_AGO = 1000.0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """As it is while a coordinator runs; its processes are all this one."""
    with locked(tmp_path / health.LAUNCHER_NAME):
        (tmp_path / health.PROCESSES_NAME).write_text(json.dumps(dict.fromkeys(health.PROCESSES, os.getpid())))
        (tmp_path / health.SERVING_NAME).touch()
        yield tmp_path


def hang(path: Path) -> None:
    os.utime(path, (time.time() - LONG_AGO,) * 2)


def test_coordinator_whose_gateway_stands_still_is_alive_and_not_well(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert health.problem_of(home, alive=False) == ""
    hang(home / health.SERVING_NAME)
    assert "does not serve" in health.problem_of(home, alive=False)
    assert health.problem_of(home, alive=True) == ""
    monkeypatch.setenv(ENVIRONMENT, str(home))
    assert (health.main([]), health.main(["--alive"])) == (1, 0)


def test_process_that_is_gone_is_named(home: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    alive = dict.fromkeys(health.PROCESSES, os.getpid())
    (home / health.PROCESSES_NAME).write_text(json.dumps(alive | {"superexec": ended.pid}))
    assert health.problem_of(home, alive=False) == "not there: superexec"
    del alive["superlink"]
    (home / health.PROCESSES_NAME).write_text(json.dumps(alive))
    assert health.problem_of(home, alive=False) == "not there: superlink"


def test_launcher_that_hangs_or_is_gone_is_not_alive(home: Path, tmp_path: Path) -> None:
    hang(home / health.LAUNCHER_NAME)
    assert "no sign of life" in health.problem_of(home, alive=True)
    assert health.problem_of(tmp_path / "elsewhere", alive=True) == "no coordinator runs here"


def test_check_of_a_container_loads_next_to_nothing(tmp_path: Path) -> None:
    """It comes every half minute: no gRPC, no commands; the folder is the one that the environment names."""
    code = "import runpy, sys; runpy.run_module(sys.argv[1], run_name='there'); print(*sys.modules)"
    for module in ("server.coordinator.health", "client.agent.health"):
        here = {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-P", "-c", code, module]
        loaded = subprocess.run(command, env=here, capture_output=True, text=True, check=True)
        assert not {"grpc", "typer", "cryptography", "psutil", "pydantic", "torch"} & set(loaded.stdout.split())
    checked = subprocess.run(
        [sys.executable, "-P", "-m", "server.coordinator.health"],
        env={"PYTHONPATH": str(ROOT), ENVIRONMENT: str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (1, "no coordinator runs here\n")
    assert (health._VARIABLE, health._DEFAULT) == (ENVIRONMENT, DEFAULT)
