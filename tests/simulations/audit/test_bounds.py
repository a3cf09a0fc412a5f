"""The statistics of the audit: right against exact sums, printed figures and simulated mechanisms."""

import math
from fractions import Fraction

import numpy as np
import pytest

from simulations.audit.bounds import (
    counts_p_value,
    epsilon_lower_bound,
    independence_p_value,
    length_p_value,
    normality_p_value,
    one_run_p_value,
    ratio_p_value,
    shift_p_value,
    variance_p_value,
)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "printed"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_bound_is_the_one_printed_in_the_paper(
    canaries: int, guesses: int, correct: int, delta: float, printed: float
) -> None:
    """arXiv:2305.08846v1, appendix D and section 7, figure 11; both printed with three decimals."""
    assert epsilon_lower_bound(canaries, guesses, correct, delta) == pytest.approx(printed, abs=1e-3)


def test_p_value_is_the_theorem_in_exact_fractions() -> None:
    """At e^epsilon = 3 the accuracy is 3/4; sums over binomials as whole numbers, no library."""
    m, r, delta = 30, 12, Fraction(1, 1000)
    mass = [math.comb(r, k) * Fraction(3) ** k / Fraction(4) ** r for k in range(r + 1)]
    for v in range(r + 1):
        slope = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=Fraction(0))
        expected = min(Fraction(1), sum(mass[v:]) + 2 * m * delta * slope)
        assert one_run_p_value(m, r, v, math.log(3), float(delta)) == pytest.approx(float(expected), rel=1e-12)


def test_all_right_without_delta_refutes_the_epsilon_whose_coin_would_do_it_once_in_twenty() -> None:
    accuracy = 0.05 ** (1 / 80)
    assert epsilon_lower_bound(80, 80, 80, 0.0) == pytest.approx(math.log(accuracy / (1 - accuracy)), abs=1e-5)


def test_guesses_no_better_than_a_coin_refute_nothing() -> None:
    assert epsilon_lower_bound(100, 100, 50, 1e-5) == 0
    assert epsilon_lower_bound(100, 0, 0, 1e-5) == 0
    assert epsilon_lower_bound(100, 50, 50, 1.0) == 0  # delta 1 promises nothing


def test_bound_falls_with_delta_and_with_unused_canaries_and_grows_with_confidence_given_up() -> None:
    bound = epsilon_lower_bound(200, 100, 90, 1e-4)
    assert epsilon_lower_bound(200, 100, 90, 1e-3) < bound
    assert epsilon_lower_bound(2000, 100, 90, 1e-4) < bound
    assert epsilon_lower_bound(200, 100, 89, 1e-4) < bound
    assert epsilon_lower_bound(200, 100, 90, 1e-4, 0.8) > bound


def test_a_private_mechanism_is_refuted_as_often_as_stated_at_most() -> None:
    """Randomised response at epsilon 1, whose attacker is the best there is; with a leak of everything now and then."""
    rng, m, delta = np.random.default_rng(2), 100, 0.002
    accuracy = math.e / (1 + math.e)
    counts = rng.binomial(m, accuracy, 20_000)
    leaking = np.where(rng.random(counts.size) < delta, m, counts)
    p_plain, p_leaking = (np.array([one_run_p_value(m, m, v, 1.0, d) for v in range(m + 1)]) for d in (0.0, delta))
    for level in (0.01, 0.05, 0.3):
        assert (p_plain[counts] <= level).mean() <= level + 4 * math.sqrt(level / counts.size)
        assert (p_leaking[leaking] <= level).mean() <= level + 4 * math.sqrt(level / counts.size)
    # Without delta the bound is tight: it could not be smaller.
    assert np.mean(counts >= 80) == pytest.approx(one_run_p_value(m, m, 80, 1.0, 0.0), abs=0.01)


@pytest.mark.parametrize("values", [(10, 11, 5, 1.0, 0.1), (10, 5, 6, 1.0, 0.1), (10, 5, 5, -1.0, 0.1)])
def test_numbers_without_meaning_are_refused(values: tuple[int, int, int, float, float]) -> None:
    with pytest.raises(ValueError, match="expected 0 <="):
        one_run_p_value(*values)


def p_values(rng: np.random.Generator, scale: float = 1.0) -> dict[str, float]:
    """Each test on what it expects, or on values `scale` times as wide."""
    parts = [scale * rng.standard_normal(size) for size in (400, 100, 1)]
    normal = scale * rng.standard_normal()
    counts = 10 + scale * (rng.binomial(40, 0.25, 15) - 10 + 0.5 * rng.standard_normal(15))
    return {
        "variance": variance_p_value(parts),
        "normality": normality_p_value(parts[0]),
        "independence": independence_p_value(parts),
        "ratio": ratio_p_value(float((parts[0] ** 2).mean() / (rng.standard_normal(900) ** 2).mean()), 400, 900),
        "shift": shift_p_value(1 + 0.3 * normal, 0.3, 1.0),
        "length": length_p_value(float(((0.3 * parts[1] + np.eye(100)[0]) ** 2).sum()), 100, 0.3, 1.0),
        "counts": counts_p_value(counts, 40, 0.25, np.full(15, 0.5)),
    }


def test_exact_tests_are_no_more_often_alarmed_than_stated() -> None:
    rng = np.random.default_rng(1)
    draws = [p_values(rng) for _ in range(500)]
    for name in draws[0]:
        values = np.array([draw[name] for draw in draws])
        assert (values < 0.05).mean() < 0.05 + 4 * math.sqrt(0.05 / 500), name
        assert (values < 0.3).mean() > 0.05, name  # and are not asleep


def test_exact_tests_see_a_fault() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal(2000)
    narrow = p_values(rng, 0.5)
    assert narrow["variance"] < 1e-9
    assert narrow["ratio"] < 1e-9
    assert variance_p_value([values, np.zeros(1)]) == 0  # one tensor without noise
    assert normality_p_value(np.sqrt(3) * rng.uniform(-1, 1, 2000)) < 1e-9
    assert normality_p_value(values.clip(-2.0, 2.0)) < 1e-9  # tails cut off
    assert independence_p_value([values, values[:100]]) < 1e-9
    assert independence_p_value([values, -values]) < 1e-9
    assert shift_p_value(2.0, 0.1, 1.0) < 1e-9
    assert length_p_value(2.0 * 100, 100, 1.0, 1.0) < 1e-6
    twice = np.where(np.arange(15) == 3, 30.0, 10.0)
    assert counts_p_value(twice, 40, 0.25, np.full(15, 0.5)) < 1e-6
    assert counts_p_value(np.full(15, 10.0), 40, 0.25, np.full(15, 0.5)) < 1e-6  # each exactly as often
