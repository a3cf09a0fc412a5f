"""A model of a site's own from a run: listed, used in place of the shared one, exported, told of, and removed."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.commands.main import app
from client.home.kept import personal_folder, personal_models
from client.site import open_site
from common.config import SiteConfig
from common.config.rundocument import RunDocument, issue
from common.learning.checkpoint import load_model, unpack
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios.homes import make_site
from tests.json_forms import conforms
from tests.simulations.tiny import tiny_run_of_format, tiny_site


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDocument]:
    """A folder of a site's home, its images, and the model of a run that has left it one of its own."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_site(folder / "images", "north", 6)
    site = make_site(folder, SiteConfig(**{**dict(config), "threads": 1}))
    training = {"local-steps": 12, "learning-rate": 0.03}
    strategy = {"kind": "ditto", "lambda": 1000.0}  # which holds it back
    run = tiny_run_of_format(2, strategy=strategy, training=training, federation={"rounds": 1, "quorum": 1})
    document = issue(run)
    federate(InProcessGrid([site], document), document, folder / "model")
    shutil.copytree(site.home, folder / "home")
    return folder, document


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output if code == 0 else " ".join(result.output.split())


def scores_in(folder: Path) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    found: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads((folder / "summary.json").read_text())
    return found


def test_it_is_listed_used_and_exported(trained: tuple[Path, RunDocument], tmp_path: Path) -> None:
    folder, document = trained
    home, model, study = folder / "home", folder / "model", next((folder / "images" / "images").glob("*.png"))
    # What it notes besides, such as that the home is of a new version now, is no part of what it prints.
    printed = CliRunner().invoke(app, ["personal", "list", "--home", str(home), "--json"]).stdout
    (row,) = listed = json.loads(printed)
    conforms("wardround-client personal list", listed)
    assert (row["hash"], row["round"]) == (document.hash, 1)

    call("personal", "export", model, "--out", tmp_path / "own", "--home", home)
    assert (tmp_path / "own").stat().st_mode & 0o077 == 0
    _, own, manifest = load_model(tmp_path / "own")
    _, shared, _ = load_model(model)
    kept = unpack((tmp_path / "own" / "model.safetensors").read_bytes())
    assert own.keys() == kept.keys() == shared.keys()
    assert any(not own[name].equal(one) for name, one in shared.items())
    assert (manifest.sites, manifest.guarantee, manifest.scores) == (("north",), None, {})

    call("predict", model, study, "--out", tmp_path / "1", "--device", "cpu", "--personal", "--home", home)
    call("predict", tmp_path / "own", study, "--out", tmp_path / "2", "--device", "cpu")
    assert results(tmp_path / "1") == results(tmp_path / "2")

    common: Sequence[object] = ("--home", home, "--split", "all", "--device", "cpu")
    told = call("evaluate", model, "--out", tmp_path / "both", "--personal", *common)
    assert "Personal and shared model" in told
    call("evaluate", model, "--out", tmp_path / "shared", *common)
    call("evaluate", tmp_path / "own", "--out", tmp_path / "alone", *common)
    both, theirs, ours = (scores_in(tmp_path / name) for name in ("both", "shared", "alone"))
    assert both["shared"] == theirs["mean-of-patients"]
    assert both["mean-of-patients"] == ours["mean-of-patients"] != theirs["mean-of-patients"]


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_of_another_run_has_none_here(trained: tuple[Path, RunDocument], tmp_path: Path) -> None:
    folder, document = trained
    home = tmp_path / "home"
    shutil.copytree(folder / "home", home)
    shutil.rmtree(personal_folder(home, document.hash))
    study = next((folder / "images" / "images").glob("*.png"))
    words = ("predict", folder / "model", study, "--out", tmp_path / "out", "--device", "cpu", "--personal")
    assert "keeps no personal model of run" in call(*words, "--home", home, code=1)


def test_a_patient_who_is_forgotten_may_be_in_it_and_a_person_removes_it(
    trained: tuple[Path, RunDocument], tmp_path: Path
) -> None:
    folder, document = trained
    home = tmp_path / "home"
    shutil.copytree(folder / "home", home)
    patient = next((folder / "images" / "images").glob("*.png")).stem
    told = " ".join(call("data", "forget", patient, "--home", home).split())
    (certificate,) = (home / "certificates").glob("*.json")
    assert json.loads(certificate.read_text())["personal-models"] == [document.hash]
    assert f"1 personal model is kept here ({document.hash[:8]})" in told
    assert personal_models(home)
    assert "expected one" in call("personal", "remove", "other", "--home", home, code=1)
    assert "nobody answered" in call("personal", "remove", document.hash[:6], "--home", home, code=1)
    call("personal", "remove", document.hash[:6], "--home", home, "--yes")
    assert not personal_models(open_site(home).home)
