"""Over the folds every patient is tested once, each fold is an ordinary run, and what is finished is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.site import Site
from common.config import RunConfig, SiteConfig
from common.errors import ConfigError, FederationError
from common.learning.checkpoint import load_model, sha256
from simulations.commands.main import app
from simulations.scenarios.homes import make_site
from simulations.studies import crossval
from simulations.studies.crossval import MEAN_OF_SITES, Fold, by_site, cross_validate, fold_runs, summary_rows
from tests.json_forms import conforms
from tests.simulations.studies.longform import assert_is_latex, assert_long_tables, sheet
from tests.simulations.tiny import interrupted, tiny_run, tiny_scenario, tiny_site

FOLDS = 3
RUN = tiny_run(data={"folds": FOLDS}, federation={"rounds": 1})


def sim(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    sizes = {"north": 7, "south": 3}
    return [
        make_site(tmp_path / "sites", tiny_site(tmp_path / name, name, patients)) for name, patients in sizes.items()
    ]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return tiny_scenario(tmp_path)


def a_fold(number: int, **scores: float) -> Fold:
    return Fold(number, "h", "m", {site: {"dice": value, "iou": value / 2} for site, value in scores.items()})


def pictures_of(site: Site, run: RunConfig, split: str) -> list[bytes]:
    return [case.images.numpy().tobytes() for case in site.cohort(run).cases if case.split == split]


def test_every_patient_is_tested_once_and_never_by_a_model_that_saw_them(sites: list[Site]) -> None:
    for site in sites:
        tested: list[bytes] = []
        for run in fold_runs(RUN):
            test = pictures_of(site, run, "test")
            assert test
            assert not set(test) & {*pictures_of(site, run, "train"), *pictures_of(site, run, "validation")}
            tested += test
        everybody = [case.images.numpy().tobytes() for case in site.cohort(RUN).cases]
        assert sorted(tested) == sorted(everybody)


def test_each_fold_is_an_ordinary_run(scenario: Path, tmp_path: Path) -> None:
    done = sim("crossval", scenario, "--folds", 2, "--rounds", 1, "--out", tmp_path / "out", "--threads", 1, "--json")
    assert done.exit_code == 0, done.output
    alone = tmp_path / "alone.toml"
    alone.write_text(scenario.read_text().replace("[run.data]", "[run.data]\nfolds = 2\nfold = 1"))
    assert sim("run", alone, "--rounds", 1, "--out", tmp_path / "alone", "--threads", 1).exit_code == 0
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out/fold-1", "alone")]
    assert summaries[0]["model-sha256"] == summaries[1]["model-sha256"]
    assert summaries[0]["scores"]["test"] == summaries[1]["scores"]["test"]

    rows = json.loads(done.stdout)
    conforms("wardround-sim crossval", rows)
    assert list(rows[0]) == [
        *("site", "fold", "dice", "foreground-dice", "iou", "sensitivity", "specificity", "precision", "recall")
    ]
    assert [row["fold"] for row in rows] == [0, 1, "mean", "standard deviation"] * 3
    scores = summaries[1]["scores"]["test"]["sites"]["south"]
    (south,) = [row for row in rows if row["site"] == "south" and row["fold"] == 1]
    assert all(south[name] == scores[name] for name in list(south)[2:])
    for name in ("fold-0/report.html", "fold-1/model.safetensors", "report.html", "crossval.json"):
        assert (tmp_path / "out" / name).stat().st_size > 100


def test_mean_and_spread_are_those_of_numpy(sites: list[Site], tmp_path: Path) -> None:
    results = cross_validate(RUN, sites, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "crossval.json").read_text())
    assert [fold["number"] for fold in kept["folds"]] == [0, 1, 2]
    assert list(kept["mean"]) == ["north", "south", MEAN_OF_SITES]
    for metric in ("dice", "sensitivity", "specificity", "precision", "recall"):
        scores = np.array([[fold["scores"][site][metric] for site in ("north", "south")] for fold in kept["folds"]])
        for site, values in {"north": scores[:, 0], "south": scores[:, 1], MEAN_OF_SITES: scores.mean(1)}.items():
            assert kept["mean"][site][metric] == pytest.approx(values.mean())
            assert kept["standard-deviation"][site][metric] == pytest.approx(values.std(ddof=1))
    of_folds = {(f"fold {one.number}", RUN.seed, site): of for one in results for site, of in one.scores.items()}
    assert_long_tables(tmp_path / "out", of_folds)
    dice = [one["patient"] for one in sheet(tmp_path / "out" / "patients.csv") if one["measure"] == "dice"]
    assert len(dice) == len(set(dice)) == 10
    assert_is_latex((tmp_path / "out" / "crossval.tex").read_text(), 9)


def test_table_lists_the_folds_of_each_site_and_then_of_all(tmp_path: Path) -> None:
    results = [a_fold(0, north=0.2, south=0.6), a_fold(1, north=0.4, south=1.0)]
    head, rows = summary_rows(results, RUN.task)
    assert head == ["site", "fold", "dice", "iou"]
    assert rows[:2] == [["north", 0, 0.2, 0.1], ["north", 1, 0.4, 0.2]]
    assert [row[2] for row in rows[8:]] == pytest.approx([0.4, 0.7, 0.55, 0.3 / 2**0.5])
    assert list(by_site(results, RUN.task)) == ["north", "south", MEAN_OF_SITES]


def test_a_fold_without_a_class_has_no_score_of_it(tmp_path: Path) -> None:
    scored = Fold(0, "h", "m", {"north": {"dice": 0.5, "specificity": 1.0}, "south": {"dice": 0.7, "specificity": 1.0}})
    healthy = Fold(1, "h", "m", {"north": {"specificity": 0.8}, "south": {"dice": 0.9, "specificity": 1.0}})
    head, rows = summary_rows([healthy, scored], RUN.task)
    assert head == ["site", "fold", "dice", "specificity"]
    assert rows[:4] == [["north", 1, None, 0.8], ["north", 0, 0.5, 1.0], ["north", "mean", 0.5, 0.9], rows[3]]
    assert rows[3][2] is None  # no spread of one
    assert [row[2] for row in rows[8:10]] == pytest.approx([0.9, 0.6])


def test_interrupted_cross_validation_goes_on(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    trained = interrupted(monkeypatch, crossval, at=2)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(RUN, sites, out)
    assert not (out / "crossval.json").exists()
    results = cross_validate(RUN, sites, out)
    assert trained == ["fold-0", "fold-1", "fold-1", "fold-2"]
    assert cross_validate(RUN, sites, out) == results
    assert len(trained) == 4


def test_fold_that_failed_is_trained_again(sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("client.train.training.train_round", lambda *_, **__: 1 / 0)
        with pytest.raises(FederationError):
            cross_validate(RUN, sites, out)
    assert json.loads((out / "fold-0" / "summary.json").read_text())["status"] == "failed"
    assert len(cross_validate(RUN, sites, out)) == FOLDS


def test_folder_of_another_run_is_refused(sites: list[Site], tmp_path: Path) -> None:
    cross_validate(RUN, sites, tmp_path / "out")
    other = tiny_run(data={"folds": FOLDS}, federation={"rounds": 1}, training={"local-steps": 3})
    with pytest.raises(ConfigError, match="holds another run"):
        cross_validate(other, sites, tmp_path / "out")


def test_more_folds_than_patients_of_a_site_is_refused_before_anything_is_trained(
    scenario: Path, tmp_path: Path
) -> None:
    done = sim("crossval", scenario, "--folds", 6, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "site north has 5 usable patients, too few for 6 folds" in done.stderr
    assert not (tmp_path / "out" / "fold-0").exists()


def test_sources_that_are_all_smaller_than_the_folds_are_refused(sites: list[Site], tmp_path: Path) -> None:
    sources = [tiny_site(tmp_path / name, name, 2).data[0] for name in ("east", "west")]
    scattered = make_site(tmp_path / "sites", SiteConfig(name="scattered", data=tuple(sources)))
    with pytest.raises(ConfigError, match="fold 2 has no test patient at scattered"):
        cross_validate(RUN, [sites[0], scattered], tmp_path / "out")


def test_run_without_folds_is_refused(sites: list[Site], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no folds"):
        cross_validate(tiny_run(), sites, tmp_path / "out")


def test_folds_that_leave_nobody_for_training_are_refused(scenario: Path, tmp_path: Path) -> None:
    scenario.write_text(scenario.read_text().replace("validation-fraction = 0.2", "validation-fraction = 0.5"))
    done = sim("crossval", scenario, "--folds", 2, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "1/folds must leave patients for training" in done.stderr


def test_every_fold_starts_from_the_same_weights_of_no_patient(scenario: Path, tmp_path: Path) -> None:
    scenario.write_text(f'{scenario.read_text()}\n[pretraining]\nimages = "retinas"\npatients = 2\nrounds = 1\n')
    out = tmp_path / "out"
    done = sim("crossval", scenario, "--folds", 2, "--rounds", 1, "--out", out, "--threads", 1)
    assert done.exit_code == 0, done.output
    start = sha256((out / "initial.safetensors").read_bytes())
    for fold in range(2):
        run, _, _ = load_model(out / f"fold-{fold}")
        assert run.initial is not None
        assert run.initial.sha256 == start
        assert "2 generated images (retinas, seed 0)" in str(run.initial.public)
