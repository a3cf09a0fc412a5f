"""The README's way from nothing to the first round of two hospitals, typed as it stands there."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from simulations.phantoms import SCANNERS, write_hospital
from tests.server.coordinator import free_ports

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
PATIENTS = 12
RUN = """
name = "lesions"
[model]
channels = [8, 16]
[data]
modality = "CT"
classes = ["lesion"]
[preprocessing]
spacing-mm = [8.0, 8.0]
intensity = "window"
window = [-100, 250]
[training]
local-steps = 1
patch-size = [16, 16]
[federation]
rounds = 2
[privacy]
target-epsilon = 8.0
crops-per-patient = 1
"""


def typed() -> list[str]:
    """The block of the README that begins with `init --start`."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = [one for one in blocks if "init --start" in one]
    return block.splitlines()


class Terminal:
    """One folder, one shell's environment; commands ending in & go on in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._background: list[subprocess.Popen[bytes]] = []
        programs = Path(sys.executable).parent
        self._environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def type(self, line: str) -> str:
        words = shlex.split(line.removesuffix("&"))
        if not line.endswith("&"):
            done = subprocess.run(words, cwd=self.folder, env=self._environment, capture_output=True, check=False)
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            return done.stdout.decode()
        with (self.folder / f"{len(self._background)}.log").open("wb") as log:
            self._background.append(
                subprocess.Popen(words, cwd=self.folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT)
            )
        return ""

    def wait_for(self, what: str, check: Callable[[], object], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"{what}\n{logs}"
            time.sleep(0.3)

    def query(self, line: str) -> list[dict[str, object]]:
        done = subprocess.run(
            shlex.split(line), cwd=self.folder, env=self._environment, capture_output=True, check=False
        )
        rows: list[dict[str, object]] = json.loads(done.stdout or b"[]")
        return rows

    def close(self) -> None:
        family = [child for one in self._background for child in _family(one.pid)]
        for one in reversed(self._background):
            one.terminate()
        for one in self._background:
            one.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []


def _family(pid: int) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    for site, scanner, seed in (("north", "a", 1), ("south", "b", 2)):
        folder = tmp_path / "path" / "to" / site
        write_hospital(folder, scanner=SCANNERS[scanner], patients=PATIENTS, seed=seed, slices=4, rows=64)
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


def test_the_readme_goes_from_nothing_to_the_first_round_in_eight_commands(terminal: Terminal) -> None:
    commands = typed()
    assert len(commands) <= 8
    init, invite, *joins, approve, run, one, other = commands
    ports = free_ports(3)  # the default ports may be in use on the machine that tests
    options = " ".join(
        f"--{name}-port {port}" for name, port in zip(("gateway", "enrolment", "superlink"), ports, strict=True)
    )
    terminal.type(init.replace("--start", f"--start {options}"))
    terminal.wait_for("the coordinator is ready", lambda: "ready:" in (terminal.folder / "0.log").read_text())
    terminal.type(invite)
    for join in joins:
        terminal.type(join)
    requests = "wardround-server requests --json"
    terminal.wait_for("both ask to join", lambda: len(terminal.query(requests)) == 2)
    phrases = {str(row["site"]): str(row["phrase"]) for row in terminal.query(requests)}
    for number, site in ((1, "north"), (2, "south")):
        assert phrases[site] in (terminal.folder / f"{number}.log").read_text()
    terminal.type(approve)
    sites = "wardround-server sites --json"
    terminal.wait_for("both are connected", lambda: [row["connected"] for row in terminal.query(sites)] == ["yes"] * 2)
    terminal.type(run)
    for command, home in ((one, "north"), (other, "south")):
        runs = f"wardround-client runs --json --home {home}"
        terminal.wait_for(
            "the run is appraised", lambda runs=runs: [r["policy"] for r in terminal.query(runs)] == ["allows"]
        )
        terminal.type(command)
    folder = terminal.folder / "wardround-server" / "runs"
    terminal.wait_for("the first round", lambda: '"event": "round"' in _metrics(folder), 180.0)
    first = next(line for line in _metrics(folder).splitlines() if '"event": "round"' in line)
    assert json.loads(first)["sites"] == ["north", "south"]
    # Each was signed with the key that `init` made, and the signatures are right.
    terminal.type("wardround-server audit verify")
    terminal.type("wardround-server audit export --out log.jsonl")
    entries = [json.loads(line) for line in (terminal.folder / "log.jsonl").read_text().splitlines()]
    acts = [(one["operator"], one["action"]) for one in entries if one.get("kind") == "act"]
    assert acts[:5] == [("admin", action) for action in ("invite", "invite", "approve", "approve", "run")]


def _metrics(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*/metrics.jsonl"))
