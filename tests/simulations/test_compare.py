"""The columns of a comparison differ in their sites alone, and are scored on the same patients."""

import dataclasses
import json
from pathlib import Path

import pytest

from client.site import Site
from common.errors import ConfigError
from common.models import build_model
from simulations import compare as comparison
from simulations.compare import FEDERATED, POOLED, PRIVATE, Result, columns, compare, summary_rows, verdict
from simulations.scenario import make_site
from tests.simulations.tiny import interrupted, tiny_run, tiny_site

RUN = tiny_run()
PRIVACY = tiny_run(privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1}).privacy


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    return [make_site(tmp_path / "sites", tiny_site(tmp_path / name, name, 6)) for name in ("north", "south")]


def a_result(column: str, seed: int, *dice: float) -> Result:
    scores = {name: {"dice": value, "foreground-dice": value} for name, value in zip("xyz", dice, strict=False)}
    return Result(column, seed, "h", scores, steps=4, images=8, seconds=1.0, epsilon=None, model_sha256="s")


def test_columns_share_steps_schedule_and_initial_weights(sites: list[Site], tmp_path: Path) -> None:
    found = columns(RUN, sites, tmp_path, seed=7, privacy=PRIVACY)
    assert [one.name for one in found] == ["alone: north", "alone: south", POOLED, FEDERATED, PRIVATE]
    assert len({(one.run.training, one.run.federation.rounds, one.run.seed) for one in found}) == 1
    first, *others = [build_model(one.run).state_dict() for one in found]
    assert all(all(bool((first[name] == other[name]).all()) for name in first) for other in others)
    assert [one.run.privacy is not None for one in found] == [False] * 4 + [True]


def test_pooled_site_splits_each_source_as_its_own_site_does(sites: list[Site], tmp_path: Path) -> None:
    pooled = next(one for one in columns(RUN, sites, tmp_path, seed=3, privacy=None) if one.name == POOLED)
    (home,) = pooled.sites
    run = pooled.run
    for split in ("train", "validation", "test"):
        # Pseudonyms differ between homes, pixels do not.
        alone = {
            case.images.numpy().tobytes() for site in sites for case in site.cohort(run).cases if case.split == split
        }
        together = {case.images.numpy().tobytes() for case in home.cohort(run).cases if case.split == split}
        assert alone == together
        assert together


def test_comparison_scores_every_model_on_every_site(sites: list[Site], tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = compare(RUN, sites, out, seeds=[0, 1], privacy=PRIVACY)
    assert len(results) == 10
    assert all(list(result.scores) == ["north", "south"] for result in results)
    assert {result.steps for result in results} == {4}
    images = {result.column: result.images for result in results}
    assert images[FEDERATED] == 2 * images[POOLED] == 2 * images["alone: north"] == 16
    assert all((result.epsilon is not None) == (result.column == PRIVATE) for result in results)
    for name in ("compare.json", "compare.md", "compare.png", "compare.svg", "report.html"):
        assert (out / name).stat().st_size > 100
    kept = json.loads((out / "compare.json").read_text())
    assert kept["results"] == [dataclasses.asdict(result) for result in results]
    assert "http" not in (out / "report.html").read_text()


def test_interrupted_comparison_goes_on(sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    trained = interrupted(monkeypatch, comparison, at=3)
    with pytest.raises(KeyboardInterrupt):
        compare(RUN, sites, out, seeds=[0])
    results = compare(RUN, sites, out, seeds=[0])
    assert trained == ["alone-north-0", "alone-south-0", "pooled-0", "pooled-0", "federated-0"]
    assert len(results) == 4


def test_folder_of_another_comparison_is_refused(sites: list[Site], tmp_path: Path) -> None:
    compare(RUN, sites, tmp_path / "out", seeds=[0])
    with pytest.raises(ConfigError, match="holds another run"):
        compare(tiny_run(training={"local-steps": 3}), sites, tmp_path / "out", seeds=[0])


def test_verdict_is_the_ratio_of_means_over_sites_and_seeds() -> None:
    results = [
        *(a_result("alone: x", seed, 0.8, 0.2) for seed in (0, 1)),
        *(a_result("alone: y", seed, 0.5, 0.7) for seed in (0, 1)),
        a_result(POOLED, 0, 0.9, 0.7),
        a_result(POOLED, 1, 0.7, 0.9),
        *(a_result(FEDERATED, seed, 0.8, 0.76) for seed in (0, 1)),
    ]
    ratios = verdict(results)
    assert ratios["federated / pooled"] == pytest.approx(0.78 / 0.8)
    assert ratios["federated / best alone"] == pytest.approx(0.78 / 0.6)


def test_table_gives_mean_and_range_over_seeds() -> None:
    results = [a_result(name, seed, 0.5 + seed / 10, 0.9) for seed in (0, 1) for name in (POOLED, FEDERATED)]
    head, rows = summary_rows(results)
    assert head == ["", POOLED, FEDERATED]
    assert rows[0] == ["Dice on x", "0.550 (0.500-0.600)", "0.550 (0.500-0.600)"]
    assert rows[2][1] == "0.725 (0.700-0.750)"


def test_dice_of_all_classes_as_one_is_told_where_a_run_has_several() -> None:
    one = a_result(POOLED, 0, 0.5, 0.9)
    several = dataclasses.replace(
        one, scores={site: {**all_, "foreground-dice": 0.95} for site, all_ in one.scores.items()}
    )
    assert not [row for row in summary_rows([one])[1] if "as one" in str(row[0])]
    assert [row[1] for row in summary_rows([several])[1] if "as one" in str(row[0])] == ["0.950"]


def test_one_site_cannot_be_compared(sites: list[Site], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two sites"):
        compare(RUN, sites[:1], tmp_path, seeds=[0])
