"""What a server says of a study that its model classifies: what `predict` writes into scores.json."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from client.data.study.study import Reference, Study
from client.predict.prediction import Segmenter, predict_one
from client.serve.jobs import Jobs
from client.serve.work import Figures, _answer, _Desk
from common.config import RunConfig
from common.errors import ConfigError, DataError, ErrorCode
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


@pytest.fixture
def several(tmp_path: Path) -> tuple[_Desk, Jobs]:
    """A desk whose uploads hold three studies, the second of which cannot be used."""
    write_study(tmp_path / "ct", scanner=SCANNERS["a"], seed=1, slices=3, rows=32, labelled=False)
    study = read_image(tmp_path / "ct")

    def read(reference: Reference) -> Study:
        if reference.key == "1":
            raise DataError("it is damaged.", ErrorCode.UNREADABLE)
        return study

    references = tuple(Reference("dicom", "p", str(number), ()) for number in range(3))
    (tmp_path / "jobs").mkdir()
    desk = _Desk(classifier("lesion"), lambda _path, _among: references, read, Figures(), lambda _line: None)
    return desk, Jobs(tmp_path / "jobs", places=2, keep_s=1.0)


def test_study_that_cannot_be_used_does_not_take_the_others_with_it(several: tuple[_Desk, Jobs]) -> None:
    desk, jobs = several
    told = _answer(desk, job := jobs.reserve())
    assert [one["study"] for one in told["studies"]] == [1, 3]
    assert told["failures"] == [{"study": 2, "code": ErrorCode.UNREADABLE, "reason": "it is damaged."}]
    assert (job.done, job.total) == (3, 3)
    assert (desk.figures.done, desk.figures.failed) == (2, 1)
    # Files of one name from two studies stay apart.
    assert list(job.files) == ["001-scores.json", "003-scores.json"]
    assert [one["files"] for one in told["studies"]] == [["001-scores.json"], ["003-scores.json"]]


def test_the_only_study_of_a_job_fails_it(several: tuple[_Desk, Jobs]) -> None:
    desk, jobs = several
    alone = replace(desk, find=lambda _path, _among: (Reference("dicom", "p", "1", ()),))
    with pytest.raises(DataError, match="damaged"):
        _answer(alone, jobs.reserve())
    assert (desk.figures.done, desk.figures.failed) == (0, 1)


def test_disk_that_is_full_is_told_as_such(several: tuple[_Desk, Jobs], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.serve.work.write_private", full)
    desk, jobs = several
    with pytest.raises(ConfigError, match="No space left") as refused:
        _answer(desk, jobs.reserve())
    assert refused.value.code == ErrorCode.DISK_FULL
