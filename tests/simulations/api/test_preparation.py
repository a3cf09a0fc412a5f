"""What a run tells away from a terminal: the score of each round, who was left out and why it stopped, however fast."""

from typing import Any

import pytest

from common.console.cli import progress
from common.tasks.classification import Classification
from simulations.api.preparation import teller, tells
from tests.simulations.tiny import tiny_run


def train(site: str, number: int) -> dict[str, Any]:
    return {"event": "train", "site": site, "round": number}


def exchanged(number: int, sites: list[str], refused: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "sites": sites,
        "seconds": 0.5,
        "refused": refused or {},
        "refused-by-coordinator": [],
        "missing": [],
    }


def scored(number: int, dice: float | None) -> dict[str, Any]:
    score = {} if dice is None else {"dice": dice}
    about = {"event": "evaluate", "site": "overall", "round": number, "phase": "validation", "refused": {}}
    return {**about, "missing": [], **score}


def test_no_score_refusal_or_early_stop_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    task = tiny_run().task
    with progress("round", 9) as advance:
        observe = teller(advance, task)
        for number, dice in ((1, 0.25), (2, 0.5), (3, None)):
            observe(train("north", number))
            observe(exchanged(number, ["north"], {"south": "budget-spent"} if number == 2 else None))
            observe(scored(number, dice))
        observe({"event": "stopped-early", "round": 3, "best-round": 2, "patience": 1, "dice": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert "round 1/9 validation dice 0.250" in lines
    assert "round 2/9 validation dice 0.500" in lines
    assert "round 3/9 validation dice not scored: no site tells it" in lines
    (refused,) = [line for line in lines if line.startswith("round 2/9 1 site")]
    assert "south" in refused
    assert "budget-spent" in refused
    assert lines[-1] == "round 3/9 stopped early, no better dice since round 2"
    assert not any("has trained" in line for line in lines[1:])  # mere progress is thinned


def test_a_classifier_without_a_score_is_said_to_want_patients_of_each_class(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("round", 9) as advance:
        teller(advance, Classification())(scored(1, None))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("validation auroc not scored: no site tells it, which wants validation patients of each class")


def test_run_that_goes_on_says_so_and_counts_from_there(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("round", 9) as advance:
        observe = teller(advance, tiny_run().task)
        observe({"event": "run-started", "resumed-from": 3})
        observe(scored(3, 0.5))
        observe(train("north", 4))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["round 3/9 done by an earlier start", "round 3/9 validation dice 0.500"]


def test_run_from_the_start_says_nothing_of_going_on(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("round", 9) as advance:
        observe = teller(advance, tiny_run().task)
        observe({"event": "run-started", "resumed-from": 0})
        observe(scored(0, 0.5))
    assert capsys.readouterr().err.splitlines() == ["round 0/9 validation dice 0.500"]


def test_each_model_of_a_study_that_is_done_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("models", 9) as advance:
        tell, finished = tells(advance)
        for number in (1, 2, 3):
            tell("round 1 of 1")
            finished(number, f"pooled: mean 0.{number}")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "pooled" in line] == [f"models {one}/9 pooled: mean 0.{one}" for one in (1, 2, 3)]
    assert len(lines) == 4
