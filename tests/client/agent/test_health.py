"""The health check of a site's container, beside `status`."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client.agent import health
from client.agent.status import Status, only_one
from client.home.folder import ENVIRONMENT
from client.home.identity import Identity


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """As it is while an agent runs and is connected."""
    identity = cast(Identity, SimpleNamespace(site="north", gateway="127.0.0.1:1", days_left=30))
    with only_one(tmp_path):
        Status(tmp_path, identity).connected(7, 0.0)
        yield tmp_path


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"state": "connecting"}, "not connected: connecting"),
        ({"disk": "disk-full"}, "the disk: disk-full"),
        ({"audit": "CONFLICT: theirs is shorter"}, "the audit logs do not fit"),
    ],
)
def test_agent_that_cannot_work_is_alive_and_not_well(
    home: Path, written: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To start its container anew brings no coordinator back and no room on the disk."""
    assert health.problem_of(home, alive=False) == ""
    path = home / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | written))
    assert health.problem_of(home, alive=False) == said
    assert health.problem_of(home, alive=True) == ""
    monkeypatch.setenv(ENVIRONMENT, str(home))
    assert (health.main([]), health.main(["--alive"])) == (1, 0)
    assert capsys.readouterr().out == f"{said}\nwell\n"


def test_agent_that_hangs_or_is_gone_is_not_alive(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.utime(home / "agent.lock", (time.time() - 1000,) * 2)
    monkeypatch.setenv(ENVIRONMENT, str(home))
    assert health.main(["--alive"]) == 1
    assert "no sign of life" in capsys.readouterr().out
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "elsewhere"))
    assert health.main([]) == 1
    assert capsys.readouterr().out == "no agent runs here\n"
