"""The columns of a comparison differ in their sites alone, and are scored on the same patients."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.site import Site
from client.train.training import evaluate
from common.config import InitialConfig, RunConfig, TrainingConfig, validate
from common.errors import ConfigError
from common.learning.checkpoint import unpack
from common.learning.network import build_model
from common.tasks.task import mean_scores
from simulations.scenarios import pretraining
from simulations.scenarios.homes import make_site
from simulations.scenarios.pretraining import PretrainingConfig
from simulations.scenarios.scenario import CompareConfig
from simulations.studies import compare as comparison
from simulations.studies.compare import columns, compare
from simulations.studies.comparison import (
    FEDERATED,
    MEAN,
    POOLED,
    PRIVATE,
    PRIVATE_POOLED,
    ZERO_SHOT,
    Measure,
    Result,
    benefit_rows,
    summary_rows,
    verdict,
)
from tests.simulations.studies.longform import assert_is_latex, assert_long_tables, sheet
from tests.simulations.tiny import interrupted, tiny_run, tiny_run_of_format, tiny_site

RUN = tiny_run()
PRIVACY = tiny_run(privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1}).privacy
WITH_PRIVACY = CompareConfig(privacy=PRIVACY)
EPSILON_8 = PRIVATE.format(8.0)
INITIAL = InitialConfig(sha256="0" * 64, public="trained on pictures of teapots")


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    return [make_site(tmp_path / "sites", tiny_site(tmp_path / name, name, 6)) for name in ("north", "south")]


def a_result(column: str, seed: int, *dice: float) -> Result:
    scores = {name: {"dice": value, "foreground-dice": value} for name, value in zip("xyz", dice, strict=False)}
    return Result(column, seed, "h", scores, steps=4, images=8, seconds=1.0, epsilon=None, model_sha256="s")


def test_private_columns_are_trained_to_their_end_whatever_the_run_chooses_by() -> None:
    run = tiny_run_of_format(2, federation={"rounds": 4, "keep": "best", "patience": 1})
    (private,) = WITH_PRIVACY.private_runs(run)
    assert not private.chooses


def test_columns_share_steps_schedule_and_initial_weights(sites: list[Site], tmp_path: Path) -> None:
    found = columns(RUN, sites, tmp_path, seed=7, config=WITH_PRIVACY)
    assert [one.name for one in found] == ["alone: north", "alone: south", POOLED, FEDERATED, EPSILON_8]
    assert len({(one.run.training, one.run.federation.rounds, one.run.seed) for one in found}) == 1
    first, *others = [build_model(one.run).state_dict() for one in found]
    assert all(all(bool((first[name] == other[name]).all()) for name in first) for other in others)
    assert [one.run.privacy is not None for one in found] == [False] * 4 + [True]


def test_a_federation_of_which_a_round_asks_some_is_compared_as_such(tmp_path: Path) -> None:
    sites = [make_site(tmp_path / "sites", tiny_site(tmp_path / name, name, 6)) for name in ("a", "b", "c", "d")]
    run = tiny_run_of_format(2, federation={"sites-per-round": 2})
    results = compare(run, sites, tmp_path / "out", seeds=[7], config=CompareConfig(alone=False))
    pooled, federated = results
    assert (pooled.images, federated.images) == (8, 16)  # 4 steps of a batch of 2, of two sites in each round
    summary = json.loads((tmp_path / "out" / "models" / "federated-7" / "summary.json").read_text())
    assert [(len(one["sites"]), one["not-asked"]) for one in summary["sites-by-round"]] == [(2, 2), (2, 2)]


def test_each_epsilon_has_a_private_column_of_its_own(sites: list[Site], tmp_path: Path) -> None:
    config = CompareConfig(privacy=PRIVACY, epsilons=(1.0, 2.5, 10.0), alone=False)
    found = columns(RUN, sites, tmp_path, seed=7, config=config)
    names = ["federated, epsilon 1", "federated, epsilon 2.5", "federated, epsilon 10"]
    assert [one.name for one in found] == [POOLED, FEDERATED, *names]
    private = [one.run.privacy for one in found[2:]]
    assert PRIVACY is not None
    assert private == [PRIVACY.model_copy(update={"target_epsilon": value}) for value in (1.0, 2.5, 10.0)]


def test_pooled_hospital_trains_privately_where_that_is_asked_for(sites: list[Site], tmp_path: Path) -> None:
    config = CompareConfig(privacy=PRIVACY, epsilons=(1.0, 2.0), alone=False, private_pooled=True)
    found = {one.name: one for one in columns(RUN, sites, tmp_path, seed=7, config=config)}
    assert list(found)[2:] == [form.format(value) for value in (1, 2) for form in (PRIVATE, PRIVATE_POOLED)]
    for value in (1.0, 2.0):
        pooled, federated = found[PRIVATE_POOLED.format(value)], found[PRIVATE.format(value)]
        assert pooled.run.privacy == federated.run.privacy
        assert [site.home for site in pooled.sites] == [site.home for site in found[POOLED].sites]
        assert [site.home for site in federated.sites] == [site.home for site in sites]
        assert (pooled.run.federation.quorum, federated.run.federation.quorum) == (1, 2)


def test_private_columns_may_train_otherwise_and_the_plain_ones_stay(sites: list[Site], tmp_path: Path) -> None:
    own = TrainingConfig(patch_size=(16, 16), local_steps=1, optimizer="sgd", schedule="constant", learning_rate=0.5)
    config = CompareConfig(
        privacy=PRIVACY, training=own, rounds=5, private_pooled=True, epsilons=(1.0, 2.0), learning_rates=(0.25, 0.5)
    )
    *plain, first, first_pooled, second, second_pooled = columns(RUN, sites, tmp_path, seed=7, config=config)
    assert all((one.run.training, one.run.federation.rounds) == (RUN.training, 2) for one in plain)
    for one, rate in ((first, 0.25), (first_pooled, 0.25), (second, 0.5), (second_pooled, 0.5)):
        assert one.run.training == own.model_copy(update={"learning_rate": rate})
        assert (one.run.federation.rounds, one.run.federation.evaluate_every) == (5, 5)
        assert one.run.weighting == "equal"


def test_learning_rates_that_fit_no_epsilon_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry for each of epsilons"):
        CompareConfig(privacy=PRIVACY, epsilons=(1.0, 2.0), learning_rates=(0.1,))


def test_only_with_pretraining_is_there_a_column_of_the_untrained_start(sites: list[Site], tmp_path: Path) -> None:
    without = columns(RUN, sites, tmp_path, seed=7, config=WITH_PRIVACY)
    assert ZERO_SHOT not in [one.name for one in without]
    first, *others = columns(RUN, sites, tmp_path, seed=7, config=WITH_PRIVACY, initial=INITIAL)
    assert (first.name, first.sites) == (ZERO_SHOT, ())
    assert [one.name for one in others] == [one.name for one in without]
    assert {one.run.initial for one in (first, *others)} == {INITIAL}
    assert {one.run.initial for one in without} == {None}


def test_pooled_site_splits_each_source_as_its_own_site_does(sites: list[Site], tmp_path: Path) -> None:
    pooled = next(one for one in columns(RUN, sites, tmp_path, seed=3) if one.name == POOLED)
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
    results = compare(RUN, sites, out, seeds=[1, 7], config=WITH_PRIVACY)
    assert len(results) == 10
    assert all(list(result.scores) == ["north", "south"] for result in results)
    assert {result.steps for result in results} == {4}
    images = {result.column: result.images for result in results}
    assert images[FEDERATED] == 2 * images[POOLED] == 2 * images["alone: north"] == 16
    assert all((result.epsilon is not None) == (result.column == EPSILON_8) for result in results)
    for name in ("compare.json", "compare.md", "compare.png", "compare.svg", "report.html"):
        assert (out / name).stat().st_size > 100
    kept = json.loads((out / "compare.json").read_text())
    assert kept["results"] == [dataclasses.asdict(result) for result in results]
    assert "://" not in (out / "report.html").read_text()
    for name in ("compare.md", "report.html"):  # how unlike the sites are, by the federated run
        assert "1.00 (south, about 10 of 20)" in (out / name).read_text()
    assert_long_tables(
        out, {(one.column, one.seed, site): values for one in results for site, values in one.scores.items()}
    )
    # Files are called by site and number, and a pseudonym says neither.
    assert not any("north" in one["patient"] or "south" in one["patient"] for one in sheet(out / "patients.csv"))
    assert_is_latex((out / "compare.tex").read_text(), 6)
    pairs = sheet(out / "paired.csv")
    others = ["alone: north", "alone: south", POOLED, EPSILON_8]
    assert [(one["first"], one["second"]) for one in pairs] == [(name, FEDERATED) for name in others]
    assert_is_latex((out / "paired.tex").read_text(), 8)
    assert "pooled less federated" in (out / "report.html").read_text()


@pytest.fixture
def tiny_retinas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated images as small as the sites' own."""

    def write(folder: Path, *, count: int, seed: int, progress: Callable[[int, int], None] | None = None) -> None:
        tiny_site(folder, "drawn", count, seed)

    monkeypatch.setitem(pretraining._WRITERS, "retinas", (write, "images"))


