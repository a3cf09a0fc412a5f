"""Classes that overlap, end to end: a federation learns them, plain and private; its model is scored and explained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from client.evaluate.model import evaluate
from client.explain.explanation import Wanted, explain_study
from client.predict.prediction import load_segmenter, predict_study
from client.site import Site
from client.train.training import evaluate as evaluate_round
from common.config import RunConfig
from common.config.rundocument import issue
from common.learning.inference import outputs
from server.federation.rounds import federate
from simulations.backends import opened
from simulations.scenarios.homes import make_site
from simulations.studies.overlays import draw_overlays
from tests.simulations.overlapping import CLASSES, overlapping_run, overlapping_site

LEARNING = {"local-steps": 60, "batch-size": 6, "learning-rate": 1e-2, "foreground-classes": "balanced"}


def sites_in(folder: Path, **sizes: int) -> list[Site]:
    return [make_site(folder / "sites", overlapping_site(folder / name, name, count)) for name, count in sizes.items()]


def trained(folder: Path, sites: list[Site], config: RunConfig) -> dict[str, Any]:
    document = issue(config)
    with opened(sites, document) as grid:
        return vars(federate(grid, document, folder / "model"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Site], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("overlapping")
    sites = sites_in(folder, north=12, south=10)
    summary = trained(folder, sites, overlapping_run(training={**LEARNING, "sampling": "balanced"}))
    return folder / "model", sites, summary


def truth_of(study: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(Image.open(str(study).replace("image", name))) > 0 for name in CLASSES}


def test_a_federation_learns_classes_that_overlap(learned: tuple[Path, list[Site], dict[str, Any]]) -> None:
    _, _, summary = learned
    assert summary["status"] == "completed"
    told = summary["scores"]["test"]["mean-of-sites"]
    assert min(told["dice-organ"], told["dice-lesion"]) > 0.85
    assert told["dice"] == pytest.approx((told["dice-organ"] + told["dice-lesion"]) / 2)


def test_the_counts_of_the_sites_are_those_of_all_patients_at_one(
    learned: tuple[Path, list[Site], dict[str, Any]], tmp_path: Path
) -> None:
    """One network, the same held-out patients: what is counted at two sites adds up to what scikit-learn counts."""
    model, sites, _ = learned
    segmenter = load_segmenter(model, "cpu")
    run, federated, pooled = segmenter.run, torch.zeros(3, 2, 2, dtype=torch.int64), []
    for site in sites:
        cohort = site.cohort(run)
        for name in cohort.patients("test"):
            for case in cohort.cases_of(name):
                logits = outputs(segmenter.network, case.images, run, "cpu")
                federated += run.task.count(run.task.answer(logits), case.labels, 2)
                pooled.append((logits > 0, torch.stack([case.labels % 2, case.labels // 2], 1) > 0))
    said, shown = (torch.cat([one[part].movedim(1, 0).flatten(1) for one in pooled], 1) for part in (0, 1))
    for number in (0, 1):
        (_, extra), (missed, hit) = federated[number + 1].tolist()
        assert 2 * hit / (2 * hit + extra + missed) == pytest.approx(f1_score(shown[number], said[number]))


def test_a_prediction_has_a_file_of_each_class(
    learned: tuple[Path, list[Site], dict[str, Any]], tmp_path: Path
) -> None:
    model, sites, _ = learned
    study = Path(sites[0].config.data[0].path) / "3-image.png"
    result = predict_study(model, study, tmp_path)
    names = ["3-image-labels-organ.png", "3-image-labels-lesion.png", "3-image-overlay.png"]
    assert [path.name for path in result.files] == names
    truth = truth_of(study)
    for number, name in enumerate(CLASSES, start=1):
        drawn = np.asarray(Image.open(tmp_path / f"3-image-labels-{name}.png"))
        assert set(np.unique(drawn)) == {0, number}
        assert f1_score(truth[name].ravel(), drawn.ravel() > 0) > 0.8
        assert result.voxels[name] == (drawn > 0).sum()
    both = np.logical_and(*(np.asarray(Image.open(tmp_path / names[k])) > 0 for k in (0, 1)))
    assert both.any()


def test_an_evaluation_tells_each_class_as_the_run_scores_it(
    learned: tuple[Path, list[Site], dict[str, Any]],
) -> None:
    model, sites, _ = learned
    found = evaluate(model, sites[:1], wanted="test", readers=0).sites[0].findings
    mean = {name: one["value"] for name, one in found.summary["mean-of-patients"].items()}
    segmenter = load_segmenter(model, "cpu")
    _, scores = evaluate_round(segmenter.network, sites[0].cohort(segmenter.run), segmenter.run, "test", "cpu")
    assert mean == pytest.approx(scores)
    assert set(found.summary["distances"]) == set(CLASSES)
    tables = np.array(found.summary["confusion"]["truth-by-answer"])
    assert tables.shape == (3, 2, 2)
    assert (tables.sum(axis=(1, 2)) == tables[0].sum()).all()
    hits, all_ = np.trace(tables[1:], axis1=1, axis2=2), tables[1:].sum(axis=(1, 2))
    assert found.summary["pooled"]["accuracy"]["value"] == pytest.approx((hits / all_).mean())
    rates = [(one[0, 0] / one[0].sum() + one[1, 1] / one[1].sum()) / 2 for one in tables[1:]]
    assert found.summary["pooled"]["balanced-accuracy"]["value"] == pytest.approx(np.mean(rates))
    assert all(one["roc-auc"]["value"] > 0.9 for one in found.summary["ranking"].values())
    assert json.dumps(found.summary, allow_nan=False)
    decisions = next(table for table in found.tables if table.title == "Decisions")
    assert [row[0] for row in decisions.rows] == list(CLASSES)
    assert [row[1] for row in decisions.rows] == tables[1:, 1, 1].tolist()


def test_an_explanation_is_of_each_class(learned: tuple[Path, list[Site], dict[str, Any]]) -> None:
    model, sites, _ = learned
    study = Path(sites[0].config.data[0].path) / "3-image.png"
    found = explain_study(model, study, Wanted(("grad-cam",)))
    assert set(found.odds) == set(CLASSES)
    truth = truth_of(study)
    for name in CLASSES:
        assert found.voxels[name] == pytest.approx(truth[name].sum(), rel=0.35)
    assert found.labels is not None
    assert (found.labels == 3).any()


def test_a_simulation_draws_each_class(learned: tuple[Path, list[Site], dict[str, Any]]) -> None:
    model, sites, _ = learned
    assert {path.stem for path in draw_overlays(model, sites, per_site=1)} == {
        f"{site} 1 {name}" for site in ("north", "south") for name in CLASSES
    }


def test_a_site_that_kept_labels_of_one_kind_reads_them_anew_for_the_other(tmp_path: Path) -> None:
    """The same data contract and preparation: what was cached for overlapping classes is no plain map."""
    (site,) = sites_in(tmp_path, north=3)
    plain = overlapping_run(task={"multi-label": False})
    values = {}
    for name, run in (("bits", overlapping_run()), ("numbers", plain), ("bits again", overlapping_run())):
        labels = torch.cat([case.labels for case in site.cohort(run).cases])
        values[name] = labels.unique().tolist()
    assert values == {"bits": [0, 1, 2, 3], "numbers": [0, 1, 2], "bits again": [0, 1, 2, 3]}


def test_a_private_federation_runs_and_tells_noised_scores_of_each_class(tmp_path: Path) -> None:
    privacy = {"target-epsilon": 50.0, "sampling-rate": 0.5, "crops-per-patient": 1}
    summary = trained(tmp_path, sites_in(tmp_path, north=8, south=8), overlapping_run(privacy=privacy))
    assert summary["status"] == "completed"
    assert summary["guarantee"] is not None
