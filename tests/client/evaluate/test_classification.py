"""A classification's figures against scikit-learn and DeLong's definition, from the table that is written."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, f1_score, roc_auc_score
from typer.testing import CliRunner

from client.commands.main import app
from client.data.cohort import deal, read_studies
from client.data.isolate.isolation import Readers
from client.evaluate import classification
from client.home.folder import SPLITS_NAME
from client.site import Site
from client.train.training import evaluate as score_of_training
from common.config import RunConfig, canonical, sha256_of
from common.learning import inference
from common.learning.checkpoint import Manifest, load_model, pack, save_model, sha256
from common.learning.network import build_model
from common.learning.network import load_model as with_weights
from simulations.scenarios.homes import make_site
from tests.common.measures.test_intervals import by_pairs
from tests.json_forms import conforms
from tests.simulations.classed import WORDS, classed_run, classed_site

CLASSES = list(WORDS[1:])


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.data.survey.Readers", lambda _count: Readers(0))


def model_of(folder: Path, run: RunConfig, sites: tuple[str, ...] = ()) -> Path:
    """Weights as drawn, the last layer's enlarged so that chances differ."""
    torch.manual_seed(1)
    network = build_model(run)
    state = {name: tensor * (3 if tensor.ndim > 1 else 1) for name, tensor in network.state_dict().items()}
    weights = pack(state)
    save_model(folder, weights, Manifest(canonical(run), sha256_of(run), 1, sites, sha256(weights)))
    return folder


def evaluated(site: Site, model: Path, out: Path, *options: str) -> tuple[list[dict[str, str]], dict[str, object]]:
    """The table and the summary."""
    arguments = ["evaluate", model, "--home", site.home, "--out", out, "--json", *options]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    conforms("wardround-client evaluate", json.loads(done.stdout))
    with (out / "patients.csv").open(newline="") as file:
        return list(csv.DictReader(file)), json.loads((out / "summary.json").read_text())


def calibration_error(chances: np.ndarray, truth: np.ndarray) -> float:
    """Guo et al., ICML 2017, in ten bins."""
    bins = np.minimum((10 * chances).astype(int), 9)
    parts = [bins == number for number in range(10) if (bins == number).any()]
    return float(sum(part.mean() * abs(truth[part].mean() - chances[part].mean()) for part in parts))


def test_figures_are_those_of_the_table(tmp_path: Path) -> None:
    site = make_site(tmp_path / "sites", classed_site(tmp_path / "images", "north", patients=24))
    rows, summary = evaluated(site, model_of(tmp_path / "model", classed_run()), tmp_path / "out")
    assert len(rows) == 24
    labelled, called = ([row[name] for row in rows] for name in ("labelled", "called"))
    chances = {name: np.array([float(row[f"chance-{name}"]) for row in rows]) for name in CLASSES}
    for name in CLASSES:
        truth = np.array([word == name for word in labelled])
        of_class = summary["by-class"][name]  # type: ignore[index]
        area = of_class["roc-auc"]
        value, covariance = by_pairs(chances[name][None], truth)
        assert area["value"] == pytest.approx(roc_auc_score(truth, chances[name]))
        low = max(0, value[0] - 1.959964 * math.sqrt(covariance[0, 0]))
        assert area["low"] == (pytest.approx(low) if covariance[0, 0] else None)
        assert of_class["roc-auc-interval"] == "delong"
        assert of_class["average-precision"]["value"] == pytest.approx(average_precision_score(truth, chances[name]))
        assert of_class["brier"] == pytest.approx(brier_score_loss(truth, chances[name]))
        assert of_class["images"] == truth.sum() == 8
        assert of_class["calibration-error"] == pytest.approx(calibration_error(chances[name], truth))
        assert of_class["threshold"] is None  # of all patients: those in validation are among them
    names = ["none of them", *CLASSES]
    assert summary["confusion"] == {
        "classes": names,
        "truth-by-answer": confusion_matrix(labelled, called, labels=names).tolist(),
    }
    scores: Any = summary["scores"]
    agreed = [one == other for one, other in zip(labelled, called, strict=True)]
    assert scores["accuracy"]["value"] == pytest.approx(np.mean(agreed))
    f1 = f1_score(labelled, called, labels=CLASSES, average="macro", zero_division=0)
    assert scores["f1"]["value"] == pytest.approx(f1)
    none = 1 - chances["bright"] - chances["dark"]
    given = {"none of them": none, **chances}
    right = [given[word][at] for at, word in enumerate(labelled)]
    assert right == sorted(right)  # the worst first
    page = (tmp_path / "out" / "report.html").read_text()
    for title in ("ROC curve", "Precision-recall curve", "Calibration", "Confusion matrix", "Images by patient"):
        assert title in page


