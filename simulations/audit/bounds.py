"""What numbers seen from outside say about a guarantee: the statistics of the privacy audit.

`epsilon_lower_bound` is the audit with one training run (Steinke, Nasr, Jagielski 2023, theorem 5.2 and corollary 5.4,
https://arxiv.org/abs/2305.08846). The others are exact tests: a p-value is the probability that a sound program shows
something at least as far off. Where a test looks at several things, its p-value is the smallest times their number
(Bonferroni), so that it stays a p-value.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]

# Bisection ends here; what is reported is the lower end.
_EPSILON_STEP = 1e-6
# A correlation of fewer values could be 1 by rounding alone, and would not be rare enough to count.
_LEAST_VALUES = 64


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of this many correct guesses, were the training (epsilon, delta)-private.

    With W ~ Binomial(guesses, e^epsilon / (1 + e^epsilon)):
        P[W >= correct] + 2 canaries delta max over i of P[correct - i <= W < correct] / i.

    Args:
        canaries: each was in the training set with probability 1/2, independently.
        guesses: how many of them were guessed; about the others the auditor said nothing.
        correct: how many guesses were right.
        epsilon: of the hypothesis, at least 0.
        delta: of the hypothesis, in [0, 1].
    """
    if not (0 <= correct <= guesses <= canaries and epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError("expected 0 <= correct <= guesses <= canaries, epsilon >= 0 and delta in [0, 1]")
    accuracy = 1 / (1 + math.exp(-epsilon))
    by_chance = float(stats.binom.sf(correct - 1, guesses, accuracy))
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy))
    slope = float((below / np.arange(1, correct + 1)).max()) if correct else 0.0
    return min(1.0, by_chance + 2 * canaries * delta * slope)


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that this many correct guesses refute at the given confidence; 0 if they refute none.

    A refuted epsilon refutes every smaller one: what is private at the smaller is private at the larger.
    """

    def refuted(epsilon: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > _EPSILON_STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def variance_p_value(parts: Sequence[Values]) -> float:
    """Parts should be independent standard normal values: chi-square of each part and of all, from both sides."""
    sums = [float((part**2).sum()) for part in parts]
    sizes = [part.size for part in parts]
    tests = [*zip(sums, sizes, strict=True), (sum(sums), sum(sizes))]
    return bonferroni(two_sided(stats.chi2.cdf(total, size), stats.chi2.sf(total, size)) for total, size in tests)


def normality_p_value(values: Values) -> float:
    """Values should be independent standard normal: Kolmogorov-Smirnov for the bulk, the largest one for the tails."""
    bulk = float(stats.kstest(values, "norm").pvalue)
    # log P[all n values lie within the largest] = n log(1 - tail).
    tail = 2 * stats.norm.sf(np.abs(values).max())
    within = math.exp(values.size * math.log1p(-tail)) if tail < 1 else 0.0
    return bonferroni([bulk, two_sided(within, 1 - within)])


def independence_p_value(sequences: Sequence[Values]) -> float:
    """Sequences should be independent standard normal: the correlation of the beginnings of each two.

    Sequences under 64 values are left out.
    """
    long = [one for one in sequences if one.size >= _LEAST_VALUES]
    return bonferroni(_correlation_p_value(first, second) for first, second in combinations(long, 2))


def ratio_p_value(ratio: float, upper: int, lower: int) -> float:
    """Ratio of two independent mean squares of standard normal values: F test from both sides."""
    return two_sided(stats.f.cdf(ratio, upper, lower), stats.f.sf(ratio, upper, lower))


def shift_p_value(shift: float, deviation: float, bound: float) -> float:
    """A shift seen through normal noise should be at most `bound`."""
    return float(stats.norm.sf((shift - bound) / deviation))


def length_p_value(squared: float, size: int, deviation: float, bound: float) -> float:
    """A vector of `size` values seen through normal noise should be at most `bound` long."""
    return float(stats.ncx2.sf(squared / deviation**2, size, (bound / deviation) ** 2))


def counts_p_value(seen: Values, trials: int, rate: float, deviations: Values) -> float:
    """Counts seen through normal noise should be Binomial(trials, rate), independently of each other.

    Each count by the distribution of a binomial plus a normal value; and the scatter of all by a chi-square, which
    finds counts that agree too well, as those of a shuffled list do. Only the chi-square is approximate.

    Args:
        seen: (n).
        trials: of each.
        rate: of each trial.
        deviations: (n), of the normal noise.
    """
    steps = np.arange(trials + 1)
    mass = stats.binom.pmf(steps, trials, rate)
    distance = (seen[:, None] - steps) / deviations[:, None]
    each = [
        two_sided(below, above)
        for below, above in zip(stats.norm.cdf(distance) @ mass, stats.norm.sf(distance) @ mass, strict=True)
    ]
    scatter = float(((seen - trials * rate) ** 2 / (trials * rate * (1 - rate) + deviations**2)).sum())
    together = two_sided(stats.chi2.cdf(scatter, seen.size), stats.chi2.sf(scatter, seen.size))
    return bonferroni([*each, together])


def bonferroni(p_values: Iterable[float]) -> float:
    """One p-value of several tests."""
    values = [float(value) for value in p_values]
    return min(1.0, len(values) * min(values))


def two_sided(below: float, above: float) -> float:
    """P-value from both sides, of the probabilities of at most and of at least what was seen."""
    return min(1.0, 2 * min(float(below), float(above)))


def _correlation_p_value(first: Values, second: Values) -> float:
    size = min(first.size, second.size)
    correlation = float(first[:size] @ second[:size]) / math.sqrt(
        float((first[:size] ** 2).sum()) * float((second[:size] ** 2).sum()) or 1.0
    )
    # Of two independent normal vectors, (1 + correlation) / 2 is Beta((n - 1) / 2, (n - 1) / 2).
    half = (size - 1) / 2
    return min(1.0, 2 * float(stats.beta.sf((1 + abs(correlation)) / 2, half, half)))
