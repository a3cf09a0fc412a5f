"""What the three functions give is what lies on the disk and what the commands print; and they are cheap to import."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import simulations
from common.errors import ConfigError
from simulations.commands.main import app
from tests import ROOT
from tests.simulations.tiny import tiny_scenario

pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "docs" / "first-hour.ipynb"
# Where it matters not where the sites work. What nobody chose is used by the first test, and by the notebook.
HERE: dict[str, Any] = {"backend": "in-process", "threads": 1}


def events(out: Path, kind: str) -> list[dict[str, object]]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def test_simulate_gives_curves_and_scores_as_the_journal_and_the_summary_have_them(tmp_path: Path) -> None:
    scenario = simulations.load(tiny_scenario(tmp_path))
    result = simulations.simulate(scenario, tmp_path / "out", threads=1)
    assert result.rounds.tolist() == [1, 2]
    assert set(result.curves["dice"]) == {"north", "south", "overall"}
    validated = [e for e in events(tmp_path / "out", "evaluate") if e["phase"] == "validation"]
    scored = {(e["site"], e["round"]): e["dice"] for e in validated}
    for site, values in result.curves["dice"].items():
        assert values.dtype == np.float64
        assert values.tolist() == [scored[site, 1], scored[site, 2]]
    losses = [e["train-loss"] for e in events(tmp_path / "out", "train") if e["site"] == "north"]
    assert result.losses["north"].tolist() == losses
    test = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["scores"]["test"]
    assert {site: scores["dice"] for site, scores in result.scores.items()} == {
        site: scores["dice"] for site, scores in test["sites"].items()
    }
    assert result.mean[result.headline] == pytest.approx(np.mean([one["dice"] for one in result.scores.values()]))
    assert result.epsilon is None
    assert load_file(result.model)
    assert result.report.is_file()
    with pytest.raises(FrozenInstanceError):
        result.name = "other"  # type: ignore[misc]  # what is tried


def test_a_function_and_its_command_make_the_same_model(tmp_path: Path) -> None:
    path = tiny_scenario(tmp_path)
    result = simulations.simulate(path, tmp_path / "one", rounds=1, seed=5, **HERE)
    arguments = ["run", path, "--out", tmp_path / "two", "--rounds", 1, "--seed", 5, "--threads", 1]
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    assert result.model.read_bytes() == (tmp_path / "two" / "model.safetensors").read_bytes()
    summary = json.loads((tmp_path / "one" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["seed"], summary["rounds"]) == (5, 1)


def test_a_folder_of_another_run_is_refused_before_anything_in_it_is_touched(tmp_path: Path) -> None:
    scenario = simulations.load(tiny_scenario(tmp_path))
    simulations.simulate(scenario, tmp_path / "out", rounds=1, **HERE)
    touched = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(ConfigError, match=r"holds another run .*: another run\.toml, seed or number of rounds"):
        simulations.simulate(scenario, tmp_path / "out", rounds=1, seed=9, **HERE)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == touched


def test_a_folder_with_models_of_other_sites_or_images_is_refused(tmp_path: Path) -> None:
    path, out = tiny_scenario(tmp_path), tmp_path / "out"
    kept = simulations.simulate(path, out, rounds=1, **HERE).model.read_bytes()
    other = tmp_path / "other.toml"
    other.write_text(f'{path.read_text()}\n[[shifts]]\nkind = "gain"\nsites = ["north"]\n')
    touched = {one: one.stat().st_mtime_ns for one in out.rglob("*")}
    for again in (simulations.simulate, partial(simulations.compare, seeds=[0])):
        with pytest.raises(ConfigError, match="trained on other sites or images than scenario other"):
            again(other, out, rounds=1, **HERE)
    with pytest.raises(ConfigError, match="trained on other sites or images"):
        simulations.simulate(path, out, rounds=1, **HERE, data=tmp_path / "elsewhere")
    assert {one: one.stat().st_mtime_ns for one in out.rglob("*")} == touched
    assert simulations.simulate(path, out, rounds=1, **HERE).model.read_bytes() == kept
    # Without models the folder may be prepared for anything.
    (out / "metrics.jsonl").unlink()
    shutil.rmtree(out / "checkpoint")
    assert simulations.simulate(other, out, rounds=1, **HERE).model.read_bytes() != kept


def test_compare_gives_the_scores_of_its_file_by_model_seed_and_site(tmp_path: Path) -> None:
    table = simulations.compare(tiny_scenario(tmp_path), tmp_path / "out", seeds=(0, 4), rounds=1, **HERE)
    assert (table.seeds, table.sites) == ((0, 4), ("north", "south"))
    assert table.models == ("alone: north", "alone: south", "pooled", "federated")
    assert table.scores.shape == (4, 2, 2)
    assert np.isnan(table.epsilon).all()
    kept = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    for one in kept["results"]:
        place = table.models.index(one["column"]), table.seeds.index(one["seed"])
        assert table.scores[place].tolist() == [one["scores"][site]["dice"] for site in table.sites]
    assert table.ratios == kept["ratios"]


def test_a_scenario_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no scenario 'phantom'"):
        simulations.load("phantom")
    with pytest.raises(AttributeError, match="no attribute 'simulated'"):
        simulations.simulated  # noqa: B018 - what is tried


def test_importing_costs_nothing_before_it_is_asked_for() -> None:
    code = (
        "import sys, simulations; before = set(sys.modules)\n"
        "from simulations import compare, load, simulate\n"
        "print('pydantic' in before, 'torch' in sys.modules, 'flwr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False False False\n"), done.stderr


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    """Its code as plain Python, in a process and a folder of its own; the last expression of a cell shows nothing."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n\n".join(cells), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "two-scanners" / "model.safetensors").is_file()
    assert len(json.loads((tmp_path / "out" / "compare" / "compare.json").read_text())["results"]) == 4


def test_the_notebook_carries_no_output_and_no_place_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    absolute = re.compile(r"(?<![\w./:<])(/\w|[A-Za-z]:\\)")  # in code and prose; a link's path follows its host
    assert absolute.search("read('/data/ct')")
    assert absolute.search(r"read('C:\data')")
    assert [found for cell in cells for line in cell["source"] if (found := absolute.search(line))] == []
