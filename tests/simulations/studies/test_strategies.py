"""Strategies are compared on the same sites without and with each fault, and a run that fails is a failed run."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from client.site import Site
from common.config import validate
from common.errors import ConfigError
from common.strategies import Strategy
from common.strategies.fedavg import FedAvg
from common.strategies.personal import Ditto
from common.strategies.robust import Bulyan, FedMedian, TrimmedMean
from common.strategies.scaffold import Scaffold
from simulations.faults import Fault
from simulations.faults.scaled import Scaled
from simulations.scenarios.homes import make_site
from simulations.scenarios.scenario import load_scenario
from simulations.studies import compare as comparison
from simulations.studies.strategies import NO_FAULT, Row, as_data, strategies, summary_rows
from tests.simulations.studies.longform import assert_is_latex, assert_long_tables, sheet
from tests.simulations.tiny import interrupted, tiny_run_of_format, tiny_site

RUN = tiny_run_of_format(2, federation={"rounds": 2, "quorum": 2})
NAMES = ("north", "south", "west")


def a_strategy(kind: type[Strategy], **settings: object) -> Strategy:
    return validate(kind, settings)


def a_fault(name: str, **settings: object) -> Fault:
    values: Mapping[str, object] = {"name": name, "sites": ["west"], **settings}
    return validate(Scaled, values)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    folder = tmp_path_factory.mktemp("strategies")
    return [make_site(folder / "sites", tiny_site(folder / name, name, 6)) for name in NAMES]


def test_each_strategy_meets_each_fault_and_keeps_every_seed(sites: list[Site], tmp_path: Path) -> None:
    candidates = [a_strategy(FedAvg), a_strategy(TrimmedMean, trim=1)]
    faults = [a_fault("lazy", factor=0), a_fault("far", factor=1e4)]
    rows = strategies(RUN, candidates, faults, sites, tmp_path, seeds=[0, 1])
    assert [(row.strategy, row.fault) for row in rows] == [
        (strategy, fault) for strategy in ("fedavg", "trimmed-mean") for fault in (NO_FAULT, "lazy", "far")
    ]
    assert rows[3].settings == {}  # one is the default
    for row in rows[:2]:
        assert len(row.mean) == len(row.worst) == 2
        assert all(worst <= mean for worst, mean in zip(row.worst, row.mean, strict=True))
    # What west sent in two rounds of two seeds: told as unchanged each time; far beyond the others, refused each time.
    assert [(row.named, row.of) for row in rows[:3]] == [(0, 0), (4, 4), (4, 4)]
    # The trimmed mean of three wants three updates: without west's its first round fails, and so does the run.
    assert (rows[5].failed, rows[5].mean) == (2, ())
    columns, cells = summary_rows(rows, RUN.task)
    assert columns == [
        *("strategy", "Dice, no fault", "worst site", "Dice, lazy", "worst site", "named"),
        *("Dice, far", "worst site", "named"),
    ]
    assert cells[1][6] == "2 runs failed"
    assert cells[0][5] == "4 of 4"
    assert json.loads((tmp_path / "strategies.json").read_text()) == json.loads(json.dumps(as_data(rows)))
    assert (tmp_path / "strategies.md").read_text().count("\n") == 4
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("models/*/result.json")]
    assert_long_tables(
        tmp_path, {(one["column"], one["seed"], site): values for one in kept for site, values in one["scores"].items()}
    )
    assert_is_latex((tmp_path / "strategies.tex").read_text(), 9)
    # The one whose runs failed has no patients.
    pairs = {one["first"]: one for one in sheet(tmp_path / "paired.csv")}
    assert {name: one["second"] for name, one in pairs.items()} == {
        f"02-trimmed-mean-{fault}": f"01-fedavg-{fault}" for fault in (NO_FAULT, "lazy", "far")
    }
    assert (pairs["02-trimmed-mean-far"]["patients"], pairs["02-trimmed-mean-far"]["p"]) == ("0", "")


def test_models_of_the_sites_own_have_columns_where_a_strategy_leaves_them(sites: list[Site], tmp_path: Path) -> None:
    shared, own = strategies(RUN, [a_strategy(FedAvg), a_strategy(Ditto)], [], sites, tmp_path, seeds=[0])
    assert shared.own_mean == ()
    journal = (tmp_path / "models" / "02-ditto-none-0" / "metrics.jsonl").read_text().splitlines()
    tested = [event for event in map(json.loads, journal) if event["event"] == "evaluate" and event["phase"] == "test"]
    scores = [event["personal-dice"] for event in tested if event["site"] in NAMES]
    assert len(scores) == len(NAMES)
    assert own.own_mean == pytest.approx((sum(scores) / len(NAMES),))
    assert own.own_worst == (min(scores),)
    columns, cells = summary_rows([shared, own], RUN.task)
    assert columns[-2:] == ["own models, no fault", "worst site"]
    assert cells[0][-2:] == [None, None]
    assert cells[1][-2:] == [f"{own.own_mean[0]:.3f}", f"{min(scores):.3f}"]


def test_a_fault_changes_the_model_and_its_absence_does_not(sites: list[Site], tmp_path: Path) -> None:
    (alone,) = strategies(RUN, [a_strategy(FedAvg)], [], sites, tmp_path / "a", seeds=[0])
    both = strategies(RUN, [a_strategy(FedAvg)], [a_fault("flip", factor=-3)], sites, tmp_path / "b", seeds=[0])
    assert isinstance(alone, Row)
    assert alone.mean == both[0].mean
    assert alone.mean != both[1].mean
    # What is kept of a fault is not taken for another one of its name.
    assert strategies(RUN, [a_strategy(FedAvg)], [a_fault("flip", factor=-3)], sites, tmp_path / "b", seeds=[0]) == both
    with pytest.raises(ConfigError, match="holds another run"):
        strategies(RUN, [a_strategy(FedAvg)], [a_fault("flip", factor=-2)], sites, tmp_path / "b", seeds=[0])


def test_a_strategy_that_the_run_cannot_have_is_refused_before_any_is_trained(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = interrupted(monkeypatch, comparison, at=1)
    with pytest.raises(ConfigError, match=r"scaffold.*sgd"):
        strategies(RUN, [a_strategy(FedMedian), a_strategy(Scaffold)], [], sites, tmp_path, seeds=[0])
    assert not begun


def test_a_comparison_goes_on_where_it_stopped(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, comparison, at=2)
        with pytest.raises(KeyboardInterrupt):
            strategies(RUN, [a_strategy(FedAvg)], [a_fault("lazy", factor=0)], sites, tmp_path, seeds=[0])
    begun = interrupted(monkeypatch, comparison, at=99)
    strategies(RUN, [a_strategy(FedAvg)], [a_fault("lazy", factor=0)], sites, tmp_path, seeds=[0])
    assert begun == ["01-fedavg-lazy-0"]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('strategies = [{ kind = "bulyan", hostile = 2 }]', "bulyan needs 11 sites, not 9"),
        ('faults = [{ name = "x", kind = "scaled", factor = 2, sites = ["zz"] }]', r"\['zz'\].*has"),
        ('faults = [{ name = "x", kind = "little-is-enough", sites = ["a"] }]', "faults"),
    ],
)
def test_a_scenario_whose_comparison_cannot_be_is_refused_when_it_is_read(
    table: str, problem: str, tmp_path: Path
) -> None:
    text = load_scenario("unlike").path.read_text().split("[compare]")[0]
    path = tmp_path / "mine.toml"
    path.write_text(f"{text}\n[compare]\n{table}\n")
    with pytest.raises(ConfigError, match=problem):
        load_scenario(str(path))


def test_the_shipped_scenario_has_every_strategy_that_it_can() -> None:
    wanted = load_scenario("unlike").config.compare.strategies
    assert Bulyan in {type(one) for one in wanted}
