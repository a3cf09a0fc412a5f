"""The worked examples of docs/architecture.md, taken from the page and trained: one new file and one line in a table.

Each is put into a copy of the packages, and nothing else there is touched; processes of that copy then do the rest. So
they do with the tutorials, whose blocks are typed as they stand: those of coordinator and hospital in the federation
that one of the examples is deployed in.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from client.home.folder import STRATEGIES_NAME
from client.site import open_site
from common.config.rundocument import from_toml
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.partitions import PARTITION_CHOICE
from tests.pages.blocks import TUTORIALS, blocks
from tests.pages.copies import EXAMPLES, MODULES, Copy, Packages
from tests.patience import eventually
from tests.simulations.tiny import tiny_site
from tests.system import play
from tests.system.play import SITES, Play, playing

MOST_LINES = 60

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


@dataclass
class Federation:
    """Both sides at work, with an example in their packages; and what the tutorials had typed there."""

    stage: Play
    packages: Packages
    typed: list[str] = field(default_factory=list)

    def command(self, line: str, *more: str, site: str = SITES[0]) -> str:
        """A line of a tutorial to its end; what it printed."""
        program, *words = shlex.split(line)
        homes = {"WARDROUND_SERVER_HOME": str(self.stage.coordinator), "WARDROUND_HOME": str(self.stage.folder / site)}
        after = f"os.environ.update({homes!r})"
        code, out, err = self.packages.command(self.stage.folder, MODULES[program], *words, *more, after=after)
        assert code == 0, f"{line}\n{out}{err}"
        self.typed.append(line)
        return out


@pytest.fixture(scope="module")
def federation(made: dict[str, Packages], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator and two hospitals that have completed their first run, as the tutorials of both tell it."""
    if "strategy" not in made:
        made["strategy"] = Packages(tmp_path_factory.mktemp("packages"), "strategy")
    packages = made["strategy"]
    folder = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(play, "ROOT", packages.folder)
        with playing(folder) as stage:
            one = Federation(stage, packages)
            told(one)
            yield one


def told(federation: Federation) -> None:
    """Type the tutorials' lines, in the order in which the two sides wait for each other.

    Keys, members and data are there already: `playing` has typed these lines, with ports and folders of its own.
    """
    stage = federation.stage
    before = {
        *(f"server.commands.main {word}" for word in ("init", "start", "invite", "approve")),
        *(f"client.commands.main {words}" for words in ("join", "data add", "start")),
    }
    there = before & {" ".join((module, *words[: 2 if words[0] == "data" else 1])) for module, *words in stage.said}
    study = next((stage.folder / f"{SITES[0]}-pacs").glob("*/*"))
    (stage.folder / "path" / "to").mkdir(parents=True)
    (stage.folder / "path" / "to" / "study").symlink_to(study, target_is_directory=True)

    def until(left: list[str], last: str) -> None:
        """Type the lines that are left, to the first one that begins so, and with it."""
        while left:
            line = left.pop(0).removesuffix(" &")
            program, *words = shlex.split(line)
            if f"{MODULES[program]} {words[0]}" in there or f"{MODULES[program]} {' '.join(words[:2])}" in there:
                federation.typed.append(line)
                continue
            if words[0] == "run":
                (stage.folder / words[1]).write_text(DEPLOYED.replace("NAME", "lesions"))  # what was changed in it
            federation.command(line, *(["--yes"] if words[0] == "approve" else []))  # asked, a person says yes
            if line.startswith(last):
                return
        assert last == "the end"

    coordinator, hospital = (
        [line for block in blocks(TUTORIALS[side]) if block.mark == "run" for line in block.lines]
        for side in ("coordinator", "hospital")
    )
    until(coordinator, "wardround-server run")
    digest = row(stage, "lesions")["hash"]
    for site in SITES:
        eventually((stage.folder / site / "proposals" / digest / "offer.json").exists, f"{site} has looked at the run")
    until(hospital, "wardround-client approve")
    federation.command("wardround-client approve lesions", "--yes", site=SITES[1])
    until(coordinator, "the end")
    until(hospital, "the end")