def test_every_model_starts_from_the_pretrained_weights_and_those_are_scored(
    sites: list[Site], tmp_path: Path, tiny_retinas: None
) -> None:
    out = tmp_path / "out"
    before = PretrainingConfig(images="retinas", patients=4, rounds=8)
    config = CompareConfig(privacy=PRIVACY, alone=False)
    zero, *others = compare(RUN, sites, out, seeds=[1], config=config, pretraining=before)
    assert [one.column for one in (zero, *others)] == [ZERO_SHOT, POOLED, FEDERATED, EPSILON_8]
    weights = [path.read_bytes() for path in sorted(out.glob("models/*/initial.safetensors"))]
    assert len(weights) == 4
    assert len(set(weights)) == 1
    assert (zero.steps, zero.images, zero.epsilon) == (0, 0, None)
    assert zero.model_sha256 == hashlib.sha256(weights[0]).hexdigest()
    assert zero.model_sha256 not in {one.model_sha256 for one in others}
    assert all(one.steps == 4 for one in others)
    # Without the strategy, the grid and the records: the network itself on each site's test patients.
    column = next(one for one in columns(RUN, sites, tmp_path, seed=1, config=config) if one.name == FEDERATED)
    model = build_model(column.run)
    model.load_state_dict(unpack(weights[0]))
    for site in sites:
        _, scores = evaluate(model, site.cohort(column.run), column.run, "test", "cpu")
        assert zero.scores[site.config.name] == pytest.approx(scores)
    assert Measure(RUN.task).mean(zero) == pytest.approx(mean_scores(list(zero.scores.values()))["dice"])


