"""What is written is true: the commands exist, the files are there, the lock locks, the demo's runs are allowed."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from client.rules import policy
from client.rules.policy import Purpose
from common import config
from common.config import PolicyConfig, RunConfig, SiteConfig, SourceConfig, Table, load
from common.losses import LOSSES
from common.models import NETWORKS
from common.preparation import STEPS, Step
from common.preparation.windows import WINDOWS
from common.strategies import STRATEGIES
from common.tasks import TASKS
from deploy import bootstrap
from simulations.generators.phantoms import SCANNERS, write_study
from simulations.partitions import PARTITIONS
from simulations.scenarios.pretraining import PretrainingConfig
from simulations.scenarios.scenario import CompareConfig, PhantomsConfig, ScenarioConfig
from simulations.shifts import SHIFTS
from tests import ROOT

APPS = {
    "wardround-client": "client.commands.main",
    "wardround-server": "server.commands.main",
    "wardround-sim": "simulations.commands.main",
}
# The command contract, as far as it is built.
CONTRACT = """
wardround-sim run | compare | crossval | baseline | evaluate | scenarios | list | bench data | bench privacy | audit
wardround-sim bench sites | bench training | bench aggregation | bench wire | bench round | bench scaling
wardround-sim diagnosis | gallery | export | import-bundle | sweep | reference | new | preview
wardround-server init | invite | enrol | requests | approve | revoke | sites | start | status | doctor | dashboard
wardround-server metrics
wardround-server operator add | operator list | operator remove | root protect | root rotate | root finish
wardround-server key protect | key unprotect
wardround-server new | run | watch | runs | runs compare | runs diff | stop | resume | report | export
wardround-server audit verify | audit export
wardround-client join | renew | start | status | doctor | dashboard | metrics
wardround-client data add | data remove | data check | data preview | data list | data forget | data export | data pull
wardround-client pacs add | pacs list | pacs remove | pacs test
wardround-client runs | show | approve | deny | policy check | ledger | audit verify | audit export
wardround-client predict | evaluate | explain | serve
wardround-client personal list | personal remove | personal export
wardround-client key protect | key unprotect
wardround-client backup | restore | purge
wardround-server backup | restore | purge
"""
# Patients of the scenario `phantoms` whose labels are not all that a label should be, and one more.
ODD_PHANTOMS = (("a", 4), ("b", 39), ("b", 1))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def _commands(program: str) -> dict[str, click.Command]:
    """Every command of a program by its words, such as "data add"."""
    found: dict[str, click.Command] = {}

    def walk(command: click.Command, words: str) -> None:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(child, f"{words} {name}".strip())
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[words] = command

    walk(typer.main.get_command(import_module(APPS[program]).app), "")
    return found


def _contract() -> Iterator[tuple[str, str]]:
    for line in CONTRACT.split("\n"):
        program, _, rest = line.partition(" ")
        yield from ((program, words.strip()) for words in rest.split("|") if program)


def _readme_commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("wardround-")]


def _tracked() -> list[Path]:
    """Files of the checkout; without git all files that a release would hold."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = listing.stdout.splitlines()
    if not names:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@pytest.mark.parametrize(("program", "words"), list(_contract()))
