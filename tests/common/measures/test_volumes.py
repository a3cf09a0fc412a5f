"""Volumes, and limits of agreement against the data of the paper that proposed them."""

import pytest

from common.measures.volumes import agreement, relative_error, voxel_ml

# Bland and Altman, Lancet 1986, table: peak expiratory flow of 17 subjects, first measurement by a large and by a mini
# meter, l/min. The paper gives: mean difference -2.1, SD 38.8, limits -79.7 and 75.5 (with 2 for 1.96), standard errors
# 9.4 of the mean and 16.3 of the limits, t 2.12, intervals -22.0 to 17.8, -114.3 to -45.1 and 40.9 to 110.1.
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def test_the_limits_are_those_of_the_paper() -> None:
    result = agreement(LARGE, MINI)
    assert (result.n, result.deviation) == pytest.approx((17, 38.8), abs=0.05)
    assert result.bias == pytest.approx(-2.1, abs=0.05)
    assert (result.low, result.high) == pytest.approx((-2.1 - 1.96 * 38.8, 73.9), abs=0.2)
    assert result.bias_interval == pytest.approx((-22.0, 17.8), abs=0.1)
    # The paper's limits are 2 and not 1.96 deviations off, 1.5 l/min further out; the width of the interval is its own.
    assert result.low_interval is not None
    assert result.low_interval[1] - result.low_interval[0] == pytest.approx(-45.1 + 114.3, abs=0.3)
    assert result.high_interval is not None
    assert result.high_interval[0] + 1.55 == pytest.approx(40.9, abs=0.3)


def test_one_pair_has_no_limits() -> None:
    alone = agreement([3.0], [2.0])
    assert (alone.n, alone.bias, alone.low, alone.bias_interval) == (1, 1.0, None, None)


def test_a_thousand_cubic_millimetres_are_a_millilitre() -> None:
    assert 125 * voxel_ml((2.0, 2.0, 2.0)) == pytest.approx(1.0)


def test_an_error_of_nothing_is_no_share_of_it() -> None:
    assert relative_error(3.0, 2.0) == pytest.approx(0.5)
    assert relative_error(3.0, 0.0) is None