def test_test_patients_score_as_in_a_round_and_the_threshold_is_of_validation(tmp_path: Path) -> None:
    run = classed_run(data={"validation-fraction": 0.3, "test-fraction": 0.4})
    site = make_site(tmp_path / "sites", classed_site(tmp_path / "images", "north", patients=30))
    model = model_of(tmp_path / "model", run, ("north",))
    rows, summary = evaluated(site, model, tmp_path / "out")
    studies = read_studies(site.config, run, root=site.home, site_key=site.key)
    cohort = deal(studies, site.config, run, site_key=site.key, splits=site.home / SPLITS_NAME)
    assert {row["patient"] for row in rows} == set(cohort.patients("test"))
    _, state, _ = load_model(model)
    count, scores = score_of_training(with_weights(run, state), cohort, run, "test", torch.device("cpu"))
    assert count == len(rows) == 12
    ours = {name: one["value"] for name, one in summary["scores"].items()}  # type: ignore[attr-defined]
    assert ours == pytest.approx(scores)
    held, _ = evaluated(site, model, tmp_path / "validation", "--split", "validation")
    for name in CLASSES:
        chances = np.array([float(row[f"chance-{name}"]) for row in held])
        truth = np.array([row["labelled"] == name for row in held])
        youden = {at: (chances >= at)[truth].mean() - (chances >= at)[~truth].mean() for at in chances}
        of_class = summary["by-class"][name]  # type: ignore[index]
        assert youden[of_class["threshold"]] == pytest.approx(max(youden.values()))
        hit = [float(row[f"chance-{name}"]) >= of_class["threshold"] for row in rows if row["labelled"] == name]
        assert of_class["sensitivity-at-threshold"] == pytest.approx(np.mean(hit))
        extra = [float(row[f"chance-{name}"]) >= of_class["threshold"] for row in rows if row["labelled"] != name]
        assert of_class["specificity-at-threshold"] == pytest.approx(1 - np.mean(extra))


def test_several_classes_an_image_and_several_images_a_patient(tmp_path: Path) -> None:
    config = classed_site(tmp_path / "images", "north", patients=24)
    table = tmp_path / "images" / "table.csv"
    lines = list(csv.reader(table.open(newline="")))
    lines[2][2] = "bright|dark"
    merged = [lines[0], *([image, f"p{number // 2}", word] for number, (image, _, word) in enumerate(lines[1:]))]
    table.write_text("\n".join(",".join(line) for line in merged))
    run = classed_run(task={"multi-label": True})
    site = make_site(tmp_path / "sites", config)
    rows, summary = evaluated(site, model_of(tmp_path / "model", run), tmp_path / "out")
    assert (len(rows), summary["patients"]) == (24, 12)
    assert "bright | dark" in {row["labelled"] for row in rows}
    bright = np.array(["bright" in row["labelled"] for row in rows])
    chances = [float(row["chance-bright"]) for row in rows]
    of_class = summary["by-class"]["bright"]  # type: ignore[index]
    assert of_class["roc-auc"]["value"] == pytest.approx(roc_auc_score(bright, chances))
    assert of_class["roc-auc-interval"] == "bootstrap"
    assert summary["confusion"] == {}
    assert "Decisions" in (tmp_path / "out" / "report.html").read_text()


def test_a_study_that_does_not_fit_into_memory_is_left_out_and_the_others_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path / "sites", classed_site(tmp_path / "images", "north", patients=8))
    asked: list[object] = []
    predict = inference.predict_stack

    def third_is_too_large(*given: Any) -> torch.Tensor:
        asked.append(given)
        if len(asked) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(*given)

    monkeypatch.setattr(classification, inference.predict_stack.__name__, third_is_too_large)
    rows, summary = evaluated(site, model_of(tmp_path / "model", classed_run()), tmp_path / "out")
    assert len(rows) == summary["studies"] == 7
    assert summary["left-out"] == {"out-of-memory": 1}
