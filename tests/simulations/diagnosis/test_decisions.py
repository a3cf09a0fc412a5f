"""Scores are scikit-learn's; intervals are by patient, and are not narrower than what is known."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from common.errors import DataError
from common.measures.intervals import Interval
from simulations.diagnosis.decisions import Regions, as_data, difference, score, scores, summary_rows, told

RNG = np.random.default_rng(4)
POSITIVE = RNG.random(40) < 0.4
CHANCES = np.clip(RNG.normal(0.45 + 0.15 * POSITIVE, 0.2), 0, 1).round(2)  # with ties


def of_patients(each: int, positive: np.ndarray = POSITIVE) -> Regions:
    return Regions(np.array([f"p{place // each}" for place in range(len(positive))]), positive)


def test_scores_are_those_of_scikit_learn() -> None:
    yes = CHANCES >= 0.5
    found = scores(of_patients(1), CHANCES)
    expected = {
        "sensitivity": metrics.recall_score(POSITIVE, yes),
        "recall": metrics.recall_score(POSITIVE, yes),
        "specificity": metrics.recall_score(~POSITIVE, ~yes),
        "precision": metrics.precision_score(POSITIVE, yes),
        "AUROC": metrics.roc_auc_score(POSITIVE, CHANCES),
    }
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected)
    for one in found.values():
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high


def test_regions_of_one_patient_are_drawn_together() -> None:
    """Four copies of each region are not four times as much knowledge, if one says whose they are."""
    alone = scores(of_patients(1), CHANCES)["AUROC"]
    copied = Regions(np.repeat(of_patients(1).patients, 4), np.repeat(POSITIVE, 4))
    together = scores(copied, np.repeat(CHANCES, 4))["AUROC"]
    apart = scores(of_patients(1, copied.positive), np.repeat(CHANCES, 4))["AUROC"]
    assert width(together) == pytest.approx(width(alone), rel=0.15)
    assert width(apart) < 0.7 * width(alone)


def width(one: Interval) -> float:
    assert one.low is not None
    assert one.high is not None
    return one.high - one.low


def test_a_share_that_is_all_right_has_the_exact_interval() -> None:
    positive = np.array([True] * 12 + [False] * 20)
    chances = np.where(positive, 0.9, np.linspace(0.1, 0.8, 32))
    found = scores(of_patients(1, positive), chances)
    exact = binomtest(12, 12).proportion_ci()
    assert found["sensitivity"].low == pytest.approx(exact.low)
    assert (found["sensitivity"].value, found["sensitivity"].high) == (1.0, 1.0)
    assert found["AUROC"].value == 1
    assert found["AUROC"].low is None, "nothing is known of how far below 1 it might be"


def test_a_rule_has_no_interval_and_no_precision_where_it_never_says_yes() -> None:
    found = scores(of_patients(1), np.zeros(40))
    assert found["sensitivity"] == Interval(0.0, None, None)
    assert found["specificity"] == Interval(1.0, None, None)
    assert found["AUROC"] == Interval(0.5, None, None)
    assert math.isnan(found["precision"].value)
    assert as_data({"rule": found})[0]["precision"] == {"value": None, "low": None, "high": None}
    head, rows = summary_rows({"rule": found})
    assert rows == [["rule", "0.00", "1.00", "-", "0.00", "0.50"]]
    assert head == ["model", "sensitivity", "specificity", "precision", "recall", "AUROC"]


def test_repeats_are_scored_one_by_one_and_do_not_vote() -> None:
    other = CHANCES[::-1].copy()
    both = scores(of_patients(1), np.stack([CHANCES, other]))["AUROC"].value
    each = [score("AUROC", one, POSITIVE) for one in (CHANCES, other)]
    assert both == pytest.approx(np.mean(each))
    assert both != pytest.approx(score("AUROC", (CHANCES + other) / 2, POSITIVE))


def test_difference_is_paired() -> None:
    regions = of_patients(1)
    better = np.clip(CHANCES + 0.1 * POSITIVE, 0, 1)
    one = difference(regions, better, CHANCES)
    assert one.value == pytest.approx(
        metrics.roc_auc_score(POSITIVE, better) - metrics.roc_auc_score(POSITIVE, CHANCES)
    )
    assert width(one) < width(scores(regions, CHANCES)["AUROC"])
    assert difference(regions, CHANCES, CHANCES) == Interval(0, 0, 0)


def test_regions_of_one_class_are_refused() -> None:
    with pytest.raises(DataError, match="0 of 40 regions"):
        scores(of_patients(1, np.zeros(40, bool)), CHANCES)


def test_intervals_are_told_short() -> None:
    assert told(Interval(0.7123, 0.5, 0.9)) == "0.71 (0.50-0.90)"
    assert told(Interval(0.5, None, None)) == "0.50"
