"""Intervals against SciPy's bootstrap and against DeLong's definition, pair by pair."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from common.errors import ConfigError
from common.measures.intervals import auroc_difference, auroc_interval, bootstrap, delong


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).gamma(2, 1, 40)
    ours = bootstrap(values, lambda rows: float(rows.mean()), np.random.default_rng(1), resamples=4000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.value == values.mean()
    # Two sets of draws: each end moves by some hundredths of a standard error.
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert ours.low == pytest.approx(theirs.low, abs=0.15 * error)
    assert ours.high == pytest.approx(theirs.high, abs=0.15 * error)


def test_whole_patients_are_drawn() -> None:
    """Ten patients with ten equal images each: as wide as of ten values, not as of a hundred."""
    means = np.arange(10.0)
    images = np.repeat(means[:, None], 10, axis=1)
    wide = bootstrap(images, lambda rows: float(rows.mean()), np.random.default_rng(0))
    narrow = bootstrap(images.ravel(), lambda rows: float(rows.mean()), np.random.default_rng(0))
    assert wide == bootstrap(means, lambda rows: float(rows.mean()), np.random.default_rng(0))
    assert wide.low is not None
    assert narrow.low is not None
    assert means.mean() - wide.low > 2.5 * (means.mean() - narrow.low)


def test_the_same_seed_gives_the_same_interval_and_one_patient_gives_none() -> None:
    def mean(rows: np.ndarray) -> float:
        return float(rows.mean())

    values = np.arange(7.0)
    assert bootstrap(values, mean, np.random.default_rng(5)) == bootstrap(values, mean, np.random.default_rng(5))
    alone = bootstrap([2.0], mean, np.random.default_rng(5))
    assert (alone.value, alone.low, alone.high) == (2.0, None, None)


def test_draws_in_which_a_figure_is_not_defined_do_not_count() -> None:
    """The mean of those whose second number is 1: of some draws there are none."""
    rows = np.array([[5.0, 1], [7.0, 1], [100.0, 0], [100.0, 0]])

    def of_some(drawn: np.ndarray) -> float:
        some = drawn[drawn[:, 1] == 1, 0]
        return float(some.mean()) if some.size else math.nan

    found = bootstrap(rows, of_some, np.random.default_rng(0))
    assert (found.value, found.low, found.high) == (6.0, 5.0, 7.0)
    # Of a figure that is defined of fewer patients and not of all there is no interval.
    nothing = bootstrap(rows, lambda drawn: math.nan if len(np.unique(drawn)) > 4 else 1.0, np.random.default_rng(0))
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (None, None)


def test_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(11), 0
    for _ in range(200):
        one = bootstrap(rng.normal(size=30), lambda rows: float(rows.mean()), rng, resamples=200)
        assert one.low is not None
        assert one.high is not None
        covered += one.low <= 0 <= one.high
    assert 0.86 <= covered / 200 <= 0.99


def by_pairs(scores: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong et al., equations 3 to 6, as they stand there."""
    positive, negative = scores[:, outcomes], scores[:, ~outcomes]
    kernel = (positive[:, :, None] > negative[:, None]) + 0.5 * (positive[:, :, None] == negative[:, None])
    v10, v01 = kernel.mean(axis=2), kernel.mean(axis=1)
    s10, s01 = np.atleast_2d(np.cov(v10)), np.atleast_2d(np.cov(v01))
    return kernel.mean(axis=(1, 2)), s10 / positive.shape[1] + s01 / negative.shape[1]


@given(st.integers(0, 2**20), st.integers(2, 12), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_delong_is_its_definition_with_ties(seed: int, positives: int, negatives: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (2, positives + negatives)) / 4
    outcomes = rng.permutation(np.arange(positives + negatives) < positives)
    values, covariance = delong(scores, outcomes)
    expected, expected_covariance = by_pairs(scores, outcomes)
    np.testing.assert_allclose(values, expected)
    np.testing.assert_allclose(covariance, expected_covariance, atol=1e-12)
    assert values[0] == pytest.approx(roc_auc_score(outcomes, scores[0]))


def test_an_interval_and_a_difference_by_hand() -> None:
    rng = np.random.default_rng(4)
    outcomes = np.arange(60) < 25
    first, second = outcomes + rng.normal(0, 1, 60), outcomes + rng.normal(0, 2, 60)
    values, covariance = by_pairs(np.stack([first, second]), outcomes)
    one = auroc_interval(first, outcomes)
    assert (one.value, one.low) == pytest.approx((values[0], values[0] - 1.959964 * math.sqrt(covariance[0, 0])))
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    apart = auroc_difference(first, second, outcomes)
    difference = values[0] - values[1]
    assert (apart.value, apart.high) == pytest.approx((difference, difference + 1.959964 * error))
    assert apart.p == pytest.approx(2 * stats.norm.sf(abs(difference) / error))


def test_an_interval_ends_at_0_and_1() -> None:
    outcomes = np.array([False, False, False, True, True, True])
    scores = np.array([0.1, 0.2, 0.6, 0.5, 0.8, 0.9])
    (value,), ((variance,),) = by_pairs(scores[None], outcomes)
    error = 1.959964 * math.sqrt(variance)
    assert value + error > 1
    found = auroc_interval(scores, outcomes)
    assert (found.low, found.high) == pytest.approx((value - error, 1.0))
    turned = auroc_interval(-scores, outcomes)
    assert (turned.low, turned.high) == pytest.approx((0.0, 1 - value + error))


def test_where_all_pairs_are_in_order_there_is_no_interval() -> None:
    perfect = auroc_interval([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    assert (perfect.value, perfect.low, perfect.high) == (1.0, None, None)
    for alone in (0.8, 0.15):  # of one positive nothing is known of how positives differ
        assert auroc_interval([0.1, 0.2, alone], [False, False, True]).low is None
    same = auroc_difference([0.1, 0.6, 0.5, 0.9], [1, 6, 5, 9], [False, False, True, True])
    assert (same.value, same.p) == (0.0, None)


def test_one_kind_of_cases_is_refused() -> None:
    with pytest.raises(ConfigError, match="positive and a negative"):
        auroc_interval([0.1, 0.2], [True, True])
