"""A full disk at a hospital ends nothing: the agent says so, spends nothing, and goes on when there is room."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.patience import PATIENCE_S

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def test_agent_with_a_full_disk_says_so_spends_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel allows no mount namespace here, so there is no small disk to fill")
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.client.full_disk", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {
        "before": "TrainReply",
        "full": ["disk-full", "disk-full"],
        "full, scores": "disk-full",
        "alive": True,
        "connections": 1,
        "room again": "TrainReply",
        "full after the work": "disk-full",
        "alive then": True,
        "ended well": True,
        "started on a full disk": True,
        "and with room": "TrainReply",
        "charges": [1, 2, 3],
        "entries": {"spend": 3, "round": 3},
    }
