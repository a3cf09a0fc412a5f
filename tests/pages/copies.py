"""A copy of the packages with an example of docs/architecture.md in it, and the process that its commands come from.

To load the libraries takes longer than most commands' work: a copy loads them once, and every command is a process that
is parted from there, with the module that a person starts.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.patience import PATIENCE_S
from tests.system.play import SITES

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("client", "common", "server", "simulations")
FENCE = re.compile(r"^```python\n# (\S+\.py)(?:: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MODULES = {
    "wardround-client": "client.commands.main",
    "wardround-server": "server.commands.main",
    "wardround-sim": "simulations.commands.main",
}

SCENARIO = """
[run]
format = 2
name = "example"
seed = 3
deterministic = true
[run.model]
MODEL
[run.data]
modality = "photo"
classes = ["disc"]
validation-fraction = 0.2
test-fraction = 0.2
[run.training]
patch-size = [16, 16]
local-steps = 2
batch-size = 2
optimizer = "sgd"
learning-rate = 0.1
[run.federation]
rounds = 2
quorum = 2
"""
UNET = "channels = [4, 8]\nresidual-units = 0"
SITES_OF_THEIR_OWN = "".join(f'\n[[sites]]\nname = "{site}"\ndata = [{{path = "{site}"}}]\n' for site in SITES)


def sections() -> dict[str, list[tuple[str, str | None, str]]]:
    """What is added -> its blocks: file, table of that file or None for a new file, text."""
    parts = re.split(r"^## How to add an? (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return {
        name: [(path, table or None, text) for path, table, text in FENCE.findall(body)]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


EXAMPLES = sections()


def with_line(text: str, table: str, added: str) -> str:
    """A table's file with a line more, and the import that the line needs."""
    imported = "".join(line for line in added.splitlines(keepends=True) if line.startswith("from "))
    (line,) = [line for line in added.splitlines(keepends=True) if line.startswith("    ")]
    start = re.search(rf"^{table}: .* = [({{]$", text, re.MULTILINE)
    assert start is not None, f"there is no table {table}"
    end = re.compile(r"^[)}]", re.MULTILINE).search(text, start.end())
    assert end is not None
    text = text[: end.start()] + line + text[end.start() :]
    last = list(re.finditer(r"^from .*\n", text[: start.start()], re.MULTILINE))[-1]
    return text[: last.end()] + imported + text[last.end() :]


# Reads what to run, one line of JSON each, and answers with its exit code. What is loaded here is the same for all.
PARTS = """
import contextlib, importlib, json, os, sys, traceback
import client.commands.main, client.predict.prediction, server.commands.main, simulations.commands.main
import server.federation.rounds, simulations.backends.in_process, simulations.scenarios.scenario

def work(folder, after, module, arguments):
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    exec(after, {"os": os})
    importlib.import_module(module).app(arguments)

for line in sys.stdin:
    if (child := os.fork()) == 0:
        status = 1
        try:
            work(*json.loads(line))
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Packages:
    """The packages with an example in them, and the process that its commands come from."""

    def __init__(self, folder: Path, example: str) -> None:
        self.folder = folder
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package)  # with what is compiled already
        for path, table, text in EXAMPLES[example]:
            target = folder / path
            assert target.exists() == (table is not None), f"{path} is {'not there' if table else 'there already'}"
            target.write_text(text if table is None else with_line(target.read_text(), table, text))
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self._commands = subprocess.Popen(
            [sys.executable, "-c", PARTS],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def command(self, folder: Path, module: str, *arguments: object, after: str = "") -> tuple[int, str, str]:
        """A command to its end, in a process of its own.

        Args:
            folder: where it is typed.
            module: whose `app` it is.
            arguments: of the command line.
            after: Python that is run in the process before.

        Returns:
            Its exit code, and what it wrote to stdout and stderr.
        """
        asked = [str(folder), after, module, [str(argument) for argument in arguments]]
        assert self._commands.stdin is not None
        assert self._commands.stdout is not None
        print(json.dumps(asked), file=self._commands.stdin, flush=True)
        code = int(self._commands.stdout.readline())
        return code, (folder / "stdout").read_text(), (folder / "stderr").read_text()

    def close(self) -> None:
        """End the process."""
        self._commands.communicate(timeout=PATIENCE_S)


@dataclass(frozen=True)
class Copy:
    """Packages with an example, and a folder to work in."""

    packages: Packages
    folder: Path

    def run(self, module: str, *arguments: object, fails: bool = False) -> str:
        """A command to its end; what it printed, to both streams where it shall fail."""
        code, out, err = self.packages.command(self.folder, module, *arguments)
        assert (code != 0) == fails, out + err
        return out + err if fails else out

    def scenario(self, more: str, *, model: str = UNET, sites: str = SITES_OF_THEIR_OWN) -> Path:
        path = self.folder / "example.toml"
        path.write_text(SCENARIO.replace("MODEL", model) + more + sites)
        return path

    def listed(self, what: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.run("simulations.commands.main", "list", what, "--json"))
        return rows

    def trained(self, scenario: Path, *options: object, out: str = "out") -> dict[str, Any]:
        """Simulate two rounds; the run's summary."""
        self.run("simulations.commands.main", "run", scenario, "--out", self.folder / out, *options)
        summary: dict[str, Any] = json.loads((self.folder / out / "summary.json").read_text())
        assert (summary["status"], summary["rounds"]) == ("completed", 2)
        assert all(one["sites"] == sorted(SITES) and not one["refused"] for one in summary["sites-by-round"])
        return summary
