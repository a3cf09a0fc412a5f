"""The accountant against dp-accounting's PLD (Google) and Opacus' PRV, neither of which it is built on."""

import itertools
import math
import subprocess
import sys
from functools import cache

import pytest
from dp_accounting.pld import privacy_loss_distribution

from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import History, epsilon, epsilon_rdp, merged, noise_multiplier_for

HISTORIES: tuple[tuple[History, float], ...] = (
    (((1.0, 0.25, 100),), 1e-3),
    (((4.0, 0.25, 400),), 1e-3),
    (((0.6, 0.25, 30),), 1e-3),
    (((1.0, 1.0, 1),), 1e-3),
    (((5.0, 1.0, 100),), 1e-2),
    (((1.0, 0.01, 1000),), 1e-6),
    (((20.0, 0.25, 2000),), 1e-4),
    (((100.0, 0.1, 100),), 1e-3),
    (((1.5, 0.25, 1),), 2e-2),
    (((2.0, 0.25, 100), (3.0, 0.1, 57), (1.1, 0.02, 301)), 1e-4),
    (((8.0, 0.5, 40), (8.0, 0.25, 40), (2.0, 1.0, 3), (30.0, 0.9, 11)), 1e-3),
)


@cache
def pld_epsilon(history: History, delta: float, interval: float = 1e-4) -> float:
    """The tightest known upper bound, both ways of neighbouring, rounded up to a grid of `interval`."""
    losses = privacy_loss_distribution.identity(value_discretization_interval=interval)
    for noise, rate, steps in history:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=interval
        )
        losses = losses.compose(one.self_compose(steps))
    return float(losses.get_epsilon_for_delta(delta))


@pytest.mark.parametrize(("history", "delta"), HISTORIES)
def test_epsilon_lies_between_pld_and_pld_plus_two_hundredths(history, delta):
    tightest = pld_epsilon(history, delta)
    assert tightest <= epsilon(history, delta) <= tightest + 0.02


@pytest.mark.filterwarnings("ignore")  # Opacus warns of an overflow in the part of its grid that it does not use
def test_epsilon_equals_the_prv_accountant_of_opacus():
    from opacus.accountants import PRVAccountant  # noqa: PLC0415 -- loads torch

    for history, delta in HISTORIES[::3]:
        accountant = PRVAccountant()
        accountant.history = list(history)
        assert epsilon(history, delta) == pytest.approx(accountant.get_epsilon(delta), abs=1e-4)


@pytest.mark.parametrize(("history", "delta"), HISTORIES)
def test_rdp_is_never_below_the_tightest_bound(history, delta):
    assert epsilon_rdp(history, delta) >= pld_epsilon(history, delta)


def test_rdp_of_the_full_batch_is_the_textbook_value():
    # Without sampling RDP(alpha) = alpha / (2 sigma^2); Canonne et al. 2020 turn it into epsilon.
    sigma, delta = 4.0, 1e-5
    expected = min(
        a / (2 * sigma**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in range(2, 257)
    )
    assert epsilon_rdp([(sigma, 1.0, 1)], delta) == pytest.approx(expected, rel=1e-12)


def test_order_and_splitting_of_rows_do_not_matter():
    whole = ((1.5, 0.25, 100), (3.0, 0.1, 50))
    pieces = ((3.0, 0.1, 20), (1.5, 0.25, 99), (3.0, 0.1, 30), (1.5, 0.25, 1), (9.0, 0.5, 0))
    assert merged(pieces) == whole
    assert epsilon(pieces, 1e-3) == epsilon(whole, 1e-3)


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta():
    base = epsilon([(2.0, 0.25, 100)], 1e-3)
    assert epsilon([(2.0, 0.25, 101)], 1e-3) > base
    assert epsilon([(2.0, 0.26, 100)], 1e-3) > base
    assert epsilon([(2.01, 0.25, 100)], 1e-3) < base
    assert epsilon([(2.0, 0.25, 100)], 2e-3) < base


def test_nothing_done_spends_nothing_and_no_noise_spends_all():
    assert epsilon([], 1e-3) == 0
    assert epsilon([(0.0, 0.25, 1)], 1e-3) == math.inf


def test_hopeless_noise_is_still_bounded_from_above():
    history = ((0.3, 0.25, 100),)
    assert pld_epsilon(history, 1e-3, 1e-2) <= epsilon(history, 1e-3) < math.inf


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [(8, 1 / 800, 0.25, 400), (3, 1e-3, 0.1, 200), (1, 1 / 160, 0.25, 60), (0.5, 1e-4, 1.0, 7), (30, 1e-2, 0.5, 50)],
)
def test_solved_noise_meets_the_target_and_wastes_less_than_one_percent(target, delta, rate, steps):
    noise = noise_multiplier_for(target, delta, rate, steps)
    assert 0.99 * target <= epsilon([(noise, rate, steps)], delta) <= target
    assert noise == round(noise, 3)


def test_solved_noise_is_the_least_that_fits():
    noise = noise_multiplier_for(2, 1e-3, 0.25, 100)
    assert epsilon([(noise - 0.001, 0.25, 100)], 1e-3) > 2


def test_target_out_of_reach_is_refused():
    with pytest.raises(PrivacyError, match=r"Raise \[privacy\] target-epsilon") as caught:
        noise_multiplier_for(0.001, 1e-3, 0.25, 100)
    assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("row", "delta"),
    [
        *itertools.product([(-1.0, 0.5, 1), (math.nan, 0.5, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.5, -1)], [1e-3]),
        *itertools.product([(1.0, 0.5, 1)], [0.0, 1.0, math.nan]),
    ],
)
def test_values_out_of_range_are_refused(row, delta):
    with pytest.raises(PrivacyError):
        epsilon([row], delta)


def test_planning_and_charging_need_no_torch(tmp_path):
    program = (
        "import sys; from pathlib import Path; from common.privacy import guarantee; "
        "from common.privacy.accountant import noise_multiplier_for as solve; "
        "from common.privacy.ledger import Ledger; "
        f"Ledger(Path({str(tmp_path / 'ledger.sqlite')!r})).charge('c', 'r', 1, 'a', "
        "noise_multiplier=solve(8, 0.001, 0.25, 20), sampling_rate=0.25, steps=20, delta=0.001, lifetime_epsilon=8.0); "
        "sys.exit(bool({'torch', 'opacus'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
