"""Adaptive clipping: its charge against dp-accounting, its norm against quantiles and sums known beforehand."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import ComposedDpEvent, GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import Tensor, nn

from common.config import AdaptiveClippingConfig
from common.errors import ErrorCode, PrivacyError
from common.privacy import engine
from common.privacy.autotune import Plan
from common.privacy.clipping import ClippingRule, gradient_noise_multiplier, next_norm, norm_bounds
from common.privacy.engine import adapt_clipping, private_optimizer, private_step
from common.privacy.gradients import Strategy
from common.privacy.noise import noised
from common.privacy.patient import Patient

FIRST = 0.5
# Noise that is as good as none, where a test needs the plain numbers; count noise is then allowed to be as small.
SILENT = 1e-6


def rule(*, quantile: float = 0.5, learning_rate: float = 0.2, expected: float = 10.0) -> ClippingRule:
    return ClippingRule(AdaptiveClippingConfig(quantile=quantile, learning_rate=learning_rate), FIRST, expected)


def mean_output(logits: Tensor, _: Tensor) -> Tensor:
    """Of a linear layer: a patient's gradient is then their mean input, whatever the weights are."""
    return logits.mean()


def patients_of(norms: Sequence[float] | np.ndarray, *, crops: int = 1) -> list[Patient]:
    """Patients whose gradients have these norms, in different directions."""
    directions = torch.randn(len(norms), 6, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=1, keepdim=True)
    return [
        Patient(float(norm) * one.repeat(crops, 1), torch.zeros(crops))
        for norm, one in zip(norms, directions, strict=True)
    ]


def adaptive(
    model: nn.Module, *, noise: float = SILENT, count_noise: float = SILENT, expected: float = 10.0, **rest: float
) -> DPOptimizer:
    # The learning rate is too small to change a gradient's sum by rounding.
    optimizer = private_optimizer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-3),
        noise_multiplier=noise,
        clipping_norm=FIRST,
        expected_patients=expected,
    )
    adapt_clipping(optimizer, AdaptiveClippingConfig(count_noise=count_noise, **rest), expected_patients=expected)
    return optimizer


def linear() -> nn.Linear:
    return nn.Linear(6, 1, bias=False)


@pytest.fixture
def noised_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All that the engine has had noised: sums, norm and multiplier; a step's gradients come before its count."""
    calls: list[dict[str, Any]] = []
    real = noised

    def record(sums: Iterable[Tensor], *, clipping_norm: float, noise_multiplier: float) -> list[Tensor]:
        sums = list(sums)
        flat = torch.cat([tensor.double().reshape(-1) for tensor in sums])
        calls.append({"sums": flat, "norm": clipping_norm, "noise": noise_multiplier})
        return real(sums, clipping_norm=clipping_norm, noise_multiplier=noise_multiplier)

    monkeypatch.setattr(engine, "noised", record)
    return calls


@pytest.mark.parametrize(("noise", "count_noise"), [(1.0, 5.0), (2.247, 1.5), (0.613, 0.36), (9.0, 6.0), (30.0, 100.0)])
def test_gradients_and_count_together_cost_what_the_step_is_charged(noise, count_noise):
    joint = ComposedDpEvent(
        [GaussianDpEvent(gradient_noise_multiplier(noise, count_noise)), GaussianDpEvent(2 * count_noise)]
    )
    for delta in (1e-2, 1e-3, 1e-5):
        together, charged = (
            RdpAccountant().compose(event).get_epsilon(delta) for event in (joint, GaussianDpEvent(noise))
        )
        assert together == pytest.approx(charged, abs=1e-6)
        # The tight accountant, whose grid is 1e-4.
        together, charged = (
            PLDAccountant().compose(event).get_epsilon(delta) for event in (joint, GaussianDpEvent(noise))
        )
        assert together == pytest.approx(charged, abs=5e-4)


@pytest.mark.parametrize("count_noise", [SILENT, 1.0, 1.15, math.nan])
def test_noise_on_the_count_that_leaves_too_little_for_the_gradients_is_refused(count_noise):
    with pytest.raises(PrivacyError, match=r"at least 1\.155 .* count-noise to 1\.16 or more") as caught:
        gradient_noise_multiplier(2.0, count_noise)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_the_gradients_noise_is_raised_by_at_most_two():
    assert gradient_noise_multiplier(2.0, 2 / math.sqrt(3) + 1e-9) == pytest.approx(4.0)
    assert gradient_noise_multiplier(2.0, 1e6) == pytest.approx(2.0)


