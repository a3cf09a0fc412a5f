"""The worked examples of docs/architecture.md, taken from the page and trained: one new file and one line in a table.

Each is put into a copy of the packages, and nothing else there is touched; processes of that copy then do the rest. To
load the libraries takes each of them longer than its work: a copy loads them once, and every command is a process that
is parted from there, with the module that a person starts.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from client.home.folder import STRATEGIES_NAME
from client.site import open_site
from common.config.rundocument import from_toml
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.partitions import PARTITION_CHOICE
from tests import ROOT
from tests.simulations.tiny import tiny_site
from tests.system import play
from tests.system.play import SITES, Play, eventually, playing

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("client", "common", "server", "simulations")
FENCE = re.compile(r"^```python\n# (\S+\.py)(?:: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MOST_LINES = 60

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
import client.commands.main, client.predict.prediction, simulations.commands.main
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
        self._commands.communicate(timeout=60)


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


Copies: TypeAlias = Callable[[str], Copy]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Packages]]:
    """The packages with each example that was asked for."""
    examples: dict[str, Packages] = {}
    yield examples
    for one in examples.values():
        one.close()


@pytest.fixture
def copies(made: dict[str, Packages], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """Makes a copy with an example, in a folder with the pictures of two sites."""

    def copy_of(example: str) -> Copy:
        if example not in made:
            made[example] = Packages(tmp_path_factory.mktemp("packages"), example)
        for site in SITES:
            tiny_site(tmp_path / site, site)
        return Copy(made[example], tmp_path)

    return copy_of


def test_the_page_tells_how_to_add_each_kind_of_member() -> None:
    assert list(EXAMPLES) == ["network", "task", "strategy", "preparation step", "partition", "backend"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_one_short_file_and_one_line_in_a_table(example: str) -> None:
    new = [(path, text) for path, table, text in EXAMPLES[example] if table is None]
    lines = [(path, text) for path, table, text in EXAMPLES[example] if table is not None]
    halves = 3 if example == "strategy" else 1
    assert (len(new), len(lines)) == (halves, halves)
    assert all(len(text.splitlines()) < MOST_LINES for _, text in new)
    assert all(sum(line.startswith("    ") for line in text.splitlines()) == 1 for _, text in lines)
    assert all(text.startswith(("from", '"""')) for _, text in new + lines)
    # Each file goes into the folder of its table.
    assert sorted(str(Path(path).parent) for path, _ in new) == sorted(str(Path(path).parent) for path, _ in lines)


def test_an_added_network_trains(copies: Copies) -> None:
    copy = copies("network")
    assert [row["network"] for row in copy.listed("networks")][-1] == "plain"
    summary = copy.trained(copy.scenario("", model='architecture = "plain"\nlayers = 2'))
    assert summary["settings"]["model"] == {"architecture": "plain", "dims": 2, "width": 8, "layers": 2}
    assert "dice" in summary["scores"]["test"]["mean-of-sites"]
    told = copy.run(
        "simulations.commands.main", "run", copy.scenario("", model="layers = 2"), "--out", "no", fails=True
    )
    assert "run.model.layers'. It is a key of plain;" in " ".join(told.split())


def test_an_added_task_trains_and_is_scored_by_its_own_names(copies: Copies) -> None:
    copy = copies("task")
    assert {task["task"]: task["headline"] for task in copy.listed("tasks")}["presence"] == "accuracy"
    summary = copy.trained(copy.scenario('[run.task]\nkind = "presence"\n'))
    for scores in summary["scores"]["test"]["sites"].values():
        assert set(scores) == {"accuracy"}
        assert 0 <= scores["accuracy"] <= 1
    report = (copy.folder / "out" / "report.html").read_text()
    assert "Accuracy on validation patients" in report
    assert "ice on validation" not in report
    told = copy.run(
        "client.commands.main",
        "predict",
        copy.folder / "out",
        copy.folder / "north" / "images",
        "--out",
        "no",
        fails=True,
    )
    assert "draws nothing" in told


def test_an_added_step_is_applied_where_a_run_names_it(copies: Copies) -> None:
    copy = copies("preparation step")
    assert copy.listed("steps")[-1]["step"] == "mirroring"
    mirrored = copy.trained(copy.scenario('[run.preprocessing]\nsteps = [{ kind = "mirroring" }]\n'))
    plain = copy.trained(copy.scenario(""), out="plain")
    assert mirrored["model-sha256"] != plain["model-sha256"]


