"""A sweep names the best on the validation patients, looks at no test patient before, and goes on where it stopped."""

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from pyarrow import parquet
from typer.testing import CliRunner

from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.errors import ConfigError
from simulations.commands.main import app
from simulations.studies import sweep as search
from simulations.studies.axes import Axis, axis_of, check, run_with
from tests.json_forms import conforms
from tests.simulations.studies.longform import assert_is_latex, sheet
from tests.simulations.tiny import interrupted, tiny_run, tiny_run_of_format, tiny_scenario

RATES = "training.learning-rate=1e-7,0.02"


def sim(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def swept(scenario: Path, out: Path, *arguments: object) -> Result:
    return sim("sweep", scenario, "--out", out, "--threads", 1, "--json", *arguments)


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return tiny_scenario(tmp_path)


def test_the_best_on_validation_is_named_and_alone_scored_on_test_patients(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = swept(scenario, out, "--sampler", "grid", "--set", RATES, "--test", "--parquet")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    conforms("wardround-sim sweep", rows)
    said = {}
    for row in rows:
        journal = events(out / "trials" / f"{row['trial']:03}")
        scored = [one for one in journal if one["event"] == "evaluate"]
        assert {one["phase"] for one in scored} == {"validation"}
        (last,) = [one for one in scored if one["site"] == "overall" and one["round"] == 2]
        assert row["validation dice"] == last["dice"]
        said[row["training.learning-rate"]] = last["dice"]
    assert sorted(said) == [1e-7, 0.02]
    kept = json.loads((out / "sweep.json").read_text())
    assert kept["best"]["values"]["training.learning-rate"] == max(said, key=lambda rate: said[rate])
    assert kept["tried"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert [row["trial"] for row in csv.DictReader((out / "sweep.csv").open())] == [str(row["trial"]) for row in rows]
    validated = sheet(out / "scores.csv")
    for row in kept["trials"]:
        told = [float(r["value"]) for r in validated if (r["model"], r["measure"]) == (f"trial {row['trial']}", "dice")]
        assert statistics.fmean(told) == pytest.approx(row["score"])
    assert {one["split"] for one in validated} == {"validation"}
    assert_is_latex((out / "sweep.tex").read_text(), 6)
    table = parquet.read_table(out / "scores.parquet").to_pylist()
    assert table == [{**one, "seed": int(one["seed"]), "value": float(one["value"])} for one in validated]
    alone = tmp_path / "alone.toml"
    rate = kept["best"]["values"]["training.learning-rate"]
    alone.write_text(scenario.read_text().replace("[run.training]", f"[run.training]\nlearning-rate = {rate:.9f}"))
    assert sim("run", alone, "--out", tmp_path / "alone", "--threads", 1).exit_code == 0
    summary = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert kept["test"]["sites"] == summary["scores"]["test"]["sites"]


def test_an_interrupted_sweep_goes_on_with_what_it_would_have_tried(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("--trials", 3, "--seed", 5, "--rounds", 1, "--set", "training.learning-rate=1e-4..1e-1:log")
    whole = json.loads(swept(scenario, tmp_path / "whole", *wanted).stdout)
    with monkeypatch.context() as patched:
        interrupted(patched, search, at=2)
        assert swept(scenario, tmp_path / "out", *wanted).exit_code != 0
    again = swept(scenario, tmp_path / "out", *wanted)
    assert again.exit_code == 0, again.output
    rates = [[row["training.learning-rate"] for row in rows] for rows in (whole, json.loads(again.stdout))]
    assert sorted(rates[0]) == sorted(rates[1])
    assert len(set(rates[0])) == 3
    other = swept(scenario, tmp_path / "out", *wanted[:-1], "training.momentum=0.5,0.9")
    assert "holds another sweep" in other.output


def test_a_trial_that_fails_is_named_and_the_sweep_goes_on(scenario: Path, tmp_path: Path) -> None:
    axes = ("--set", "training.patch-size=[8, 8],[16, 16]", "--set", "model.channels=[4, 8],[2, 2, 2, 2]")
    done = swept(scenario, tmp_path / "out", "--sampler", "grid", "--rounds", 1, *axes)
    assert done.exit_code == 0, done.output
    states = {(str(row["training.patch-size"]), len(row["model.channels"])): row for row in json.loads(done.stdout)}
    failed = states.pop(("[8, 8]", 4))
    assert failed["state"] == "failed"
    assert "single voxel" in failed["reason"]
    assert {row["state"] for row in states.values()} == {"complete"}


def test_a_trial_that_lies_below_the_others_is_given_up(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna.pruners.MedianPruner.prune", lambda _self, _study, trial: trial.number == 1)
    done = swept(scenario, tmp_path / "out", "--trials", 2, "--set", "training.learning-rate=1e-4..1e-1:log")
    assert done.exit_code == 0, done.output
    rows = {row["trial"]: (row["state"], row["rounds"]) for row in json.loads(done.stdout)}
    assert rows == {0: ("complete", 2), 1: ("pruned", 1)}
    assert not [one for one in events(tmp_path / "out" / "trials" / "001") if one.get("round") == 2]


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("training.learning-rate=1e-4..1e-2:log", Axis("training.learning-rate", 1e-4, 1e-2, log=True)),
        ("training.local-steps=10..40", Axis("training.local-steps", 10, 40)),
        ("model.norm = instance,group", Axis("model.norm", choices=("instance", "group"))),
        ("training.patch-size=[8, 8],[16, 16]", Axis("training.patch-size", choices=("[8, 8]", "[16, 16]"))),
    ],
)
def test_an_axis_is_a_range_or_a_list(text: str, axis: Axis) -> None:
    assert axis_of(text) == axis


@pytest.mark.parametrize("text", ["training.learning-rate", "a=2..1", "a=0..1:log", "a=x,x", "a=1..e"])
def test_what_is_no_axis_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        axis_of(text)


def test_a_key_with_the_table_of_a_scenario_before_it_is_told_without() -> None:
    with pytest.raises(ConfigError, match=r"Write training\.local-steps=1,2\."):
        axis_of("run.training.local-steps=1,2")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("training.learning-rat=1e-4..1e-2", "Did you mean 'learning-rate'"),
        ("model.norm=instance,goup", "Did you mean 'group'"),
        ("training.local-steps=0..4", "must be at least 1"),
        ("data.validation-fraction=0.1..1.5", "validation-fraction"),
    ],
)
def test_keys_and_values_that_no_run_has_are_refused_before_the_first_trial(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check(tiny_run(), [axis_of(text)])


def test_another_kind_has_its_own_defaults() -> None:
    base = tiny_run(model={"architecture": "unet", "channels": [4, 8]})
    assert run_with(base.model_copy(update={"format": 2}), {"task.loss.kind": "tversky"}).task.kind == base.task.kind


def pretended(
    monkeypatch: pytest.MonkeyPatch, scores: Callable[[RunConfig, int], Iterable[float]], **options: Any
) -> Callable[[Path], search.Sweep]:
    """A sweep over learning rates whose trials are not trained, but told the scores of their rounds."""
    begun = iter(range(99))

    def federate(_grid: object, document: RunDocument, _out: Path, *, observe: Callable[..., None], test: bool) -> None:
        assert not test
        for number, score in enumerate(scores(document.config, next(begun)), start=1):
            told = {"event": "evaluate", "site": "overall", "phase": "validation", "round": number}
            observe({**told, document.config.task.headline: score})
            observe({**told, "site": "north", document.config.task.headline: 1.0})
            observe({**told, "phase": "test", document.config.task.headline: 1.0})

    monkeypatch.setattr(search, "opened", lambda *_: nullcontext())
    monkeypatch.setattr(search, "federate", federate)
    run = tiny_run_of_format(2, federation={"rounds": 3, **options.pop("federation", {})})
    axes = [axis_of("training.learning-rate=1e-4..1e-1:log")]
    return lambda out: search.sweep(run, [], out, axes, **{"trials": 6, "sampler": "random", **options})


def rates(found: search.Sweep) -> list[float]:
    return [row.values["training.learning-rate"] for row in found.rows]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_seed_draws_its_own_values_and_each_trial_others(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [
        rates(pretended(monkeypatch, lambda *_: [0.5] * 3, sampler=sampler, seed=seed)(tmp_path / str(place)))
        for place, seed in enumerate((0, 0, 1))
    ]
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 12


@pytest.mark.parametrize(("keep", "score"), [("last", 0.4), ("best", 0.9)])
def test_a_trials_score_is_that_of_the_model_that_the_run_keeps(
    keep: str, score: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = pretended(monkeypatch, lambda *_: [0.3, 0.9, 0.4], federation={"keep": keep}, trials=1)
    assert [row.score for row in sweep(tmp_path / "out").rows] == [score]


def test_only_a_trial_that_came_to_its_end_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up below the median after four, or failed with a score that is better than all; one has none at all."""

    def scores(_run: RunConfig, number: int) -> Iterator[float]:
        yield from {
            0: (0.5, 0.5, 0.5),
            1: (0.6, 0.6, 0.6),
            2: (0.4, 0.4, 0.4),
            3: (0.7, 0.7, 0.1),
            4: (0.99,),
            6: (0.3, 0.9, 0.9),
            7: (0.8, 0.8, 0.05),  # after the last round there is nothing to save
        }.get(number, ())
        if number == 4:
            raise RuntimeError("no memory left\nand more")

    found = pretended(monkeypatch, scores, trials=8)(tmp_path / "out")
    states = [(row.state, row.score, row.rounds) for row in found.rows]
    assert states == [
        ("complete", 0.5, 3),
        ("complete", 0.6, 3),
        ("complete", 0.4, 3),
        ("complete", 0.1, 3),
        ("failed", 0.99, 1),
        ("failed", None, 0),
        ("pruned", 0.3, 1),
        ("complete", 0.05, 3),
    ]
    assert found.best is not None
    assert found.best.trial == 1
    assert [row.reason for row in found.rows[4:6]] == [
        "no memory left",
        "no site scored its validation patients. Raise data.validation-fraction.",
    ]
    assert search.counts(found.rows) == {"complete": 5, "pruned": 1, "failed": 2}
    columns, rows = search.table(found, [axis_of("training.learning-rate=1e-4..1e-1:log")], "dice")
    assert columns[2:4] == ["validation dice", "rounds"]
    assert [row[0] for row in rows] == [1, 0, 2, 3, 7, 4, 6, 5]
