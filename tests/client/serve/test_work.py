"""What a server says of a study that its model classifies: what `predict` writes into scores.json."""

import json
from pathlib import Path

from client.data.study.study import Reference
from client.predict.prediction import Segmenter, predict_one
from client.serve.jobs import Jobs
from client.serve.work import Figures, _answer, _Desk
from common.config import RunConfig
from common.learning.network import build_model
from simulations.generators.phantoms import SCANNERS, write_study
from tests.client.data.studies import read_image
from tests.client.thresholds import run_for


def classifier(*classes: str) -> Segmenter:
    values = run_for(patch=32, classes=classes).model_dump(by_alias=True)
    values |= {"format": 2, "model": {"architecture": "cnn", "channels": [4, 8]}, "task": {"kind": "classification"}}
    run = RunConfig.model_validate(values)
    network = build_model(run).eval()
    return Segmenter(network, run, "0" * 64, next(network.parameters()).device)


def test_classifiers_probabilities_are_those_of_predict(tmp_path: Path) -> None:
    write_study(tmp_path / "ct", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    study, figures, model = read_image(tmp_path / "ct"), Figures(), classifier("benign", "malignant")
    reference = Reference("dicom", "p", "k", ())
    lines: list[str] = []
    desk = _Desk(model, lambda _path, _among: (reference,), lambda _one: study, figures, lines.append)
    jobs = Jobs(tmp_path / "jobs", places=2, keep_s=1.0)
    (tmp_path / "jobs").mkdir()
    (told,) = _answer(desk, job := jobs.reserve())["studies"]
    predict_one(model, lambda _one: study, reference, tmp_path / "out", "")
    wanted = json.loads((tmp_path / "out" / "scores.json").read_bytes())
    assert {name: told[name] for name in ("chances", "none")} == {name: wanted[name] for name in ("chances", "none")}
    assert list(told["answer"]) == wanted["answer"]
    assert abs(sum(told["chances"].values()) + told["none"] - 1) < 1e-6
    assert list(job.files) == told["files"] == ["scores.json"]
    assert (told["slices"], figures.done, len(lines)) == (3, 1, 1)
    (bare,) = _answer(desk, jobs.reserve(frozenset()))["studies"]  # as /v1/predict asks for numbers
    assert bare["chances"] == told["chances"]
    assert bare["files"] == []
