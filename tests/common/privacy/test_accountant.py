"""The accountant against dp-accounting's PLD (Google) and Opacus' PRV, neither of which it is built on.

Of the 117 histories of the grid every seventh is checked; WARDROUND_HISTORIES=all and `make privacy` check each.
"""

import itertools
import math
import os
import random
import re
import subprocess
import sys
from functools import cache

import pytest
from dp_accounting.pld import privacy_loss_distribution

from common.errors import ErrorCode, PrivacyError
from common.privacy import accountant
from common.privacy.accountant import History, epsilon, epsilon_rdp, merged, noise_multiplier_for
from tests import ROOT
from tests.patience import PATIENCE_S

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


def grid() -> list[tuple[History, float]]:
    """Single runs over all rates, and patients' lives: 2 to 12 runs and restarts that differ in all."""

    def noise(rate: float, steps: int, target: float, delta: float) -> float:
        return round(max(0.7, rate * math.sqrt(2 * steps * math.log(1 / delta)) / target), 3)

    runs = (
        (1, 1.0, 1e-2), (1, 8.0, 1e-5), (30, 0.3, 1e-3), (400, 3.0, 1e-4), (1000, 8.0, 1e-6), (10_000, 1.0, 1e-8),
        (100_000, 3.0, 1e-3),
    )  # fmt: skip
    rates = (1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0)
    single = [(((noise(q, steps, *rest), q, steps),), rest[1]) for q in rates for steps, *rest in runs]
    source = random.Random(5)  # noqa: S311 -- the same lives each time
    lives = []
    for number in range(50):
        rows, delta, target = [], 10 ** source.uniform(-6, -1.5), source.choice([0.5, 1, 3, 8, 20])
        for _ in range(count := source.choice([2, 3, 4, 6, 12])):
            rate = 1.0 if source.random() < 0.15 else 10 ** source.uniform(-3, 0)
            steps = int(10 ** source.uniform(0, 3.3))
            rows.append((noise(rate, steps, target / math.sqrt(count), delta), rate, steps))
        if number % 2:  # a run that was restarted, in pieces among the others
            rows = [*rows, (rows[0][0], rows[0][1], 7), (rows[-1][0], rows[-1][1], 1)]
        lives.append((tuple(rows), delta))
    return [*HISTORIES, *single, *lives]


GRID = grid() if os.environ.get("WARDROUND_HISTORIES") == "all" else grid()[::7]


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


@pytest.mark.parametrize(("history", "delta"), GRID)
def test_epsilon_lies_between_pld_and_pld_plus_two_hundredths(history, delta):
    tightest = pld_epsilon(history, delta)
    assert tightest <= epsilon(history, delta) <= tightest + 0.02


def test_the_grid_has_a_hundred_histories():
    assert len(set(grid())) >= 100


def test_epsilon_is_never_too_small_at_a_delta_that_the_fft_cannot_resolve():
    history = ((2.504, 0.01, 10_000),)
    assert pld_epsilon(history, 1e-12) <= epsilon(history, 1e-12) <= epsilon_rdp(history, 1e-12)


@pytest.mark.filterwarnings("ignore")  # Opacus warns of an overflow in the part of its grid that it does not use
def test_epsilon_equals_the_prv_accountant_of_opacus():
    from opacus.accountants import PRVAccountant  # noqa: PLC0415 -- loads torch

    for history, delta in HISTORIES[::3]:
        accountant = PRVAccountant()
        accountant.history = list(history)
        assert epsilon(history, delta) == pytest.approx(accountant.get_epsilon(delta), abs=1e-4)


@pytest.mark.parametrize(("history", "delta"), GRID)
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


LONG = 500 * 1000  # steps: as many as the shipped policy lets a run have


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [
        (8, 1 / 400, 0.25, 20_000),
        (0.06, 1e-10, 0.5, 100),
        (10, 1e-10, 1e-3, 5000),
        (40, 1e-3, 1.0, 30),
        (0.3, 1e-5, 1, 1),
    ],
)
def test_noise_is_solved_in_few_questions_none_of_a_much_larger_epsilon(target, delta, rate, steps, monkeypatch):
    asked: list[float] = []
    counted = accountant._epsilon_prv

    def noted(*about):
        asked.append(counted(*about))
        return asked[-1]

    monkeypatch.setattr(accountant, "_epsilon_prv", noted)
    accountant._epsilon.cache_clear()
    noise = noise_multiplier_for.__wrapped__(target, delta, rate, steps)
    assert len(asked) <= 12
    assert max(asked) <= 3 * max(target, 0.5)
    # It is the least, as a search through all would find.
    assert epsilon([(noise, rate, steps)], delta) <= target < epsilon([(noise - 0.001, rate, steps)], delta)


def test_longest_run_that_the_policy_allows_is_planned_on_a_bounded_grid(monkeypatch):
    sizes: list[int] = []
    grid_of = accountant._loss_grid

    def note(history, delta_error):
        grid = grid_of(history, delta_error)
        sizes.append(len(grid))
        return grid

    monkeypatch.setattr(accountant, "_loss_grid", note)
    noise = noise_multiplier_for.__wrapped__(8, 1 / 400, 0.25, LONG)
    assert noise == 80.119  # as a bisection over all thousandths had it, in 20 questions on grids of up to 2^26 points
    assert max(sizes) <= 2**23
    assert len(sizes) <= 8


def test_history_whose_grid_would_fill_the_memory_has_the_looser_bound(monkeypatch):
    monkeypatch.setattr(accountant, "_loss_grid", lambda *_: pytest.fail("a grid was made"))
    for history, delta in ((((400.0, 0.5, 100 * LONG),), 1e-3), (((25.0, 0.25, LONG),), 1e-10)):
        bound = epsilon_rdp(history, delta)
        assert 10 < bound < 200
        assert epsilon(history, delta) == bound


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


def test_no_code_uses_the_gaussian_approximation():
    sources = [path for name in ("client", "common", "server", "simulations") for path in (ROOT / name).rglob("*.py")]
    named = re.compile(r"gdp(?!r)|gaussian_?accountant|GaussianDPAccountant|mu_?poisson", re.IGNORECASE)
    assert len(sources) > 100
    assert [path.name for path in sources if named.search(path.read_text(encoding="utf-8"))] == []


def test_planning_and_charging_need_no_torch(tmp_path):
    program = (
        "import sys; from pathlib import Path; from common.privacy import guarantee; "
        "from common.privacy.accountant import noise_multiplier_for as solve; "
        "from common.privacy.ledger import Ledger; "
        f"Ledger(Path({str(tmp_path / 'ledger.sqlite')!r}), bytes(32)).charge('c', 'r', 1, 'a', "
        "noise_multiplier=solve(8, 0.001, 0.25, 20), sampling_rate=0.25, steps=20, delta=0.001, lifetime_epsilon=8.0); "
        "sys.exit(bool({'torch', 'opacus'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_S)