def test_an_added_partition_deals_patients_as_it_says(copies: Copies) -> None:
    copy = copies("partition")
    assert [row["partition"] for row in copy.listed("partitions")] == [*PARTITION_CHOICE.by_name, "shares"]
    for path in (copy.folder / "archive" / kind for kind in ("images", "labels")):
        path.mkdir(parents=True)
    tiny_site(copy.folder / "archive", "archive", patients=15)
    sites = (
        f'\n[partition]\nkind = "shares"\nshares = [2, 1]\nsites = {list(SITES)}\n'
        '[partition.source]\npath = "archive"\nkind = "images"\n'
    )
    copy.trained(copy.scenario("", sites=sites.replace("'", '"')))
    dealt = [(copy.folder / "out" / "sites" / site / "site.toml").read_text() for site in SITES]
    patients = [json.loads(re.findall(r'^"?patients"? = (\[.*\])$', text, re.MULTILINE)[0]) for text in dealt]
    assert [len(one) for one in patients] == [10, 5]
    assert len({patient for one in patients for patient in one}) == 15


def test_an_added_backend_gives_the_same_model(copies: Copies) -> None:
    copy = copies("backend")
    assert [row["backend"] for row in copy.listed("backends")] == ["processes", "in-process", "ray", "shuffled"]
    shuffled = copy.trained(copy.scenario(""), "--backend", "shuffled")
    usual = copy.trained(copy.scenario(""), out="usual")
    assert shuffled["model-sha256"] == usual["model-sha256"]
    told = copy.run(
        "simulations.commands.main", "run", copy.scenario(""), "--out", "no", "--backend", "moon", fails=True
    )
    assert "processes, in-process, ray, shuffled" in told


STRATEGY = '[run.strategy]\nkind = "mimelite"\nbeta = 0.5\n'
PRIVACY = "[run.privacy]\ntarget-epsilon = 50\n"


def test_an_added_strategy_trains_with_its_second_part(copies: Copies) -> None:
    copy = copies("strategy")
    (row,) = (one for one in copy.listed("strategies") if one["strategy"] == "mimelite")
    assert (row["down"], row["up"], row["private"]) == (["weights", "momentum"], ["weights", "gradient"], False)
    out = copy.folder / "out"
    summary = copy.trained(copy.scenario(STRATEGY))
    usual = copy.trained(copy.scenario(""), out="usual")
    first, second = (event for event in events(out) if event["event"] == "round")
    assert first["momentum-sha256"] != second["momentum-sha256"]
    # The first round starts without momentum, but half of each gradient is gone.
    assert summary["model-sha256"] != usual["model-sha256"]
    assert summary["bytes-up"] > 1.9 * usual["bytes-up"]
    # What it holds is the checkpoint.
    assert (out / "checkpoint" / "round-00002" / "momentum" / "model.safetensors").is_file()


def test_an_added_strategy_resumes_to_the_same_model(copies: Copies) -> None:
    """Killed after its first round: the momentum goes on from the checkpoint."""
    copy = copies("strategy")
    scenario = copy.scenario(STRATEGY)
    unbroken = copy.trained(scenario)
    kill = (
        "from server.federation import rounds\nkeep = rounds.keep\n"
        "def kept(*given):\n    keep(*given)\n    os._exit(9)\n"
        "rounds.keep = kept"
    )
    broken, *_ = copy.packages.command(
        copy.folder, "simulations.commands.main", "run", scenario, "--out", copy.folder / "broken", after=kill
    )
    assert broken == 9
    assert [path.name for path in (copy.folder / "broken" / "checkpoint").iterdir()] == ["round-00001"]
    assert copy.trained(scenario, out="broken")["model-sha256"] == unbroken["model-sha256"]


def test_an_added_strategy_is_refused_under_privacy(copies: Copies) -> None:
    copy = copies("strategy")
    told = copy.run("simulations.commands.main", "run", copy.scenario(STRATEGY + PRIVACY), "--out", "out", fails=True)
    assert "quorum" in told
    failed = next(event for event in events(copy.folder / "out") if event["event"] == "run-failed")
    assert all(f"{site} (policy-refused)" in failed["reason"] or site in failed["reason"] for site in SITES)
    copy.trained(copy.scenario(PRIVACY), out="usual")


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