def test_the_message_names_a_value_that_is_allowed():
    for noise in (0.3, 1.0, 2.345, 17.77):
        with pytest.raises(PrivacyError) as caught:
            gradient_noise_multiplier(noise, 0.1)
        named = float(str(caught.value).split("count-noise to ")[1].split()[0])
        assert noise < gradient_noise_multiplier(noise, named) <= 2 * noise


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0.01, 100), max_size=5),
    st.floats(0.01, 100),
    st.floats(0.3, 5),
    st.floats(0.6, 20),
    st.booleans(),
)
def test_one_patient_moves_gradients_and_count_by_one_part_in_the_charged_noise(others, mine, noise, ratio, several):
    """The proof's line, on what the engine has noised: distance over deviation, of both releases as one vector."""
    seen: list[Tensor] = []
    cohort = patients_of([*others, mine])
    with pytest.MonkeyPatch.context() as patch:
        real = noised

        def record(sums, *, clipping_norm, noise_multiplier):
            seen.append(torch.cat([one.double().reshape(-1) for one in sums]) / (clipping_norm * noise_multiplier))
            return real(sums, clipping_norm=clipping_norm, noise_multiplier=noise_multiplier)

        patch.setattr(engine, "noised", record)
        for patients in (cohort, cohort[:-1]):
            model = linear()
            optimizer = adaptive(model, noise=noise, count_noise=ratio * noise)
            plan = Plan(Strategy.BOOK_KEEPING if several else Strategy.ONE_AT_A_TIME, 8)
            private_step(model, optimizer, patients, mean_output, plan=plan)
    with_, without = torch.cat(seen[:2]), torch.cat(seen[2:])
    apart = float((with_ - without).norm()) * noise
    assert apart <= 1 + 2e-5  # of float32; common.privacy.noise covers 2^-12
    if mine > FIRST * (1 + 1e-3):
        assert apart == pytest.approx(1, abs=1e-4)  # nothing is paid for that is not used


@pytest.mark.parametrize("plan", [Plan(strategy, most) for strategy in Strategy for most in (2, 100)], ids=str)
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_the_next_norm_follows_from_the_share_over_the_expected_number(plan, device):
    norms = [0.1, 0.2, 0.3, 0.49, 0.51, 0.9, 4.0]  # four of seven are within 0.5
    model = linear().to(device)
    optimizer = adaptive(model, expected=10.0, quantile=0.7, learning_rate=0.3)
    cohort = [Patient(crops.to(device), labels.to(device)) for crops, labels, _ in patients_of(norms, crops=2)]
    private_step(model, optimizer, cohort, mean_output, plan=plan)
    share = (4 - 7 / 2) / 10 + 1 / 2
    assert optimizer.max_grad_norm == pytest.approx(FIRST * math.exp(-0.3 * (share - 0.7)), rel=1e-5)


def test_a_norm_over_all_parameters_decides_who_is_within():
    model = nn.Linear(6, 1)  # the bias adds a gradient of length 1
    optimizer = adaptive(model, expected=1.0, learning_rate=0.3)
    private_step(model, optimizer, patients_of([0.4]), mean_output)
    assert optimizer.max_grad_norm == pytest.approx(FIRST * math.exp(0.3 * 0.5), rel=1e-4)


def test_the_share_is_over_a_public_number_not_over_the_sampled_one():
    model = linear()
    optimizer = adaptive(model, expected=10.0, learning_rate=0.3)
    private_step(model, optimizer, patients_of([0.1] * 20), mean_output)
    assert optimizer.max_grad_norm == pytest.approx(FIRST * math.exp(-0.3 * (1.5 - 0.5)), rel=1e-5)


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("first_is", ["far below", "far above"])
def test_the_norm_comes_to_the_quantile_of_the_patients_norms(quantile, first_is):
    count = 200
    scale = 4.0 if first_is == "far below" else 0.08
    norms = scale * np.exp(np.linspace(-1.5, 1.5, count))
    model = linear()
    optimizer = adaptive(model, noise=1.0, count_noise=5.0, expected=count, quantile=quantile, learning_rate=0.5)
    cohort, path = patients_of(norms), []
    for _ in range(120):
        private_step(model, optimizer, cohort, mean_output, plan=Plan(Strategy.BOOK_KEEPING, count))
        path.append(math.log(optimizer.max_grad_norm))
    # The share rises by 1/3 for each unit of the logarithm, so a step forgets 1/6 of the way to go, and the noise of a
    # step is 0.5 * 5 / 200: a deviation of 0.022 around the quantile, and 0.009 of the mean of 60 steps.
    assert abs(np.mean(path[60:]) - math.log(np.quantile(norms, quantile))) < 0.07
    assert np.std(path[60:]) < 0.09


def test_the_noise_of_the_share_has_its_deviation():
    steps, expected, count_noise = 3000, 8.0, 3.0
    model = linear()
    optimizer = adaptive(model, noise=1.0, count_noise=count_noise, expected=expected, learning_rate=0.1)
    found = []
    for _ in range(steps):
        optimizer.max_grad_norm = FIRST
        private_step(model, optimizer, [], mean_output)
        found.append(-math.log(optimizer.max_grad_norm / FIRST) / 0.1)
    normal = np.array(found) * expected / count_noise
    # Each bound fails for one true deviation in 10 million.
    low, high = stats.chi2.ppf([5e-8, 1 - 5e-8], steps - 1)
    assert low < steps * normal.var() < high * 1.001  # the noise is larger by 2^-12, see common.privacy.noise
    assert abs(normal.mean()) < stats.norm.isf(5e-8) / math.sqrt(steps)
    assert stats.kstest(normal, "norm").pvalue > 1e-7


