"""Calibration by a plain loop over bins, and scikit-learn's Brier score and reliability curve."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from common.errors import ConfigError
from common.measures.calibration import brier, calibration_error, curve, reliability, reliability_of
from common.measures.histogram import histogram


def cases(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    probabilities = rng.random(count)
    return probabilities, rng.random(count) < probabilities**2


def test_the_error_is_the_weighted_distance_of_each_bin() -> None:
    probabilities, outcomes = cases()
    by_hand = 0.0
    for low in np.arange(10) / 10:
        own = (probabilities >= low) & (probabilities < low + 0.1)
        by_hand += own.mean() * abs(outcomes[own].mean() - probabilities[own].mean())
    sums = reliability(probabilities, outcomes, 10)
    assert calibration_error(sums) == pytest.approx(by_hand)
    shares, means = calibration_curve(outcomes, probabilities, n_bins=10)
    np.testing.assert_allclose(curve(sums), np.c_[means, shares])
    assert brier(sums) == pytest.approx(brier_score_loss(outcomes, probabilities))


def test_two_cases_by_hand() -> None:
    """0.9 is a positive, 0.6 is none: two bins of one, (0.1 + 0.6) / 2; squares 0.01 and 0.36."""
    sums = reliability([0.9, 0.6], [True, False], 10)
    assert (calibration_error(sums), brier(sums)) == pytest.approx((0.35, 0.185))
    assert calibration_error(reliability([1.0, 0.0], [True, False])) == 0


def test_sites_add_up_to_the_pooled_cases() -> None:
    probabilities, outcomes = cases()
    pooled = reliability(probabilities, outcomes)
    summed = reliability(probabilities[:150], outcomes[:150]) + reliability(probabilities[150:], outcomes[150:])
    assert calibration_error(summed) == pytest.approx(calibration_error(pooled), rel=1e-12)
    assert brier(summed) == pytest.approx(brier(pooled), rel=1e-12)


def test_a_fine_histogram_tells_the_same_within_half_a_bin() -> None:
    probabilities, outcomes = cases()
    fine = reliability_of(histogram(probabilities, outcomes, 256), 16)
    exact = reliability(probabilities, outcomes, 16)
    np.testing.assert_array_equal(fine.count, exact.count)
    np.testing.assert_array_equal(fine.positive, exact.positive)
    assert calibration_error(fine) == pytest.approx(calibration_error(exact), abs=1 / 512)
    assert brier(fine) == pytest.approx(brier(exact), abs=2 / 512)


def test_of_nothing_nothing_is_told() -> None:
    assert calibration_error(reliability([], [])) is None
    assert brier(reliability([], [])) is None
    with pytest.raises(ConfigError, match="0 to 1"):
        reliability([1.5], [True])