def test_each_seed_has_a_pretraining_of_its_own(sites: list[Site], tmp_path: Path, tiny_retinas: None) -> None:
    before = PretrainingConfig(images="retinas", patients=4, rounds=1)
    results = compare(RUN, sites, tmp_path / "out", seeds=[0, 1], config=CompareConfig(alone=False), pretraining=before)
    zero = [one for one in results if one.column == ZERO_SHOT]
    assert [one.seed for one in zero] == [0, 1]
    assert zero[0].model_sha256 != zero[1].model_sha256
    assert set(verdict(results, RUN.task)) == {"federated / pooled"}
    assert "zero-shot" in (tmp_path / "out" / "compare.md").read_text()


def test_interrupted_comparison_goes_on(sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    trained = interrupted(monkeypatch, comparison, at=3)
    with pytest.raises(KeyboardInterrupt):
        compare(RUN, sites, out, seeds=[0])
    results = compare(RUN, sites, out, seeds=[0])
    assert trained == ["alone-north-0", "alone-south-0", "pooled-0", "pooled-0", "federated-0"]
    assert len(results) == 4
    # Models of an earlier version have no scores of single patients beside them: those are made, and nothing trained.
    before = (out / "patients.csv").read_bytes()
    for path in out.glob("models/*/patients.json"):
        path.unlink()
    compare(RUN, sites, out, seeds=[0])
    assert len(trained) == 5
    assert (out / "patients.csv").read_bytes() == before


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
    ratios = verdict(results, RUN.task)
    assert ratios["federated / pooled"] == pytest.approx(0.78 / 0.8)
    assert ratios["federated / best alone"] == pytest.approx(0.78 / 0.6)


def test_no_ratio_is_taken_to_a_model_that_finds_nothing() -> None:
    assert verdict([a_result(POOLED, 0, 0.0), a_result(FEDERATED, 0, 0.4)], RUN.task) == {}


def test_private_models_are_held_against_the_same_model_without_privacy() -> None:
    results = [
        a_result(ZERO_SHOT, 0, 0.1),
        a_result(POOLED, 0, 0.9),
        a_result(FEDERATED, 0, 0.8),
        a_result(PRIVATE.format(8.0), 0, 0.6),
        a_result(PRIVATE_POOLED.format(8.0), 0, 0.72),
        a_result(PRIVATE.format(0.5), 0, 0.4),
    ]
    assert verdict(results, RUN.task) == {
        "federated / pooled": pytest.approx(8 / 9),
        "federated, epsilon 8 / federated": pytest.approx(0.75),
        "pooled, epsilon 8 / pooled": pytest.approx(0.8),
        "federated, epsilon 0.5 / federated": pytest.approx(0.5),
    }


def test_each_site_is_told_what_it_gains_and_what_the_others_gain_by_it() -> None:
    results = [
        *(a_result("alone: x", seed, 0.4 + seed / 10, 0.2) for seed in (0, 1)),
        *(a_result(FEDERATED, seed, 0.8, 0.7) for seed in (0, 1)),
        *(a_result("federated without x", seed, 0.5, 0.75) for seed in (0, 1)),
        *(a_result("federated without y", seed, 0.7 - seed / 10, 0.3) for seed in (0, 1)),
    ]
    columns, rows = benefit_rows(results, RUN.task)
    assert columns == [
        *("what Dice gains", "federated less alone"),
        *("federated less without it, at the site", "the same, mean of the others"),
    ]
    # x: alone .4 and .5, now .8; without it it would have .5, and y .75 for .7.
    assert rows[0] == ["x", "+0.350 (+0.300 to +0.400)", "+0.300 (+0.300 to +0.300)", "-0.050 (-0.050 to -0.050)"]
    # y: no model of its own alone; without it .3 for .7, and x .7 and .6 for .8.
    assert rows[1] == ["y", None, "+0.400 (+0.400 to +0.400)", "+0.150 (+0.100 to +0.200)"]


def test_without_models_to_compare_with_nothing_is_said_of_gains() -> None:
    assert benefit_rows([a_result(POOLED, 0, 0.5), a_result(FEDERATED, 0, 0.5)], RUN.task)[1] == []


def test_the_federation_is_trained_without_each_site_where_that_is_asked_for(sites: list[Site], tmp_path: Path) -> None:
    three = [*sites, make_site(tmp_path / "sites", tiny_site(tmp_path / "west", "west", 6))]
    found = columns(RUN, three, tmp_path, seed=0, config=CompareConfig(alone=False, leave_one_out=True))
    without = {column.name: column for column in found if "without" in column.name}
    assert {name: [site.config.name for site in column.sites] for name, column in without.items()} == {
        "federated without north": ["south", "west"],
        "federated without south": ["north", "west"],
        "federated without west": ["north", "south"],
    }
    assert {column.run.federation.quorum for column in without.values()} == {2}


def test_table_gives_mean_and_range_over_seeds() -> None:
    results = [a_result(name, seed, 0.5 + seed / 10, 0.9) for seed in (0, 1) for name in (POOLED, FEDERATED)]
    head, rows = summary_rows(results, RUN.task)
    assert head == ["", POOLED, FEDERATED]
    assert rows[0] == ["Dice on x", "0.550 (0.500-0.600)", "0.550 (0.500-0.600)"]
    assert rows[2][1] == "0.725 (0.700-0.750)"
    assert rows[3][:2] == ["Dice, worst site", "0.550 (0.500-0.600)"]


def test_dice_of_all_classes_as_one_is_told_where_a_run_has_several() -> None:
    one = a_result(POOLED, 0, 0.5, 0.9)
    several = dataclasses.replace(
        one, scores={site: {**all_, "foreground-dice": 0.95} for site, all_ in one.scores.items()}
    )
    assert not [row for row in summary_rows([one], RUN.task)[1] if "as one" in str(row[0])]
    assert [row[1] for row in summary_rows([several], RUN.task)[1] if "as one" in str(row[0])] == ["0.950"]


def test_a_site_none_of_whose_test_patients_has_a_class_is_left_out_of_the_mean() -> None:
    one = a_result(POOLED, 0, 0.5, 0.9)
    healthy = dataclasses.replace(one, scores={**one.scores, "z": {"specificity": 1.0}})
    rows = {str(name): value for name, value, *_ in summary_rows([healthy], RUN.task)[1]}
    assert (rows["Dice on x"], rows["Dice on z"], rows[f"Dice, {MEAN}"]) == ("0.500", None, "0.700")


def test_one_site_cannot_be_compared(sites: list[Site], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two sites"):
        compare(RUN, sites[:1], tmp_path, seeds=[0])


def test_models_that_a_clock_ends_are_not_compared(sites: list[Site], tmp_path: Path) -> None:
    values = tiny_run_of_format(2).model_dump(by_alias=True) | {"deterministic": False}
    run = validate(RunConfig, values | {"training": values["training"] | {"local-seconds": 5.0}})
    with pytest.raises(ConfigError, match="after as many steps each"):
        compare(run, sites, tmp_path, seeds=[0])
