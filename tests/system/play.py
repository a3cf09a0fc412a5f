"""A coordinator and two hospitals as real processes, for tests that break something while they work.

The commands are those that people type; each process can be killed, and its children with it.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner

from client.site import open_site
from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import issue
from server.commands.main import app
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.generators.anatomy import SCANNERS
from simulations.generators.phantoms import write_hospital
from tests import ROOT
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import free_ports

SITES = ("north", "south")
RUN_TOML = """
name = "NAME"
seed = 3
deterministic = true
model = { channels = [8, 16] }
data = { modality = "CT", classes = ["lesion"] }
preprocessing = { spacing-mm = [6.0, 6.0], intensity = "window", window = [-100, 250] }
training = { local-steps = STEPS, batch-size = 2, patch-size = [16, 16] }
federation = { rounds = ROUNDS, quorum = 2, join-timeout-s = 300, round-timeout-s = TIMEOUT }
"""
POLICY = "require-privacy = false\nmin-patients = 4\nmin-held-out = 1\n"
PATIENTS = 5
# Generous: many tests may share two cores.
LONG_S = 240.0


class Play:
    """The processes, and what can be asked about a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.coordinator = folder / "coordinator"
        self.variables: dict[str, str] = {}  # for the processes that are started from now on
        self.said: list[tuple[str, ...]] = []  # all that was typed: module and arguments

    def spawn(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command; what it prints goes to a file."""
        self.said.append((module, *arguments))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {"WARDROUND_SERVER_HOME": str(self.coordinator)} | self.variables
        with (self.folder / "printed.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments], cwd=self.folder, env=environment, stdout=log, stderr=log
            )

    def typed(self, module: str, *arguments: str) -> str:
        """Run a command to its end; what it printed to stdout."""
        self.said.append((module, *arguments))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "WARDROUND_SERVER_HOME": str(self.coordinator)}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def server(self, *arguments: str) -> str:
        return self.typed("server.commands.main", *arguments)

    def asked(self, *arguments: str) -> str:
        """What a command of the coordinator prints, run in this process: for what is asked again and again."""
        done = CliRunner().invoke(app, arguments, env={"WARDROUND_SERVER_HOME": str(self.coordinator)})
        assert done.exit_code == 0, done.output
        return done.stdout

    def client(self, site: str, *arguments: str) -> str:
        return self.typed("client.commands.main", *arguments, "--home", str(self.folder / site))

    def start(self, name: str) -> None:
        """The coordinator or a site."""
        if name == "coordinator":
            self.processes[name] = self.spawn("server.commands.main", "start")
        else:
            self.processes[name] = self.spawn("client.commands.main", "start", "--home", str(self.folder / name))

    def stop(self, name: str) -> None:
        """Politely."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE_S)

    def kill(self, name: str) -> None:
        """With all its children, at once."""
        process = self.processes.pop(name)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            one.kill()
        process.wait(timeout=PATIENCE_S)

    def child(self, name: str, word: str) -> psutil.Process:
        """The child of a process whose command line has a word in it, once there is one that lives."""

        def found() -> psutil.Process | None:
            for one in psutil.Process(self.processes[name].pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # or it is a zombie
                    if word in " ".join(one.cmdline()):
                        return one
            return None

        process: psutil.Process = eventually(found, f"a child with {word}")
        return process

    def policy(self, site: str, more: str = "") -> None:
        (self.folder / site / "policy.toml").write_text(POLICY + more)

    def propose(self, name: str, *, rounds: int = 2, steps: int = 3, timeout_s: float = LONG_S) -> "Run":
        """Propose a run and approve it at both sites."""
        text = run_text(name, rounds, steps, timeout_s)
        (self.folder / f"{name}.toml").write_text(text)
        run = Run(self, name, parse(RunConfig, text))
        self.server("run", f"{name}.toml")
        for site in SITES:
            offer = self.folder / site / "proposals" / run.hash / "offer.json"
            eventually(offer.exists, f"{site} has looked at the run")
            self.client(site, "approve", name, "--yes")
        return run

    def end(self) -> None:
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self.processes.clear()


def run_text(name: str, rounds: int, steps: int, timeout_s: float) -> str:
    """A run.toml."""
    values = {"NAME": name, "ROUNDS": rounds, "STEPS": steps, "TIMEOUT": f"{timeout_s:g}"}
    return re.sub("|".join(values), lambda found: str(values[found.group()]), RUN_TOML)


class Run:
    """One run of the play."""

    def __init__(self, play: Play, name: str, config: RunConfig) -> None:
        self.play, self.name, self.config, self.hash = play, name, config, sha256_of(config)
        self.folder = play.coordinator / "runs" / f"{name}-{self.hash[:8]}"

    def row(self) -> dict[str, Any]:
        """As `runs` shows it."""
        rows: list[dict[str, Any]] = json.loads(self.play.asked("runs", "--json"))
        return next(row for row in rows if row["run"] == self.name)

    def ended(self) -> dict[str, Any]:
        """Wait until it is closed."""
        return dict(eventually(lambda: (row := self.row())["state"] not in ("proposed", "running") and row, "its end"))

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def model(self) -> str:
        """SHA-256 of the model it ended with."""
        return str(json.loads((self.folder / "summary.json").read_text())["model-sha256"])

    def unbroken(self, out: Path) -> str:
        """SHA-256 of the model of the same run, simulated in this process where nothing breaks."""
        sites = [open_site(self.play.folder / site) for site in SITES]
        return str(federate(InProcessGrid(sites, issue(self.config)), issue(self.config), out).model_sha256)


@contextmanager
def playing(folder: Path, play: Play | None = None, line: Callable[[str, int], int] | None = None) -> Iterator[Play]:
    """From nothing to two hospitals that wait for a run.

    Args:
        folder: for all of it.
        play: looks after the processes.
        line: the port by which a site reaches the gateway's port; None: that port itself.
    """
    play = play or Play(folder)
    for site, scanner in zip(SITES, "ab", strict=True):
        write_hospital(folder / f"{site}-pacs", scanner=SCANNERS[scanner], patients=PATIENTS, seed=5, slices=4, rows=64)
    ports = [str(port) for port in free_ports(3)]
    options = zip(("--gateway-port", "--enrolment-port", "--superlink-port"), ports, strict=True)
    play.server("init", *(word for pair in options for word in pair))
    settings = play.coordinator / "server.toml"
    # A minute for each run that is completed; test_deployment has them made.
    settings.write_text(settings.read_text().replace("exchange-forms = true", "exchange-forms = false"))
    try:
        play.start("coordinator")
        play.server("invite", *SITES, "--out", str(folder))
        if line is not None:
            for site in SITES:
                path = folder / f"{site}.json"
                invitation = json.loads(path.read_text()) | {"gateway": f"127.0.0.1:{line(site, int(ports[0]))}"}
                path.write_text(json.dumps(invitation))
        joins = [
            play.spawn("client.commands.main", "join", f"{site}.json", "--home", str(folder / site)) for site in SITES
        ]
        eventually(lambda: len(json.loads(play.asked("requests", "--json"))) == len(SITES), "both ask to join")
        play.server("approve", *SITES)
        for join in joins:
            assert join.wait(timeout=PATIENCE_S) == 0
        for site in SITES:
            play.client(site, "data", "add", f"{site}-pacs")
            play.policy(site)
            path = folder / site / "site.toml"
            path.write_text("threads = 1\n" + path.read_text())
            play.start(site)
        yield play
    finally:
        play.end()