@pytest.mark.system
def test_the_tutorials_of_both_sides_run_as_they_stand_to_a_model_and_a_prediction(federation: Federation) -> None:
    folder = federation.stage.folder
    assert row(federation.stage, "lesions")["state"] == "completed"
    written = {
        side: [line for one in blocks(TUTORIALS[side]) for line in one.lines if one.mark == "run"]
        for side in ("coordinator", "hospital")
    }
    assert {line.removesuffix(" &") for lines in written.values() for line in lines} <= set(federation.typed)
    assert (folder / "model" / "model.safetensors").is_file()
    assert (folder / "papers" / "index.json").is_file()
    assert list((folder / "result").rglob("*.dcm"))
    assert list((folder / SITES[0] / "check").glob("report.html"))


def test_the_researchers_tutorial_runs_as_it_stands(copies: Copies) -> None:
    copy = copies("strategy")
    for block in blocks(TUTORIALS["researcher"]):
        if block.mark.startswith("file: "):
            (copy.folder / block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.mark == "run" and block.language == "python":
            code, out, err = copy.packages.command(copy.folder, MODULES["wardround-sim"], "--version", after=block.text)
            assert code == 0, err
            assert "model.safetensors" in out
        elif block.mark == "run":
            for line in block.lines:
                program, *words = shlex.split(line)
                copy.run(MODULES[program], *words)
    summary = json.loads((copy.folder / "out" / "first" / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("completed", 4)
    assert (copy.folder / "out" / "first" / "report.html").is_file()


@pytest.mark.system
def test_an_added_strategy_trains_deployed_and_is_refused_there_under_privacy(
    federation: Federation, tmp_path: Path
) -> None:
    """Real processes and channels: the second part passes codec, gate, checks and receipts, which know no name."""
    stage, folder = federation.stage, federation.stage.folder
    rounds = rounds_of(stage, "lesions")
    assert [one["sites"] for one in rounds] == [sorted(SITES)] * 2
    assert rounds[0]["momentum-sha256"] != rounds[1]["momentum-sha256"]
    # What a site keeps for the next round is written by a worker in its sandbox: to the bit as in a simulation.
    remembering = DEPLOYED.replace('"mimelite"', '"scaffold"').replace("rounds = 2", "rounds = 3")
    rounds = deployed(stage, "remembering", remembering)
    assert [one["sites"] for one in rounds] == [sorted(SITES)] * 3
    assert not list(folder.glob(f"*/{STRATEGIES_NAME}/*"))
    document = from_toml(remembering.replace("NAME", "remembering"))
    federate(InProcessGrid([open_site(folder / site) for site in SITES], document), document, tmp_path / "simulated")
    simulated = [event for event in events(tmp_path / "simulated") if event["event"] == "round"]
    assert [one["model-sha256"] for one in rounds] == [one["model-sha256"] for one in simulated]
    private = DEPLOYED.replace("NAME", "private") + "privacy = { target-epsilon = 8.0 }\n"
    (folder / "private.toml").write_text(private)
    for site in SITES:
        code, out, err = federation.packages.command(
            folder, MODULES["wardround-client"], "policy", "check", folder / "private.toml", "--home", folder / site
        )
        assert code != 0
        assert "sends gradient beside the weights, which no guarantee covers" in " ".join((out + err).split())
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
    assert all(f"refused by the policy of {site} (policy-refused)" in failed["reason"] for site in failed["refused"])
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
    return rounds_of(stage, name)


def rounds_of(stage: Play, name: str) -> list[dict[str, Any]]:
    out = next((stage.coordinator / "runs").glob(f"{name}-*"))
    return [event for event in events(out) if event["event"] == "round"]


def row(stage: Play, name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = json.loads(stage.server("runs", "--json"))
    return next(one for one in rows if one["run"] == name)
