"""Features of every region, and classifiers that never see whom they answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from scipy import ndimage
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from client.site import Site
from common.errors import ConfigError, DataError
from simulations.commands.main import app
from simulations.diagnosis import baseline, decisions
from simulations.diagnosis.baseline import (
    CLASSIFIERS,
    Features,
    Row,
    answer_all,
    answers,
    classifier,
    majority,
    measure,
)
from simulations.diagnosis.radiomics import features
from simulations.scenarios.homes import make_site
from tests.json_forms import conforms
from tests.simulations.mammograms import mass_run, write_archive
from tests.simulations.tiny import SITES, tiny_run

SCENARIO = """
[run]
name = "masses"
[run.data]
modality = "MG"
classes = ["benign", "malignant"]
validation-fraction = 0.0
[run.preprocessing]
rows = 128
[run.training]
patch-size = [32, 32]
[run.federation]
rounds = 1
"""
RUN = mass_run()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    folder = tmp_path_factory.mktemp("mias")
    return [
        make_site(folder / "homes", write_archive(folder / name, women, seed))
        for seed, (name, women) in enumerate((("north", 6), ("south", 4)))
    ]


@pytest.fixture(scope="module")
def table(sites: list[Site]) -> Features:
    return measure(RUN, sites)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "_TREES", 25)
    monkeypatch.setattr(decisions, "_RESAMPLES", 100)


def invented(*, patients: int = 20, apart: float = 0.0, share: float = 0.25, seed: int = 0) -> Features:
    """Two regions a patient, three folds, six values of which the first tells the classes apart."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        positive = patient % round(1 / share) == 0
        for number in range(2):
            values = rng.normal(size=6)
            values[0] += apart * positive
            rows.append(Row(f"p{patient}", "c", number, patient // 4 % 3, values, positive))
    return Features(tuple("abcdef"), tuple(rows))


def test_every_region_of_every_site_is_a_row(sites: list[Site], table: Features) -> None:
    expected = 0
    for site in sites:
        for case in site.cohort(RUN).cases:
            for label in (1, 2):
                expected += ndimage.label(case.labels[0].numpy() == label, np.ones((3, 3)))[1]
    assert len(table.rows) == expected >= 20
    assert table.positives().any()
    assert not table.positives().all()


def test_both_breasts_of_a_woman_are_in_one_fold_and_all_folds_are_used(sites: list[Site], table: Features) -> None:
    folds: dict[str, set[int]] = {}
    films: dict[str, set[str]] = {}
    for row in table.rows:
        folds.setdefault(row.patient, set()).add(row.fold)
        films.setdefault(row.patient, set()).add(row.case)
    assert len(folds) == 10
    assert {len(one) for one in folds.values()} == {1}
    assert {len(one) for one in films.values()} == {2}
    assert set(table.folds().tolist()) == {0, 1, 2}


def test_folds_are_those_that_a_network_is_tested_in(sites: list[Site], table: Features) -> None:
    for fold in range(3):
        run = mass_run(data={"fold": fold})
        tested = {f"{site.config.name} {patient}" for site in sites for patient in site.cohort(run).patients("test")}
        assert {row.patient for row in table.rows if row.fold == fold} == tested


def test_a_rows_values_are_the_features_of_its_region(sites: list[Site], table: Features) -> None:
    case = sites[0].cohort(RUN).cases[0]
    label = int(case.labels.max())
    marked, count = ndimage.label(case.labels[0].numpy() == label, np.ones((3, 3)))
    row = max((row for row in table.rows if row.case == case.key), key=lambda row: row.number)
    expected = features(case.images[0, 0].numpy(), marked == count)
    assert dict(zip(table.names, row.values.tolist(), strict=True)) == expected
    assert row.positive == (label == 2)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_an_answer_does_not_depend_on_whom_else_the_fold_tests(name: str) -> None:
    """Scaling or SMOTE before the folds would carry the others of the fold into its training."""
    table = invented()
    before = answers(table, classifier(name, 0))
    changed, at = list(table.rows), [place for place, row in enumerate(table.rows) if row.fold == 1]
    for place in at[1:]:
        row = changed[place]
        changed[place] = Row(row.patient, row.case, row.number, row.fold, row.values * 50 + 9, not row.positive)
    after = answers(Features(table.names, tuple(changed)), classifier(name, 0))
    assert after[at[0]] == before[at[0]]
    others = [place for place in range(len(table.rows)) if place not in at]
    assert not np.allclose(after[others], before[others]), "elsewhere they are training rows"


class Spy(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """A classifier that keeps what it is given."""

    seen: list[tuple[np.ndarray, np.ndarray]] = []  # noqa: RUF012 - one for all clones

    def fit(self, values: np.ndarray, positive: np.ndarray) -> "Spy":
        self.classes_ = np.array([False, True])
        Spy.seen.append((values, positive))
        return self

    def predict_proba(self, values: np.ndarray) -> np.ndarray:
        Spy.seen.append((values, np.array([])))
        return np.full((len(values), 2), 0.5)


@pytest.fixture
def spied() -> Callable[[int], Any]:
    Spy.seen.clear()
    return lambda rarer: baseline._pipeline(baseline._smote(rarer, 0), Spy())


def test_smote_levels_the_classes_in_training_and_leaves_the_test_rows(spied: Callable[[int], Any]) -> None:
    table = invented()
    answers(table, spied)
    for fold, ((values, positive), (tested, _)) in enumerate(zip(Spy.seen[::2], Spy.seen[1::2], strict=True)):
        training = table.folds() != fold
        mean, deviation = table.values()[training].mean(0), table.values()[training].std(0)
        assert positive.sum() == (~positive).sum() == (~table.positives()[training]).sum()
        assert len(tested) == (~training).sum()
        # What was there stays, standardised by the training rows alone; what is new lies between two of its class.
        standard = (table.values() - mean) / deviation
        real = standard[training]
        assert values[: len(real)] == pytest.approx(real)
        assert tested == pytest.approx(standard[~training])
        rare = real[table.positives()[training]]
        for row in values[len(real) :]:
            gaps = [
                np.linalg.norm(row - one) + np.linalg.norm(row - other) - np.linalg.norm(one - other)
                for one in rare
                for other in rare
            ]
            assert min(gaps) < 1e-6


def test_smote_is_imbalanced_learns_with_fewer_neighbours_where_the_class_is_small() -> None:
    assert isinstance(baseline._smote(9, 0), SMOTE)
    assert [baseline._smote(rarer, 0).k_neighbors for rarer in (2, 5, 6, 30)] == [1, 4, 5, 5]


def test_classes_that_differ_are_told_apart_and_chance_is_chance() -> None:
    for apart, low, high in ((4.0, 0.9, 1.0), (0.0, 0.2, 0.8)):
        table = invented(patients=40, apart=apart)
        for name, chances in answer_all(table, 0).items():
            assert low <= roc_auc_score(table.positives(), chances) <= high, (name, apart)


def test_answers_are_those_of_scikit_learn_fold_by_fold() -> None:
    table = invented(apart=1.0)
    chances = answers(table, classifier("logistic regression", 0))
    training = table.folds() != 2
    mean, deviation = table.values()[training].mean(0), table.values()[training].std(0)
    standard = (table.values() - mean) / deviation
    fitted = LogisticRegression(C=baseline._LOGISTIC_C, max_iter=10_000).fit(
        standard[training], table.positives()[training]
    )
    assert chances[~training] == pytest.approx(fitted.predict_proba(standard[~training])[:, 1])


def test_the_rule_says_the_larger_class_of_the_training_patients() -> None:
    assert set(majority(invented())) == {0.0}
    assert set(majority(invented(share=1.0))) == {1.0}


def test_same_seed_gives_the_same_answers(table: Features) -> None:
    first, again = answer_all(table, 3), answer_all(table, 3)
    assert list(first) == list(CLASSIFIERS)
    for name, chances in first.items():
        assert (chances == again[name]).all()
        assert ((chances >= 0) & (chances <= 1)).all()


def test_a_fold_without_a_class_and_runs_of_other_kinds_are_refused(sites: list[Site]) -> None:
    rows = [row for row in invented().rows if not row.positive or (row.patient == "p0" and row.number == 0)]
    with pytest.raises(DataError, match="fold 0 trains on 0 region"):
        answers(Features(tuple("abcdef"), tuple(rows)), classifier("random forest", 0))
    with pytest.raises(ConfigError, match="two classes of regions"):
        measure(tiny_run(data={"folds": 2}), sites)
    with pytest.raises(ConfigError, match="has no folds"):
        measure(mass_run(data={"folds": None}), sites)


def test_the_command_prints_every_classifier_with_intervals(tmp_path: Path) -> None:
    for seed, name in enumerate(("north", "south")):
        write_archive(tmp_path / name, 6, seed)
    path = tmp_path / "mine.toml"
    path.write_text(f"{SCENARIO}\n{SITES}")
    done = CliRunner().invoke(
        app, ["baseline", str(path), "--out", str(tmp_path / "out"), "--folds", "2", "--seeds", "0,1", "--json"]
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    conforms("wardround-sim baseline", rows)
    assert [row["model"] for row in rows] == [baseline.MAJORITY, *CLASSIFIERS]
    assert rows[0]["AUROC"] == {"value": 0.5, "low": None, "high": None}
    for row in rows[1:]:
        assert 0 <= row["AUROC"]["low"] <= row["AUROC"]["value"] <= row["AUROC"]["high"] <= 1
    assert "regions of 12 patients" in done.stderr
    assert "2 folds by patient, seeds 0, 1" in done.stderr
    kept = json.loads((tmp_path / "out" / "baseline.json").read_text())
    assert kept["rows"] == rows
    assert (tmp_path / "out" / "baseline.md").read_text().count("\n| ") == 2 + 5
