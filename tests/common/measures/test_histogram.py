"""Ranking by bins against scikit-learn's, within proved bounds; and sums over sites against the pooled patients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from common.errors import ConfigError
from common.measures import histogram as by_bins

BINS = 16
CASES = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=2, max_size=80)


def both_kinds(cases: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, outcomes = map(np.array, zip(*cases, strict=True))
    outcomes[:2] = [True, False]
    return scores, outcomes


@given(CASES, st.sampled_from([1, 3, BINS, 256]))
@settings(max_examples=150, deadline=None)
def test_the_exact_auroc_and_average_precision_lie_within_their_bounds(
    cases: list[tuple[float, bool]], bins: int
) -> None:
    scores, outcomes = both_kinds(cases)
    counts = by_bins.histogram(scores, outcomes, bins)
    auroc, precision = by_bins.auroc(counts), by_bins.average_precision(counts)
    assert auroc is not None
    assert precision is not None
    assert auroc.low - 1e-9 <= roc_auc_score(outcomes, scores) <= auroc.high + 1e-9
    assert precision.low - 1e-9 <= average_precision_score(outcomes, scores) <= precision.high + 1e-9
    negatives, positives = counts
    assert auroc.high - auroc.value == pytest.approx(
        (negatives * positives / 2).sum() / negatives.sum() / positives.sum()
    )


def points(curve: np.ndarray) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in curve.round(9)}


def test_the_bounds_are_reached() -> None:
    """In one bin, all positives above all negatives is the upper bound, and below them the lower one."""
    counts = by_bins.histogram([0.1, 0.2, 0.3, 0.4], [False, False, True, True], 1)
    assert by_bins.auroc(counts) == by_bins.Bounded(0.5, 0.0, 1.0)
    precision = by_bins.average_precision(counts)
    assert precision is not None
    below = average_precision_score([True, True, False, False], [0.1, 0.2, 0.3, 0.4])
    assert (precision.value, precision.low, precision.high) == pytest.approx((0.5, below, 1.0))


@given(CASES)
@settings(max_examples=60, deadline=None)
def test_scores_that_are_bins_give_the_exact_curves(cases: list[tuple[float, bool]]) -> None:
    scores, outcomes = both_kinds(cases)
    scores = np.minimum(np.floor(scores * BINS), BINS - 1) / BINS
    counts = by_bins.histogram(scores, outcomes, BINS)
    false, hit, _ = roc_curve(outcomes, scores, drop_intermediate=False)
    ours = by_bins.roc_curve(counts)
    assert points(ours) == points(np.c_[false, hit])
    precision, recall, _ = precision_recall_curve(outcomes, scores)
    theirs = points(np.c_[recall, precision][recall > 0])
    assert points(by_bins.precision_recall_curve(counts)) == theirs
    value = by_bins.average_precision(counts)
    assert value is not None
    assert value.value == pytest.approx(average_precision_score(outcomes, scores))


def test_sites_that_add_up_are_the_pooled_patients_and_a_mean_of_sites_is_not() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.random(900) < np.repeat([0.1, 0.5, 0.8], 300)
    scores = np.clip(rng.normal(0.3 + 0.3 * outcomes + np.repeat([0.2, 0.0, -0.2], 300), 0.15), 0, 1)
    sites = [by_bins.histogram(scores[at], outcomes[at], 256) for at in np.split(np.arange(900), 3)]
    pooled, summed = by_bins.auroc(by_bins.histogram(scores, outcomes, 256)), by_bins.auroc(np.sum(sites, axis=0))
    assert pooled == summed
    assert pooled is not None
    assert pooled.value == pytest.approx(roc_auc_score(outcomes, scores), abs=pooled.high - pooled.value)
    mean = np.mean([one.value for site in sites if (one := by_bins.auroc(site)) is not None])
    assert abs(mean - pooled.value) > 0.05


def test_without_both_kinds_there_is_no_ranking() -> None:
    for kind in (True, False):
        assert by_bins.auroc(by_bins.histogram([0.3], [kind], BINS)) is None
    assert by_bins.average_precision(by_bins.histogram([0.3], [False], BINS)) is None
    assert by_bins.roc_curve(by_bins.histogram([], [], 4)).shape == (5, 2)


@pytest.mark.parametrize("score", [-0.1, 1.1, np.nan])
def test_what_is_no_probability_is_refused(score: float) -> None:
    with pytest.raises(ConfigError, match="0 to 1"):
        by_bins.histogram([0.5, score], [True, False], BINS)