DEPLOYED = """
format = 2
name = "NAME"
seed = 3
deterministic = true
model = { channels = [8, 16] }
data = { modality = "CT", classes = ["lesion"] }
preprocessing = { spacing-mm = [6.0, 6.0], intensity = "window", window = [-100, 250] }
training = { local-steps = 2, batch-size = 2, patch-size = [16, 16], optimizer = "sgd", learning-rate = 0.05 }
federation = { rounds = 2, quorum = 2, join-timeout-s = 300, round-timeout-s = 240 }
strategy = { kind = "mimelite" }
"""


@pytest.mark.system
def test_an_added_strategy_trains_deployed_and_is_refused_there_under_privacy(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes and channels: the second part passes codec, gate, checks and receipts, which know no name."""
    copy = copies("strategy")
    monkeypatch.setattr(play, "ROOT", copy.packages.folder)
    folder = tmp_path / "stage"
    folder.mkdir()
    with playing(folder) as stage:
        rounds = deployed(stage, "plain", DEPLOYED)
        assert [one["sites"] for one in rounds] == [sorted(SITES)] * 2
        assert rounds[0]["momentum-sha256"] != rounds[1]["momentum-sha256"]
        # What a site keeps for the next round is written by a worker in its sandbox: to the bit as in a simulation.
        remembering = DEPLOYED.replace('"mimelite"', '"scaffold"').replace("rounds = 2", "rounds = 3")
        rounds = deployed(stage, "remembering", remembering)
        assert [one["sites"] for one in rounds] == [sorted(SITES)] * 3
        assert not list(folder.glob(f"*/{STRATEGIES_NAME}/*"))
        document = from_toml(remembering.replace("NAME", "remembering"))
        federate(
            InProcessGrid([open_site(folder / site) for site in SITES], document), document, tmp_path / "simulated"
        )
        simulated = [event for event in events(tmp_path / "simulated") if event["event"] == "round"]
        assert [one["model-sha256"] for one in rounds] == [one["model-sha256"] for one in simulated]
        private = DEPLOYED.replace("NAME", "private") + "privacy = { target-epsilon = 8.0 }\n"
        (folder / "private.toml").write_text(private)
        for site in SITES:
            told = copy.run(
                "client.commands.main", "policy", "check", folder / "private.toml", "--home", folder / site, fails=True
            )
            assert "sends gradient beside the weights, which no guarantee covers" in " ".join(told.split())
        stage.server("run", "private.toml")
        digest = row(stage, "private")["hash"]
        # A person's yes does not help: each site says no to what its policy refuses. One no is enough to end the run.
        eventually(lambda: row(stage, "private")["state"] == "failed", "a site says no, and the run fails")
        failed = row(stage, "private")
        refusing = {one.parts[-4] for one in folder.glob(f"*/proposals/{digest}/told.json")}
        assert refusing
        assert refusing <= set(SITES)
        # The other's answer may come after the run is closed.
        assert failed["denied"] == []
        assert set() < set(failed["refused"]) <= refusing
        assert all(
            f"refused by the policy of {site} (policy-refused)" in failed["reason"] for site in failed["refused"]
        )
        assert not list((stage.coordinator / "runs").glob("private-*/checkpoint"))


def deployed(stage: Play, name: str, text: str) -> list[dict[str, Any]]:
    """Run it to its end with everybody's yes; its rounds."""
    (stage.folder / f"{name}.toml").write_text(text.replace("NAME", name))
    stage.server("run", f"{name}.toml")
    digest = row(stage, name)["hash"]
    for site in SITES:
        eventually((stage.folder / site / "proposals" / digest / "offer.json").exists, f"{site} has looked at the run")
        stage.client(site, "approve", name, "--yes")
    out = stage.coordinator / "runs" / f"{name}-{digest[:8]}"
    closed = {"run-finished", "run-failed"}
    eventually(
        lambda: (out / "metrics.jsonl").exists() and any(one["event"] in closed for one in events(out)),
        "the end of the run",
    )
    eventually(lambda: row(stage, name)["state"] == "completed", "that it is told")
    return [event for event in events(out) if event["event"] == "round"]


def row(stage: Play, name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = json.loads(stage.server("runs", "--json"))
    return next(one for one in rows if one["run"] == name)
