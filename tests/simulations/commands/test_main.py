"""The command line does what its help says, explains what went wrong, and ends with 0 only on success."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from common.config import SiteConfig, SourceConfig, load
from common.config.rundocument import issue
from common.learning.checkpoint import sha256
from common.system.environment import flower_variables
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.commands.main import app
from simulations.scenarios.homes import make_site
from simulations.scenarios.scenario import SHIPPED
from simulations.studies.overlays import LABEL_COLOUR, draw_overlays
from tests.json_forms import conforms
from tests.simulations.tiny import RUN_TOML, tiny_run, tiny_scenario

NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))


def sim(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return tiny_scenario(tmp_path)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["baseline", "--folds", "2"], "this run has 1 in data.classes. Name two"),
        (["diagnosis", "--folds", "2"], "a diagnosis is of regions of two classes"),
        (["sweep", "--set", "training.learning-rate=1e-4..1e-2", "--sampler", "grid"], "a grid takes lists"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_any_image_is_made_or_read(
    scenario: Path, tmp_path: Path, command: list[str], says: str
) -> None:
    done = sim(command[0], scenario, "--out", tmp_path / "out", *command[1:])
    assert done.exit_code == 1
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_run_prints_scores_and_writes_results(scenario: Path, tmp_path: Path) -> None:
    done = sim("run", scenario, "--out", tmp_path / "out", "--json", "--threads", 1)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    conforms("wardround-sim run", rows)
    assert [row["site"] for row in rows] == ["north", "south", "mean of sites"]
    worst = min(rows[:2], key=lambda row: float(row["dice"]))
    assert f"worst site: {worst['site']}, dice {worst['dice']:.3f}" in done.stderr
    assert rows[2]["dice"] == pytest.approx((rows[0]["dice"] + rows[1]["dice"]) / 2)
    for name in ("model.safetensors", "model.json", "summary.json", "metrics.jsonl", "report.html"):
        assert (tmp_path / "out" / name).exists()
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png;base64,") == 2


def test_same_scenario_twice_gives_the_same_model(scenario: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        assert sim("run", scenario, "--out", tmp_path / name, "--deterministic", "--threads", 1).exit_code == 0
        digests.add(sha256((tmp_path / name / "model.safetensors").read_bytes()))
    assert len(digests) == 1


def test_other_seed_gives_another_model(scenario: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert sim("run", scenario, "--out", tmp_path / str(seed), "--seed", seed).exit_code == 0
    digests = {sha256((tmp_path / str(seed) / "model.safetensors").read_bytes()) for seed in (0, 1)}
    assert len(digests) == 2


def test_phantoms_train_from_dicom_with_privacy(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    text = RUN_TOML.replace('"photo"', '"CT"').replace('"disc"', '"lesion"')
    path.write_text(
        f"{text}\n[run.privacy]\ntarget-epsilon = 8.0\nsampling-rate = 0.5\ncrops-per-patient = 1\n"
        '[phantoms]\nscanners = ["a", "b"]\npatients = 15\nslices = 4\nrows = 32\n'
    )
    done = sim("run", path, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert all(0 < row["epsilon"] <= 8 and row["delta"] == pytest.approx(1 / 150) for row in rows[:2])
    journal = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert "train-loss" not in journal
    assert "The scores are exact" in done.stderr
    assert "PHANTOM" not in journal
    assert str(tmp_path) not in journal


def test_compare_prints_the_table(scenario: Path, tmp_path: Path) -> None:
    done = sim("compare", scenario, "--out", tmp_path / "out", "--seeds", "0,1", "--rounds", 1, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    conforms("wardround-sim compare", told)
    assert [(one["column"], one["seed"]) for one in told["models"]] == [
        (name, seed) for seed in (0, 1) for name in ("alone: north", "alone: south", "pooled", "federated")
    ]
    assert told["ratios"]["federated / pooled"] > 0
    assert "federated / pooled" in done.stderr


PRETRAINING = '[pretraining]\nimages = "retinas"\npatients = 2\nrounds = 1\n'
COMPARE = """
[compare]
alone = false
epsilons = [4.0, 8.0]
rounds = 1
[compare.privacy]
target-epsilon = 1.0
sampling-rate = 0.5
crops-per-patient = 1
"""


def test_run_starts_from_weights_pretrained_on_generated_images(scenario: Path, tmp_path: Path) -> None:
    scenario.write_text(f"{scenario.read_text()}\n{PRETRAINING}")
    out = tmp_path / "out"
    done = sim("run", scenario, "--out", out, "--rounds", 1, "--json", "--threads", 1)
    assert done.exit_code == 0, done.output
    start = sha256((out / "initial.safetensors").read_bytes())
    initial = json.loads(json.loads((out / "model.json").read_text())["run"])["initial"]
    assert initial["sha256"] == start
    assert "2 generated images (retinas, seed 0)" in initial["public"]
    written = {path: path.stat().st_mtime_ns for path in (out / "pretraining").rglob("*.safetensors")}
    assert written
    assert sim("run", scenario, "--out", out, "--rounds", 1).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_compare_shows_a_column_for_the_start_and_for_each_epsilon(scenario: Path, tmp_path: Path) -> None:
    scenario.write_text(f"{scenario.read_text()}\n{PRETRAINING}{COMPARE}")
    done = sim("compare", scenario, "--out", tmp_path / "out", "--rounds", 1, "--json", "--threads", 1, "--seeds", 1)
    assert done.exit_code == 0, done.output
    models = {one["column"]: one for one in json.loads(done.stdout)["models"]}
    names = ["zero-shot", "pooled", "federated", "federated, epsilon 4", "federated, epsilon 8"]
    assert list(models) == names
    assert [models[name]["steps"] for name in names] == [0, 2, 2, 2, 2]
    stated = [models[name]["epsilon"] for name in names]
    assert stated[:3] == [None] * 3
    assert 0 < stated[3] <= 4 < stated[4] <= 8


def test_device_is_that_of_every_site_pooled_and_pretraining_included(scenario: Path, tmp_path: Path) -> None:
    scenario.write_text(f"{scenario.read_text()}\n{PRETRAINING}")
    out = tmp_path / "out"
    done = sim("compare", scenario, "--out", out, "--rounds", 1, "--device", "cpu")
    assert done.exit_code == 0, done.output
    homes = list(out.rglob("site.toml"))
    assert {path.parent.name for path in homes} >= {"north", "south", "pooled"}
    assert len(homes) == 4
    assert {load(SiteConfig, path).device for path in homes} == {"cpu"}


def test_device_that_is_not_there_is_said_before_anything_is_made(scenario: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        assert sim("run", scenario, "--out", tmp_path / "out", "--rounds", 1, "--device", "cuda").exit_code == 0
        return
    done = sim("run", scenario, "--out", tmp_path / "out", "--device", "cuda")
    assert done.exit_code == 1
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out" / "sites").exists()
    assert sim("run", scenario, "--out", tmp_path / "out", "--device", "abacus").exit_code == 2


def test_scenarios_lists_the_shipped_ones() -> None:
    done = sim("scenarios", "--json")
    assert done.exit_code == 0
    assert [row["name"] for row in json.loads(done.stdout)] == NAMES


@pytest.mark.parametrize("command", ["run", "compare", "scenarios"])
def test_help_shows_an_example(command: str) -> None:
    done = sim(command, "--help")
    assert done.exit_code == 0
    assert re.search(rf"Example: wardround-sim {command}", done.output)


@pytest.mark.parametrize("command", ["run", "compare", "crossval"])
def test_ctrl_c_says_how_to_go_on(
    command: str, scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.backends.in_process.InProcessGrid.__init__", stopped)
    done = sim(command, scenario, "--out", tmp_path / "out", "--backend", "in-process")
    assert done.exit_code != 0
    assert "Stopped. The same command goes on from what is done.\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "vesels"], "there is no scenario 'vesels'"),
        (["run", "none.toml"], "none.toml cannot be read"),
        (["compare", "phantoms", "--seeds", "a"], "expected whole numbers"),
    ],
)
def test_failure_is_one_message_and_exit_code_1(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = sim(*arguments, "--out", tmp_path)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.output


def test_broken_image_is_left_out_and_the_others_go_on(scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "north" / "images" / "north-0.png").write_bytes(b"not a picture")
    done = sim("run", scenario, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "1 study left out" in done.stderr


def test_site_without_images_fails_before_the_first_round(scenario: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "south" / "images").iterdir():
        path.unlink()
    done = sim("run", scenario, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "no study is usable" in done.stderr
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_flower_is_kept_from_calling_home() -> None:
    assert flower_variables()["FLWR_TELEMETRY_ENABLED"] == "0"
    assert flower_variables()["FLWR_DISABLE_UPDATE_CHECK"] == "1"


def test_a_picture_shows_one_class_and_each_class_has_its_own(tmp_path: Path) -> None:
    """Two patients of one site; the label of the second has one of the two classes."""
    columns = np.arange(24)
    folder = tmp_path / "north"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(8):
        label = np.zeros((20, 24), np.uint8)
        label[4:16, columns < 8] = 1
        if number % 2 == 0:
            label[4:16, columns >= 16] = 2
        noise = np.random.default_rng(number).integers(0, 9, label.shape, np.uint8)  # no two images are the same
        Image.fromarray(90 + noise + 20 * label).save(folder / "images" / f"{number}.png")
        Image.fromarray(label).save(folder / "labels" / f"{number}.png")
    run = tiny_run(data={"classes": ["left", "right"], "test-fraction": 0.6}, federation={"rounds": 1, "quorum": 1})
    source = SourceConfig(path=str(folder), kind="images", label_map={"1": "left", "2": "right"})
    site = make_site(tmp_path / "sites", SiteConfig(name="north", data=(source,)))
    federate(InProcessGrid([site], issue(run)), issue(run), tmp_path / "out")
    names = {path.stem for path in draw_overlays(tmp_path / "out", [site], per_site=4)}
    with_right = {name.removesuffix(" right") for name in names if name.endswith(" right")}
    assert {f"north {number} left" for number in (1, 2, 3, 4)} <= names
    assert 0 < len(with_right) < 4
    for name in names:
        drawn = (np.asarray(Image.open(tmp_path / "out" / "overlays" / f"{name}.png")) == LABEL_COLOUR).all(-1)
        middle = drawn.shape[1] // 2
        assert drawn[:, :middle].any() == name.endswith(" left")
        assert drawn[:, middle:].any() == name.endswith(" right")
