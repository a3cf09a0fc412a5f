"""The clipping norm follows a quantile of the patients' gradient norms, and a step costs what it cost before.

Andrew, Thakkar, McMahan, Ramaswamy: "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021
(https://arxiv.org/abs/1905.03871). A step with norm C releases, beside the noisy sum of clipped gradients, a count: the
sum over its patients of b - 1/2, where b is 1 if the patient's gradient was no longer than C and 0 otherwise, plus
Gaussian noise of standard deviation `count_noise`. From the count alone follows the next step's norm.

Why the charge stays (their theorem 1, shown here for Poisson sampling):

1. Divide the noisy sum by z_g C and the count by count_noise: together they have standard normal noise, and one patient
   moves them by at most 1 / z_g and 1 / (2 count_noise), so by sqrt(z_g^-2 + (2 count_noise)^-2) as one vector.
2. With z_g = (z^-2 - (2 count_noise)^-2)^(-1/2) that is 1 / z: one Gaussian mechanism of noise multiplier z, run on the
   one sample that the step drew, hence amplified by the same sampling rate.
3. C was fixed before the sample was drawn, by earlier releases alone: the steps compose as they did with a fixed norm.

The share of patients within the norm is the count over their expected, public number, plus 1/2; the sampled number
would be one more release. If `expected` patients are planned and n come on average, the share settles at
1/2 + (quantile - 1/2) expected / n: exact for the median, whatever n is, and further off the further the quantile lies
from it. A quantile that no share can reach takes the norm to its bound.

A site keeps no state between rounds, so each round starts again from the run's `clipping-norm`. Nothing is divided by
the norm: gradients, noise and, but for optimisers that scale their steps themselves, the update's size follow it.
"""

import math
from dataclasses import dataclass

from common.config import AdaptiveClippingConfig
from common.errors import ErrorCode, PrivacyError

# The norm stays within this factor of the first, either way: noise cannot carry it off, and policies know its limits.
_FACTOR = 100.0
# More noise on the gradients than this times the charged one costs more than a better norm can give.
_MOST_NOISE = 2.0


@dataclass(frozen=True)
class ClippingRule:
    """How the norm moves at a site."""

    settings: AdaptiveClippingConfig
    first_norm: float  # of each round
    expected_patients: float  # that a step samples among those in training: public


def gradient_noise_multiplier(noise_multiplier: float, count_noise: float) -> float:
    """Noise on the gradients that, together with that on the count, makes a release of `noise_multiplier`.

    Args:
        noise_multiplier: what a step is charged for; > 0.
        count_noise: standard deviation of the noise on the number of patients within the norm.
    Returns:
        Standard deviation of the gradients' noise over the clipping norm: z_g above.
    Raises:
        PrivacyError: the count's noise is so small that the count takes all of the charge, or most.
    """
    least = noise_multiplier / (2 * math.sqrt(1 - _MOST_NOISE**-2))  # where z_g is _MOST_NOISE times z
    if not count_noise >= least:
        raise PrivacyError(
            f"count-noise is {count_noise:g} patients, must be at least {least:.4g} at noise multiplier "
            f"{noise_multiplier:g}: with less, the count leaves so little of a step's charge that the noise on the "
            f"gradients would grow more than {_MOST_NOISE:g} times. Set [privacy.adaptive-clipping] count-noise to "
            f"{math.ceil(100 * least) / 100:g} or more, or remove that table for a fixed norm.",
            ErrorCode.BAD_REQUEST,
        )
    return 1 / math.sqrt(noise_multiplier**-2 - (2 * count_noise) ** -2)


def norm_bounds(first_norm: float) -> tuple[float, float]:
    """The least and the largest norm that a round may come to."""
    return first_norm / _FACTOR, first_norm * _FACTOR


def next_norm(norm: float, noisy_count: float, rule: ClippingRule) -> float:
    """The norm of the step after this one.

    Args:
        norm: this step's.
        noisy_count: sum of b - 1/2 over this step's patients, plus noise.
        rule: of the run at this site.
    """
    share = noisy_count / rule.expected_patients + 1 / 2
    low, high = norm_bounds(rule.first_norm)
    logarithm = math.log(norm) - rule.settings.learning_rate * (share - rule.settings.quantile)
    return min(max(math.exp(min(logarithm, math.log(high))), low), high)  # a float ends at exp(709)


__all__ = ["ClippingRule", "gradient_noise_multiplier", "next_norm", "norm_bounds"]
