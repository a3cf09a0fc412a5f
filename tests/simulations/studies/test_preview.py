"""The preview of a scenario shows what a run would give each site, and trains nothing. Counted anew from the files."""

import csv
import json
from pathlib import Path

import numpy as np
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from simulations.commands.main import app
from simulations.scenarios.scenario import load_scenario, prepare
from tests.json_forms import conforms
from tests.simulations.drafts import folders
from tests.simulations.tiny import RUN_TOML

PARTITION = """
[partition]
kind = "by-value"
column = "Hospital"
sites = ["anna", "nord"]
[partition.values]
anna = ["St. Anna"]
nord = ["Nord"]
[partition.source]
path = "table"
csv = "list.csv"
image-column = "File name"
mask-column = "Ground truth"
patient-column = "Patient ID"
"""


def scenario(folder: Path) -> Path:
    """Twelve pictures of six patients at two hospitals."""
    folders.with_table(folder / "table")
    path = folder / "mine.toml"
    path.write_text(f"{RUN_TOML}{PARTITION}", encoding="utf-8")
    return path


def sim(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_preview_counts_what_lies_in_the_files_of_each_site(tmp_path: Path) -> None:
    path = scenario(tmp_path)
    done = sim("preview", path, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    conforms("wardround-sim preview", told)
    with (tmp_path / "table" / "list.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    for site, hospital in (("anna", "St. Anna"), ("nord", "Nord")):
        (one,) = [one for one in told if one["site"] == site]
        mine = [row for row in rows if row["Hospital"] == hospital]
        masks = [np.asarray(Image.open(tmp_path / "table" / row["Ground truth"])) > 0 for row in mine]
        images = [np.asarray(Image.open(tmp_path / "table" / row["File name"])) for row in mine]
        assert (one["studies"], sum(one["patients"].values())) == (6, len({row["Patient ID"] for row in mine}))
        assert np.allclose(sorted(one["marked"]), sorted(mask.mean() for mask in masks))
        assert np.allclose(sorted(one["medians"]), sorted(np.median(image) for image in images))
        assert one["classes"]["disc"]["studies"] == 6
        assert np.isclose(one["classes"]["disc"]["share"], np.mean([mask.mean() for mask in masks]))
        assert one["images"][0]["size"] == [[48, 48], [48, 48]]


def test_preview_deals_as_the_run_deals(tmp_path: Path) -> None:
    path = scenario(tmp_path)
    told = {one["site"]: one["patients"] for one in json.loads(sim("preview", path, "--json").stdout)}
    loaded = load_scenario(str(path))
    for site in prepare(loaded, tmp_path / "run"):
        cohort = site.cohort(loaded.config.run)
        assert told[site.config.name] == {part: len(cohort.patients(part)) for part in ("train", "validation", "test")}


def test_preview_shows_tables_and_writes_a_page_and_no_model(tmp_path: Path) -> None:
    path, out = scenario(tmp_path), tmp_path / "out"
    (tmp_path / "table" / "drawn" / "0.png").write_bytes(b"no picture")
    done = sim("preview", path, "--out", out)
    assert done.exit_code == 0, done.output
    for words in ("tiny: patients", "Labels", "Images", "unreadable 1", "48 x 48"):
        assert words in done.stdout
    page = (out / "preview.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert "1 unreadable" in page
    assert (out / "preview.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert not list(out.rglob("*.safetensors"))


def test_site_without_a_study_that_can_be_used_is_named(tmp_path: Path) -> None:
    path = scenario(tmp_path)
    for number in range(6):
        (tmp_path / "table" / "drawn" / f"{number}.png").write_bytes(b"no picture")
    done = sim("preview", path)
    assert done.exit_code == 1
    assert "site anna has no study that can be used (6 unreadable)" in done.stderr