def test_a_batch_of_nobody_moves_the_norm_by_noise_and_is_a_step(noised_calls):
    model, norms = linear(), []
    optimizer = adaptive(model, noise=1.0, count_noise=2.0)
    for _ in range(3):
        before = model.weight.detach().clone()
        assert private_step(model, optimizer, [], mean_output) is None
        assert bool((model.weight != before).all())
        norms.append(optimizer.max_grad_norm)
    assert len({FIRST, *norms}) == 4
    assert [len(call["sums"]) for call in noised_calls] == [6, 1] * 3
    assert all(not call["sums"].any() for call in noised_calls)
    model = linear()
    silent = adaptive(model, quantile=0.5)
    private_step(model, silent, [], mean_output)
    assert silent.max_grad_norm == pytest.approx(FIRST, rel=1e-6)


def test_every_step_clips_and_noises_by_the_norm_set_before_its_batch(noised_calls):
    model = linear()
    # At this rate 20 steps of noise do not lead to the bounds of a round, where the norm would stay as it is.
    optimizer = adaptive(model, noise=1.0, count_noise=2.0, expected=3.0, learning_rate=0.1)
    before, at_reading = [], []

    def batch():
        for one in patients_of([1000.0]):
            at_reading.append(optimizer.max_grad_norm)
            yield one

    for _ in range(20):
        before.append(optimizer.max_grad_norm)
        private_step(model, optimizer, batch(), mean_output)
    gradients, counts = noised_calls[::2], noised_calls[1::2]
    assert len(set(before)) == 20
    assert at_reading == before
    assert [call["norm"] for call in gradients] == before
    for call, norm in zip(gradients, before, strict=True):
        assert float(call["sums"].norm()) <= norm * (1 + 1e-6)
        assert float(call["sums"].norm()) == pytest.approx(norm, rel=1e-4)
        assert call["noise"] == gradient_noise_multiplier(1.0, 2.0)
    assert all((call["norm"], call["noise"], call["sums"].tolist()) == (0.5, 4.0, [-0.5]) for call in counts)


def test_a_refused_step_leaves_the_norm_where_it_was():
    model = linear()
    optimizer = adaptive(model)

    def stream():
        yield from patients_of([0.1] * 9)
        raise PrivacyError("refused in the middle", ErrorCode.UNSUPPORTED)

    with pytest.raises(PrivacyError, match="in the middle"):
        private_step(model, optimizer, stream(), mean_output)
    assert optimizer.max_grad_norm == FIRST
    private_step(model, optimizer, patients_of([0.1]), mean_output)  # what was counted before is forgotten
    assert optimizer.max_grad_norm == pytest.approx(FIRST * math.exp(-0.2 * 0.05), rel=1e-5)


def test_a_fixed_norm_stays_and_costs_no_more(monkeypatch, noised_calls):
    for extra in ("_with_noise", "next_norm"):
        monkeypatch.setattr(engine, extra, None)  # a call would fail
    model = linear()
    optimizer = private_optimizer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-3),
        noise_multiplier=2.0,
        clipping_norm=FIRST,
        expected_patients=3,
    )
    for _ in range(3):
        private_step(model, optimizer, patients_of([0.1, 9.0]), mean_output)
    assert optimizer.max_grad_norm == FIRST
    assert [(call["norm"], call["noise"]) for call in noised_calls] == [(FIRST, 2.0)] * 3


def test_noise_cannot_carry_the_norm_beyond_its_bounds():
    low, high = norm_bounds(FIRST)
    assert (low, high) == (FIRST / 100, FIRST * 100)
    wild = rule(learning_rate=1e6)
    for norm, count, bound in [(FIRST, -1e9, high), (FIRST, 1e9, low), (high, -1.0, high), (low, 100.0, low)]:
        for one in (wild, rule()):
            assert next_norm(norm, count, one) == pytest.approx(bound, rel=1e-12)
            assert low <= next_norm(norm, count, one) <= high
    assert low < next_norm(low, -1.0, rule()) < FIRST  # it comes back


def test_a_quantile_beyond_reach_ends_at_the_bound():
    norm = FIRST
    for _ in range(2000):  # five of ten expected come, all within: the share is 3/4 and never the wanted 0.9
        norm = next_norm(norm, 5 * 0.5, rule(quantile=0.9))
    assert norm == pytest.approx(norm_bounds(FIRST)[1], rel=1e-12)


@pytest.mark.parametrize("expected", [0.0, -1.0, math.nan, math.inf])
def test_an_expected_number_without_meaning_is_refused(expected):
    model = linear()
    optimizer = private_optimizer(
        model, torch.optim.SGD(model.parameters()), noise_multiplier=1, clipping_norm=1, expected_patients=1
    )
    with pytest.raises(PrivacyError, match="expected a number > 0"):
        adapt_clipping(optimizer, AdaptiveClippingConfig(), expected_patients=expected)
    assert optimizer.noise_multiplier == 1


def test_clipping_is_made_adaptive_once():
    optimizer = adaptive(linear())
    with pytest.raises(PrivacyError, match="once"):
        adapt_clipping(optimizer, AdaptiveClippingConfig(), expected_patients=1)
