"""How far honest training of one round can move a model (L2): what lies farther was not made by the run's training.

Where each step is bounded, so is the round, and the bound follows from the run alone:

- AdamW moves a weight by at most lr * |m| / sqrt(v) in a step, m and v the bias-corrected means of the gradient and of
  its square since the round began (Kingma and Ba, ICLR 2015). By Cauchy and Schwarz |m| / sqrt(v) is at most
  sqrt(sum_i a_i^2 / b_i), a_i and b_i the weights of step i in the two means: 1 in the first step, 1.2 in the
  twentieth. That holds for whatever gradient, so also for one with noise.
- SGD under privacy moves by lr times the noisy mean gradient. At most N patients of norm C are added and divided by
  q N, which is C / q; the noise of d values has deviation z C / (q N) each, and their norm exceeds sqrt(d) + 6
  deviations with a probability of 2e-8 (concentration of a Lipschitz function of Gaussians). Momentum carries each step
  on into those after it; Nesterov's adds a step's gradient once more, by the momentum.
- SGD without privacy whose gradients are clipped moves by lr times that norm at most, and momentum as above.

Weight decay draws towards zero, by no more than its share of the model. SGD with neither has no such bound: there
`max-update-norm` and the other sites' updates (`server.federation.checks.outliers`) are what an update is held against,
and where a strategy lets each site go on from weights of its own.

What is rounded on its way (`federation.update-precision`) may lie farther. With d the largest share that rounding adds
to what is sent or takes from it, r the residual that a site adds and s what it sends in a round of reach R,
s <= R + r + d s, and the next residual is at most d s. So s is at most (R + r) / (1 - d), and no residual exceeds
d / (1 - 2 d) times the farthest that a round so far could lead; which round a site last took part in is not looked at.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from common.config import PrivacyConfig, RunConfig
from common.learning.network import build_model, freeze, norms_of
from common.learning.schedule import carried, rates_of_round
from common.privacy.clipping import norm_bounds
from common.privacy.guarantee import plan
from common.privacy.noise import deviation
from common.wire.encoding import LARGEST_ERROR
from server.federation.price import declared_patients

# Of AdamW as torch makes it where a run does not say otherwise, which it cannot.
_BETA_1, _BETA_2 = 0.9, 0.999
_TAIL = 6.0  # deviations
# For weights that are float32 and sums that are rounded.
_ROUNDING, _RELATIVE_ROUNDING = 1.001, 1e-5


def farthest(
    run: RunConfig, round_: int, start_norm: float, *, delta: float | None = None, made: int | None = None
) -> float:
    """The largest L2 distance from the model that was sent that this round's training can reach.

    Args:
        run: that both sides agreed on.
        round_: from 1.
        start_norm: L2 norm of the model that was sent.
        delta: what the site states, under privacy; its declared number of patients follows from it.
        made: steps of the site, where it stops by time; None: `local-steps`.

    Returns:
        Infinity where nothing bounds it.

    Raises:
        PrivacyError: no site can train with this delta in this run.
    """
    reach, encoding = _reach(run, round_, start_norm, delta, made), run.federation.update_precision
    if encoding == "float32" or math.isinf(reach):
        return reach
    share = LARGEST_ERROR[encoding]
    before = 0.0 if round_ == 1 else _reach(_at_full_rate(run), 1, 2 * start_norm, delta, None)
    return (reach + share / (1 - 2 * share) * before) / (1 - share)


@lru_cache(maxsize=16)
def _at_full_rate(run: RunConfig) -> RunConfig:
    """No round leads farther than one of this run from a model as long; twice as long is what one may have been."""
    full = {"schedule": "constant", "cycles": 1, "warmup_steps": 0}
    return run.model_copy(update={"training": run.training.model_copy(update=full)})


def _reach(run: RunConfig, round_: int, start_norm: float, delta: float | None, made: int | None) -> float:
    """How far the round's training leads before anything is rounded; see `farthest`."""
    if run.strategy.OWN_START:
        return math.inf  # where a site goes on from is its own affair
    rates, training = rates_of_round(run, round_, made), run.training
    values, _ = trained(run)
    if training.optimizer == "adamw":
        steps = sum(rate * _largest_adam_step(number) for number, rate in enumerate(rates, start=1)) * math.sqrt(values)
        decay = sum(rates) * training.weight_decay
        if max(rates) * training.weight_decay > 1:
            return math.inf  # it would overshoot zero
        reach = steps + min(1.0, decay) * start_norm
    elif run.privacy is not None and run.strategy.STEERS:
        return math.inf  # what is added after the noise has no bound of its own
    elif run.privacy is not None or training.gradient_clipping is not None:
        # How far a gradient of norm 1 in each step moves the weights by the end of the round.
        moved = carried(rates, training.momentum, nesterov=training.nesterov)
        decay = sum(moved) * training.weight_decay
        if decay >= 1:
            return math.inf
        steps = sum(moved) * (training.gradient_clipping or 0.0)
        if run.privacy is not None:
            steps = _private_steps(run, run.privacy, moved, values, delta)
        reach = (steps + decay * start_norm) / (1 - decay)
    else:
        return math.inf
    return reach * _ROUNDING + start_norm * _RELATIVE_ROUNDING


