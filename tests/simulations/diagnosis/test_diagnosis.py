"""Networks and classifiers answer the same regions, each by models that never saw its patient."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from client.site import Site
from common.errors import ConfigError, FederationError
from common.learning.checkpoint import load_model
from common.learning.inference import predict_stack
from common.learning.network import build_model
from simulations.commands.main import app
from simulations.diagnosis import baseline, decisions, outoffold
from simulations.diagnosis.diagnosis import diagnose, rows_of
from simulations.diagnosis.outoffold import answer_all
from simulations.scenarios.homes import make_site
from simulations.studies.compare import columns
from tests.json_forms import conforms
from tests.simulations.mammograms import region_run, write_archive
from tests.simulations.tiny import interrupted

RUN = region_run()
SCENARIO = """
[run]
format = 2
name = "masses"
[run.model]
architecture = "cnn"
channels = [4, 8]
[run.task]
kind = "classification"
of = "region"
[run.data]
modality = "MG"
classes = ["benign", "malignant"]
validation-fraction = 0.0
folds = 2
[run.preprocessing]
rows = 128
[run.training]
patch-size = [32, 32]
local-steps = 2
batch-size = 2
[run.federation]
rounds = 2
[pretraining]
images = "mammograms"
patients = 12
rounds = 1
[[sites]]
name = "north"
data = [{path = "north", kind = "mias"}]
[[sites]]
name = "south"
data = [{path = "south", kind = "mias"}]
"""


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "_TREES", 5)
    monkeypatch.setattr(decisions, "_RESAMPLES", 50)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    folder = tmp_path_factory.mktemp("mias")
    return [
        make_site(folder / "homes", write_archive(folder / name, 6, seed))
        for seed, name in enumerate(("north", "south"))
    ]


def test_every_study_is_answered_once_by_the_model_that_did_not_see_its_patient(
    sites: list[Site], tmp_path: Path
) -> None:
    federated = columns(RUN, sites, tmp_path, seed=3)[-1]
    answered = answer_all(federated, sites, tmp_path / "out")
    wanted = [(f"{site.config.name} {case.patient}", case.key) for site in sites for case in site.cohort(RUN).cases]
    assert [(one.patient, one.case) for one in answered] == wanted
    for fold in range(3):
        run, state, _ = load_model(tmp_path / "out" / f"fold-{fold}")
        model = build_model(run)
        model.load_state_dict(state)
        for site in sites:
            for case in site.cohort(run).cases:
                if case.split != "test":
                    continue
                patient = f"{site.config.name} {case.patient}"
                (ours,) = [one for one in answered if (one.patient, one.case) == (patient, case.key)]
                expected = run.task.count(predict_stack(model, case.images, run, "cpu"), case.labels, 2)
                assert torch.allclose(ours.counts, expected)


def test_what_is_finished_is_kept_and_another_run_refused(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = columns(RUN, sites, tmp_path, seed=3)[-1]
    with monkeypatch.context() as patched:
        trained = interrupted(patched, outoffold, at=2)
        with pytest.raises(KeyboardInterrupt):
            answer_all(column, sites, tmp_path / "out")
        first = answer_all(column, sites, tmp_path / "out")
        assert trained == ["fold-0", "fold-1", "fold-1", "fold-2"]
        again = answer_all(column, sites, tmp_path / "out")
        assert len(trained) == 4
    assert all(torch.equal(one.counts, other.counts) for one, other in zip(first, again, strict=True))
    other = columns(region_run(training={"local-steps": 3}), sites, tmp_path, seed=3)[-1]
    with pytest.raises(ConfigError, match="holds another run"):
        answer_all(other, sites, tmp_path / "out")


def test_an_answer_that_is_missing_is_noticed(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outoffold._answers
    monkeypatch.setattr(outoffold, "_answers", lambda *given: whole(*given)[1:])
    with pytest.raises(FederationError, match="expected each once"):
        answer_all(columns(RUN, sites, tmp_path, seed=3)[-1], sites, tmp_path / "out")


def test_the_table_has_every_row_on_the_same_regions(sites: list[Site], tmp_path: Path) -> None:
    done: list[int] = []
    runs = {"mine": (RUN, None)}
    result = diagnose(runs, sites, tmp_path, seeds=[3, 4], finished=lambda count, _: done.append(count))
    names = ["alone: north", "alone: south", "pooled", "federated"]
    assert list(result.chances) == [baseline.MAJORITY, *baseline.CLASSIFIERS, *(f"cnn, {name}" for name in names)]
    assert done[-1] == 2 * rows_of(runs, 2) == 2 * len(result.chances)
    marks = np.array([label for site in sites for case in site.cohort(RUN).cases for label in _marks(case)])
    assert (result.regions.positive == (marks == 2)).all()
    for chances in result.chances.values():
        assert chances.shape == (2, len(marks))
        assert ((chances >= 0) & (chances <= 1)).all()
    # Two sites that train alone give two models, and each answers every region.
    assert not np.allclose(result.chances["cnn, alone: north"], result.chances["cnn, alone: south"])
    found = result.scores()["cnn, pooled"]["AUROC"].value
    each = [roc_auc_score(marks == 2, one) for one in result.chances["cnn, pooled"]]
    assert found == pytest.approx(np.mean(each))
    kept = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [row["model"] for row in kept["rows"]] == list(result.chances)
    assert len(kept["regions"]) == len(marks)
    assert list(kept["differences"]) == [f"cnn, federated minus {name}" for name in baseline.CLASSIFIERS]
    assert "regions of 12 patients" in kept["facts"]
    for name in ("diagnosis.md", "report.html"):
        assert "always the larger class" in (tmp_path / name).read_text()


def _marks(case: Any) -> list[int]:
    return [int(one.max()) for one in case.labels]


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"task": {"kind": "segmentation"}, "model": {"dims": 2, "channels": [4, 8]}}, "of regions of two classes"),
        ({"task": {"kind": "classification", "of": "image"}}, "of regions of two classes"),
        ({"data": {"folds": None}}, "has no folds"),
    ],
)
def test_other_runs_are_refused(tables: dict[str, Any], why: str, sites: list[Site], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        diagnose({"mine": (region_run(**tables), None)}, sites, tmp_path, seeds=[0])


def test_scenarios_whose_sites_differ_in_a_shift_alone_are_no_diagnosis_of_the_same_patients(tmp_path: Path) -> None:
    paths = [tmp_path / "mine.toml", tmp_path / "other.toml"]
    for path, shift in zip(paths, ("", '\n[[shifts]]\nkind = "gain"\nsites = ["north"]\n'), strict=True):
        path.write_text(SCENARIO + shift)
    done = CliRunner().invoke(app, ["diagnosis", *map(str, paths), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "the scenarios have other sites" in done.stderr


def test_the_command_prints_the_table_and_starts_from_generated_films(tmp_path: Path) -> None:
    for seed, name in enumerate(("north", "south")):
        write_archive(tmp_path / name, 4, seed)
    path = tmp_path / "mine.toml"
    path.write_text(SCENARIO)
    done = CliRunner().invoke(app, ["diagnosis", str(path), "--out", str(tmp_path / "out"), "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    conforms("wardround-sim diagnosis", rows)
    assert [row["model"] for row in rows[5:]] == [
        f"cnn, {name}" for name in ("zero-shot", "alone: north", "alone: south", "pooled", "federated")
    ]
    assert (tmp_path / "out" / "pretraining" / "mammograms-12-0" / "images" / "0012.png").exists()
    assert "AUROC of cnn, federated minus random forest" in done.stderr
