"""The README's way from nothing to the first round of two hospitals, pasted into a shell as it stands there."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from simulations.generators.phantoms import SCANNERS, write_hospital
from tests import ROOT, loopback
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import free_ports

pytestmark = pytest.mark.system

README = (ROOT / "README.md").read_text(encoding="utf-8")
PATIENTS = 20
DEFAULT_PORTS = (9443, 9444, 9445)


def block() -> str:
    """The block of the README that goes from nothing to the first round."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    found: str
    (found,) = [one for one in blocks if "wardround-server init" in one and "wardround-client join" in one]
    return found


class Shell:
    """An interactive bash on a terminal of its own; what is pasted is there at once, and all it shows is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.screen = ""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PS1": "$ ",
            "TERM": "xterm",
        }
        self._terminal, other = pty.openpty()
        self._bash = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"],  # the terminal, with its jobs, is this shell's
            cwd=folder,
            env=environment,
            stdin=other,
            stdout=other,
            stderr=other,
        )
        os.close(other)

    def paste(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, what: str, check: Callable[[], object]) -> None:
        def seen() -> object:
            self._read(0.3)
            return check()

        eventually(seen, lambda: f"{what}\n{self.screen[-6000:]}\n{self._logs()}")

    def query(self, line: str) -> list[dict[str, object]]:
        """The rows of a command with --json, typed elsewhere."""
        words = [str(Path(sys.executable).parent / line.split(maxsplit=1)[0]), *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, check=False)
        rows: list[dict[str, object]] = json.loads(done.stdout or b"[]")
        return rows

    def close(self) -> None:
        started = psutil.Process(self._bash.pid).children(recursive=True)
        self.paste("\x03\nkill %1 %2 %3; wait; exit\n")
        try:
            self.wait_for("the end of the shell", lambda: self._bash.poll() is not None)
        finally:
            _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
            for one in alive:
                one.kill()
        self._bash.send_signal(signal.SIGKILL)
        self._bash.wait()
        os.close(self._terminal)
        assert alive == [], self.screen[-3000:]

    def _read(self, seconds: float) -> None:
        try:
            while select.select([self._terminal], [], [], seconds)[0]:
                self.screen += os.read(self._terminal, 65536).decode(errors="replace")
                seconds = 0.0
        except OSError:  # the shell has gone
            time.sleep(seconds)

    def _logs(self) -> str:
        paths = [*self.folder.glob("*/logs/*.log")]
        return "\n".join(f"{path}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    for site, scanner, seed in (("north", "a", 1), ("south", "b", 2)):
        folder = tmp_path / "path" / "to" / site
        write_hospital(folder, scanner=SCANNERS[scanner], patients=PATIENTS, seed=seed, slices=4, rows=64)
    opened = Shell(tmp_path)
    yield opened
    opened.close()


def as_here(text: str) -> str:
    """The text as it stands; with other ports where the run has no network of its own, and these may be in use."""
    if loopback.entered():
        return text
    names = zip(("gateway", "enrolment", "superlink"), free_ports(3), strict=True)
    options = " ".join(f"--{name}-port {port}" for name, port in names)
    return text.replace("wardround-server init", f"wardround-server init {options}", 1)


def test_the_readmes_block_goes_from_nothing_to_the_first_round_when_it_is_pasted_into_a_shell(shell: Shell) -> None:
    pasted = block()
    assert len(pasted.splitlines()) <= 8
    before = README.partition(pasted)[0].rpartition("\n**")[2]
    (new,) = re.findall(r"`(wardround-server new \S+)`", before)
    shell.paste(f"{new}\n{as_here(pasted)}")
    folder = shell.folder / "wardround-server" / "runs"
    shell.wait_for("the first round", lambda: '"event": "round"' in _metrics(folder))
    first = next(line for line in _metrics(folder).splitlines() if '"event": "round"' in line)
    assert json.loads(first)["sites"] == ["north", "south"]
    # Both ends showed the same phrases, and nothing but results and what a person needs was on the screen.
    shell.wait_for("the last command", lambda: shell.screen.count("Approved lesions") == 2)
    for site in ("north", "south"):
        (phrase,) = re.findall(rf"{site} is active until [0-9-]+\. Phrase: ([a-z -]+)", shell.screen)
        assert f"Phrase: {phrase}" in shell.screen.replace(f"{site} is active", "")
    assert not re.search(r" (INFO|WARNING|ERROR) ", shell.screen), shell.screen
    assert "error" not in shell.screen
    assert "not counted" not in shell.screen
    rows = [shell.query(f"wardround-client runs --json --home {site}")[0] for site in ("north", "south")]
    assert [row["policy"] for row in rows] == ["allows", "allows"]
    # Each act was signed with the key that `init` made, and the signatures are right.
    shell.paste("wardround-server audit verify\nwardround-server audit export --out log.jsonl\n")
    shell.wait_for("the export", lambda: (shell.folder / "log.jsonl").exists() and "All is well." in shell.screen)
    entries = [json.loads(line) for line in (shell.folder / "log.jsonl").read_text().splitlines()]
    acts = [(one["operator"], one["action"]) for one in entries if one.get("kind") == "act"]
    assert acts[:5] == [("admin", action) for action in ("invite", "invite", "approve", "approve", "run")]


def _metrics(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*/metrics.jsonl"))