def work_of(run: RunConfig, round_: int, steps: int) -> float:
    """How much of a round of `local-steps` the first `steps` are, in (0, 1]: by what a gradient of 1 in each moves.

    AdamW, which divides by a gradient's size, is taken to move by its rate.
    """
    if steps == run.training.local_steps:
        return 1.0
    training = run.training
    momentum = training.momentum if training.optimizer == "sgd" else 0.0
    some, whole = (
        sum(carried(rates_of_round(run, round_, made), momentum, nesterov=training.nesterov))
        for made in (steps, training.local_steps)
    )
    return some / whole


@lru_cache(maxsize=16)
def trained(run: RunConfig) -> tuple[int, frozenset[str]]:
    """How many weights the run trains, and the names of the tensors that each update has as they were sent."""
    network = build_model(run)
    freeze(network, run)
    parameters = dict(network.named_parameters())
    return (
        sum(one.numel() for one in parameters.values() if one.requires_grad),
        frozenset(name for name, one in parameters.items() if not one.requires_grad)
        | (norms_of(network) if run.strategy.NORMS_STAY else frozenset()),
    )


def _largest_adam_step(step: int) -> float:
    """The most that AdamW's step number `step` (from 1) of a fresh optimiser moves a weight, over the learning rate."""
    # sum of a_i^2 / b_i, a geometric series in beta_1^2 / beta_2.
    ratio = _BETA_1**2 / _BETA_2
    series = (1 - ratio**step) / (1 - ratio)
    corrections = (1 - _BETA_2**step) / (1 - _BETA_1**step) ** 2
    return math.sqrt((1 - _BETA_1) ** 2 / (1 - _BETA_2) * series * corrections)


def _private_steps(
    run: RunConfig, privacy: PrivacyConfig, moved: Sequence[float], values: int, delta: float | None
) -> float:
    budget = plan(run, declared_patients(privacy, delta))
    norms = _clipping_norms(privacy, budget.expected_in_training, len(moved))
    signal = sum(weight * norm for weight, norm in zip(moved, norms, strict=True)) / privacy.sampling_rate
    noise = math.hypot(
        *(
            weight * deviation(norm, budget.gradient_noise_multiplier, values) / budget.expected_patients
            for weight, norm in zip(moved, norms, strict=True)
        )
    )
    return signal + noise * (math.sqrt(values) + _TAIL)


def _clipping_norms(privacy: PrivacyConfig, expected: float, steps: int) -> list[float]:
    """The largest clipping norm of each step: where it is adaptive, that of a share of zero and the count's noise."""
    adaptive, first = privacy.adaptive_clipping, privacy.clipping_norm
    if adaptive is None:
        return [first] * steps
    _, high = norm_bounds(first)
    growth = [
        adaptive.learning_rate * (adaptive.quantile * step + _TAIL * math.sqrt(step) * adaptive.count_noise / expected)
        for step in range(steps)
    ]
    return [min(high, first * math.exp(min(one, math.log(high / first)))) for one in growth]


__all__ = ["farthest", "trained", "work_of"]