def test_command_of_the_contract_explains_itself_with_an_example(program: str, words: str) -> None:
    result = CliRunner().invoke(import_module(APPS[program]).app, [*words.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert re.search(rf"Example:\s+.?{program} {words}", result.output), result.output


@pytest.mark.parametrize("program", list(APPS))
def test_no_command_is_outside_the_contract(program: str) -> None:
    assert set(_commands(program)) <= {words for name, words in _contract() if name == program}


def _everything() -> Iterator[tuple[str, str, click.Command]]:
    for program in APPS:
        for words, command in _commands(program).items():
            yield program, words, command


@pytest.mark.parametrize(
    ("program", "words", "command"), list(_everything()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_example_in_the_help_is_a_call_of_its_command_that_its_options_and_arguments_fit(
    program: str, words: str, command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken apart by the parser of the command line itself, and only not carried out."""
    monkeypatch.setattr(
        "client.commands.options.site.site_file", lambda home: home
    )  # the examples' sites are not there
    examples = re.findall(r"^ *Example: (?:`(.+?)`|(.+))$", command.help or "", re.MULTILINE)
    assert examples, f"{program} {words} --help shows no example"
    for quoted, plain in examples:
        called, *rest = shlex.split(quoted or plain)
        assert called == program
        count = len(words.split())
        assert " ".join(rest[:count]) == words
        with command.make_context(words, rest[count:]) as context:
            assert not context.args


@pytest.mark.parametrize(("program", "words"), [(program, words) for program, words, _ in _everything()])
def test_help_says_what_every_option_and_argument_is_for(program: str, words: str) -> None:
    """What is in angle brackets would be lost: help is Markdown."""
    app, command = import_module(APPS[program]).app, typer.main.get_command(import_module(APPS[program]).app)
    for word in words.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    result = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "300"})
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stdout).split())
    for parameter in command.params:
        said = getattr(parameter, "help", None)
        assert said, f"nothing is said of {parameter.name}"
        assert " ".join(said.replace("`", "").split()) in shown, parameter.name


@pytest.mark.parametrize("program", APPS)
def test_every_command_and_every_group_tells_the_version(program: str) -> None:
    app = import_module(APPS[program]).app
    groups = {words.rpartition(" ")[0] for words in _commands(program)}
    for words in [*_commands(program), *groups]:
        done = CliRunner().invoke(app, [*words.split(), "--version"])
        assert (done.exit_code, done.output) == (0, f"wardround {metadata.version('wardround')}\n"), words


def test_scenario_of_its_page_is_one() -> None:
    text = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    whole, part = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert config.parse(ScenarioConfig, whole).site_names == ("a", "b")
    run = whole.partition("[phantoms]")[0].replace("quorum = 2", "quorum = 1")
    alone = config.parse(ScenarioConfig, run.replace("rounds = 5", "rounds = 5\nquorum = 1") + part)
    assert alone.site_names == ("drive",)


def _documented(document: str, heading: str) -> dict[str, str]:
    """Key and default of each row below a heading; "" where the key is needed, "-" for none."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| `([^`]+)` \| (?:`(.+?)`|needed) \|", section, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {key: text if text in ("", "-") else repr(tomllib.loads(f"x = {text}")["x"]) for key, text in rows}


def _true(model: type[Table]) -> dict[str, str]:
    """The same of a model; tables of their own aside."""
    defaults = {
        str(field.alias): ...
        if field.is_required()
        else field.get_default(call_default_factory=True, validated_data={})
        for field in model.model_fields.values()
    }
    return {
        key: "" if default is ... else "-" if default is None else _plain(default)
        for key, default in defaults.items()
        if not isinstance(default, Table)
    }


def _plain(default: object) -> str:
    return repr(list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize(
    ("document", "heading", "model"),
    [
        ("operations.md", "site.toml", SiteConfig),
        ("operations.md", "[[data]] in site.toml", SourceConfig),
        ("operations.md", "policy.toml", PolicyConfig),
        ("scenarios.md", "Top of the file", ScenarioConfig),
        ("scenarios.md", "[phantoms]", PhantomsConfig),
        ("scenarios.md", "[partition]", PARTITIONS[0]),
        ("scenarios.md", "[pretraining]", PretrainingConfig),
        ("scenarios.md", "[compare]", CompareConfig),
        ("run.md", "[data]", config.DataConfig),
        ("run.md", "[task]", TASKS[0]),
        ("run.md", "[preprocessing]", config.PreprocessingConfig),
        ("run.md", "[training]", config.TrainingConfig),
        ("run.md", "[training.augmentation]", config.AugmentationConfig),
        ("run.md", "[training.augmentation.probability]", config.AugmentationProbability),
        ("run.md", "[federation]", config.FederationConfig),
        ("run.md", "[strategy]", STRATEGIES[0]),
        ("run.md", "[privacy]", config.PrivacyConfig),
        ("run.md", "[privacy.adaptive-clipping]", config.AdaptiveClippingConfig),
        ("run.md", "[initial]", config.InitialConfig),
    ],
)
def test_every_setting_is_documented_with_its_true_default(document: str, heading: str, model: type[Table]) -> None:
    assert _documented(document, heading) == _true(model)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_documented_with_its_true_defaults(network: type[Table]) -> None:
    name = network.model_fields["architecture"].default
    assert _documented("run.md", "[model]") | _documented("run.md", name) == _true(network)


@pytest.mark.parametrize("task", TASKS[1:])
def test_every_further_task_is_documented_with_its_true_defaults(task: type[Table]) -> None:
    assert _documented("run.md", task.model_fields["kind"].default) == _true(task)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_documented_with_its_true_defaults(loss: type[Table]) -> None:
    assert _documented("run.md", loss.model_fields["kind"].default) == _true(loss)


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_every_further_strategy_is_documented_with_its_true_defaults(strategy: type[Table]) -> None:
    assert _documented("run.md", strategy.model_fields["kind"].default) == _true(strategy)


@pytest.mark.parametrize("partition", PARTITIONS[1:])
def test_every_further_partition_is_documented_with_its_true_defaults(partition: type[Table]) -> None:
    name = partition.model_fields["kind"].default
    assert _documented("scenarios.md", "[partition]") | _documented("scenarios.md", name) == _true(partition)


@pytest.mark.parametrize("shift", SHIFTS)
def test_every_shift_is_documented_with_its_true_defaults(shift: type[Table]) -> None:
    name = shift.model_fields["kind"].default
    assert _documented("scenarios.md", "[[shifts]]") | _documented("scenarios.md", name) == _true(shift)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_documented_with_its_true_defaults_and_its_place(step: type[Step]) -> None:
    name = step.model_fields["kind"].default
    assert _documented("run.md", name) == _true(step)
    about = (ROOT / "docs" / "run.md").read_text(encoding="utf-8").split(f"\n### {name}\n")[1].split("|")[0]
    place = {"acquired": "On acquired voxels.", "scaled": "On scaled intensities."}[step.PLACE]
    assert " ".join(about.split()).endswith(place)


def test_every_window_is_documented_with_its_level_and_width() -> None:
    text = " ".join((ROOT / "docs" / "run.md").read_text(encoding="utf-8").split())
    assert [name for name, (level, width) in WINDOWS.items() if f"`{name}` {level}, {width}" not in text] == []


def test_every_table_of_a_run_is_documented() -> None:
    values = set(_documented("run.md", "Top of the file"))
    text = (ROOT / "docs" / "run.md").read_text(encoding="utf-8")
    tables = set(re.findall(r"^## \[([a-z-]+)\]$", text, re.MULTILINE))
    assert values | tables == {str(field.alias) for field in RunConfig.model_fields.values()}
    assert _documented("run.md", "Top of the file") == {
        "format": "1",
        "name": "",
        "seed": "0",
        "deterministic": "False",
    }


def test_the_example_of_a_run_is_one() -> None:
    (example,) = re.findall(
        r"^```toml\n(.*?)^```", (ROOT / "docs" / "run.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    policy.decide(config.parse(RunConfig, example), PolicyConfig(), Purpose.APPROVAL).enforce()


@pytest.mark.parametrize("line", _readme_commands())
def test_command_in_the_readme_exists_with_its_options(line: str) -> None:
    program, *words = shlex.split(line)
    commands = _commands(program)
    name = next((" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in commands), None)
    assert name is not None, f"{program} has no command for: {line}"
    known = {option for parameter in commands[name].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_readme_shows_commands_of_all_three_programs() -> None:
    assert {line.split()[0] for line in _readme_commands()} == set(APPS)


@pytest.mark.parametrize(
    "line", ["make demo", "make test", "python3 deploy/bootstrap.py demo", "python3 deploy/bootstrap.py test"]
)
def test_readme_names_both_ways_to_the_demo_and_the_checks(line: str) -> None:
    assert re.search(rf"^{re.escape(line)}\b", README, re.MULTILINE)


@pytest.mark.parametrize(
    "document", [*sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("*.md"))], ids=lambda path: path.stem
)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_make_target_is_a_command_of_the_bootstrap() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    for target in listed.split():
        assert re.search(rf"^{target}:.*\n\t@\$\(BOOTSTRAP\) {target}\b", makefile, re.MULTILINE), target
        assert callable(getattr(bootstrap, target))


def test_bootstrap_and_package_agree_on_python() -> None:
    oldest, newest = bootstrap.OLDEST, bootstrap.NEWEST
    assert PROJECT["project"]["requires-python"] == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"


def test_lock_pins_every_dependency_but_torch_with_a_hash() -> None:
    project = PROJECT["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[\[<>=; ]", requirement)[0].lower() for requirement in asked} - {"wardround", "torch"}
    entries = re.findall(r"^([a-z0-9-]+)==\S+.*\\\n    --hash=sha256:[0-9a-f]{64}", LOCK, re.MULTILINE)
    assert names <= set(entries)
    assert len(entries) == len(re.findall(r"^[a-z0-9]", LOCK, re.MULTILINE))
    assert not re.search(r"^(torch|triton|nvidia-.*)==", LOCK, re.MULTILINE)


def test_lock_names_no_index() -> None:
    assert not re.search(r"https?:|--(extra-)?index|--find-links", LOCK)


@pytest.mark.parametrize("document", sorted(ROOT.glob("deploy/runs/*.toml")), ids=lambda path: path.stem)
def test_runs_of_the_demo_are_allowed_by_the_default_policy(document: Path) -> None:
    run = load(RunConfig, document)
    policy.decide(run, PolicyConfig(), Purpose.APPROVAL).enforce()
    assert run.name == document.stem


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    # Assembled, so that this file does not find itself.
    places = re.compile(
        "|".join(rf"(?<![\w.])/{top}/\w" for top in ("work", "root", "Users"))
        + r"|(?<!client)(?<!server)/home/(?!H\b)\w"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked()
        if path.suffix not in (".png", ".dcm", ".gz", ".lock")
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if places.search(line)
    ]
    assert found == []


def test_readme_says_which_of_the_studies_that_it_has_generated_are_set_aside(tmp_path: Path) -> None:
    made = load(ScenarioConfig, ROOT / "simulations" / "scenarios" / "phantoms.toml").phantoms
    assert made is not None
    for scanner, patient in ODD_PHANTOMS:
        folder = tmp_path / "images" / f"{scanner}{patient}"
        write_study(
            folder, scanner=SCANNERS[scanner], seed=made.seed, patient=patient, slices=made.slices, rows=made.rows
        )
    (tmp_path / "site").mkdir(mode=0o700)
    client = import_module(APPS["wardround-client"]).app
    for command in (["data", "add", str(tmp_path / "images")], ["data", "check", "--json"]):
        done = CliRunner().invoke(client, [*command, "--home", str(tmp_path / "site")])
        assert done.exit_code == 0, done.output
    codes = [study.get("code") for study in json.loads(done.stdout)["studies"]]
    assert sorted(filter(None, codes)) == ["label-doubtful", "label-empty"]
    (said,) = re.findall(r"studies there five or six are set aside.*?With fewer", README, re.DOTALL)
    assert re.findall(r"`(label-[a-z]+)`", said) == ["label-empty", "label-doubtful"]
