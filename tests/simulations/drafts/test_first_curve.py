"""From a folder to the first curve, typed as a researcher would: `new`, then `run`, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import SourceConfig
from simulations.drafts.text import draft
from simulations.scenarios.scenario import load_scenario
from tests import ROOT
from tests.simulations.drafts import folders

pytestmark = pytest.mark.slow
REAL = os.environ.get("WARDROUND_DATA")
real_images = pytest.mark.skipif(REAL is None, reason="WARDROUND_DATA is not set")


def sim(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command, typed in a folder, to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "simulations.commands.main", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def curve(out: Path, score: str) -> list[float]:
    """The validation score of all sites, in the order of the rounds, from the journal."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return [
        e[score] for e in events if (e["event"], e.get("site"), e.get("phase")) == ("evaluate", "overall", "validation")
    ]


def test_thirty_pairs_of_pictures_give_a_curve_in_two_commands(tmp_path: Path) -> None:
    folder = folders.pictures(tmp_path / "thirty", count=30, edge=64)
    drafted = sim(tmp_path, "new", "thirty")
    assert drafted.returncode == 0, drafted.stderr
    assert drafted.stdout.startswith("thirty.toml: 30 studies; patients by site: site-1 10, site-2 10, site-3 10")
    assert "What each site gets: wardround-sim preview thirty.toml\n" in drafted.stderr
    assert "Next: wardround-sim run thirty.toml --out out/thirty" in drafted.stderr
    done = sim(tmp_path, "run", "thirty.toml", "--out", "out/thirty", "--json")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "thirty"
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["status"] == "completed"
    dice = curve(out, "dice")
    assert len(dice) >= 4
    assert max(dice) > dice[0]
    # Who marks every pixel of an image has 2 p / (1 + p), p being the share that is marked.
    shares = [np.mean(np.asarray(Image.open(path)) > 0) for path in (folder / "masks").glob("*.png")]
    trivial = float(np.mean([2 * share / (1 + share) for share in shares]))
    assert json.loads(done.stdout)[-1]["dice"] > max(0.7, 2 * trivial)


@real_images
def test_hippocampus_gives_a_curve_above_the_trivial(tmp_path: Path) -> None:
    drafted = sim(tmp_path, "new", Path(str(REAL)) / "hippocampus")
    assert drafted.returncode == 0, drafted.stderr
    done = sim(tmp_path, "run", "hippocampus.toml", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert len(curve(tmp_path / "out", "dice")) >= 4
    # Some 2.5 % of a volume is marked for each of two classes: who marks all of it has 0.05 of each.
    assert json.loads(done.stdout)[-1]["dice"] > 0.3


@real_images
def test_vessels_of_three_clinics_are_told_apart_by_their_table(tmp_path: Path) -> None:
    made = draft(SourceConfig(path=str(Path(str(REAL)) / "vessels")), "vessels")
    assert dict(made.sizes) == {"chasedb1": 20, "drive": 20, "hrf": 24}
    (tmp_path / "vessels.toml").write_text(made.text, encoding="utf-8")
    run = load_scenario(str(tmp_path / "vessels.toml")).config.run
    assert (run.data.channels, run.model.dims, run.data.modality) == (3, 2, "photo")
    # The two eyes of a child in CHASE_DB1 have names that differ in L and R.
    assert any("20 images, whose names differ at the end alone" in one for one in made.unknown)
