"""The noise against the normal distribution, 60-digit arithmetic, AES put together by hand, and forked processes."""

import hashlib
import math
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.privacy.noise import deviation, gaussian_steps, grid_step, keystream, noised, on_grid
from tests.patience import PATIENCE_S

CHUNK = 2**15  # values that are drawn from one stretch of the keystream
SCALE = 2.0**26

# Prints digests of noise drawn by a process, by two children forked from it, and by a child of a child.
FORKING = """
import hashlib, os, sys
import torch
from common.privacy.noise import gaussian_steps
torch.set_num_threads(1)
gaussian_steps(10, 1e6)  # whatever a process keeps, it has by now
def draw():
    for _ in range(2):
        values = gaussian_steps(1000, 1e6).numpy().tobytes()
        print(hashlib.sha256(values).hexdigest(), flush=True)
for depth in (1, 1, 2):
    if (child := os.fork()) == 0:
        if depth == 2 and (grandchild := os.fork()):
            os.waitpid(grandchild, 0)
        draw()
        os._exit(0)
    os.waitpid(child, 0)
draw()
"""


def repeatable(seed: int) -> Callable[[int], bytes]:
    """Entropy that only a test may have."""
    numbers = count()
    return lambda length: hashlib.shake_256(f"{seed} {next(numbers)}".encode()).digest(length)


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    """Four million values that should be standard normal."""
    return gaussian_steps(4_000_000, SCALE, repeatable(1)).numpy() / SCALE


def test_keystream_is_aes_256_of_a_counter_from_zero():
    key = bytes(range(32))
    block = Cipher(AES(key), ECB()).encryptor().update  # noqa: S305 -- the counter mode is put together from it
    expected = b"".join(block(number.to_bytes(16, "big")) for number in range(40))
    stream = keystream(key)
    assert stream(5) + stream(0) + stream(600) + stream(35) == expected
    # NIST SP 800-38A has no vector that starts at 0; FIPS 197 C.3 pins the block cipher under it.
    plain = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert block(plain).hex() == "8ea2b7ca516745bfeafc49904b496089"


def test_values_follow_the_normal_distribution(normal):
    assert stats.kstest(normal[:1_000_000], "norm").pvalue > 1e-3
    edges = stats.norm.ppf(np.linspace(0, 1, 501))
    assert stats.chisquare(np.histogram(normal, edges)[0]).pvalue > 1e-3
    size = len(normal)
    assert abs(normal.mean()) < 4 / math.sqrt(size)
    assert abs(normal.var() - 1) < 4 * math.sqrt(2 / size)
    assert abs((normal**3).mean()) < 4 * math.sqrt(15 / size)
    assert abs((normal**4).mean() - 3) < 4 * math.sqrt(96 / size)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("bound", [2, 3, 4, 5])
def test_tails_hold_as_many_values_as_they_should(normal, bound, sign):
    beyond, expected = int((sign * normal > bound).sum()), len(normal) * stats.norm.sf(bound)
    low, high = stats.poisson.ppf([1e-4, 1 - 1e-4], expected)
    assert low <= beyond <= high


def test_values_do_not_depend_on_each_other(normal):
    size = 2**20
    for lag in (1, 2, CHUNK // 2 - 1, CHUNK // 2, CHUNK // 2 + 1, CHUNK, 1_000_003):
        first, second = normal[:size], normal[lag : lag + size]
        for power in (1, 2):
            correlation = np.corrcoef(first**power, second**power)[0, 1]
            assert abs(correlation) < 4.5 / math.sqrt(size), (lag, power)


def test_low_bits_are_uniform():
    steps = gaussian_steps(1_000_000, SCALE, repeatable(2)).numpy().astype(np.int64)
    for shift in (0, 6, 12):
        assert stats.chisquare(np.bincount(steps >> shift & 63, minlength=64)).pvalue > 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.0**24 * 1.1, 2.0**29])
def test_every_value_is_the_true_rounding_of_the_gaussian_that_its_bits_name(scale):
    for number in range(10):
        key = hashlib.sha256(f"{scale} {number}".encode()).digest()
        words = np.frombuffer(keystream(key)(8 * CHUNK), dtype="<i8").reshape(2, -1)
        steps = gaussian_steps(CHUNK, scale, partial(lambda key, length: key if length == 32 else bytes(length), key))
        assert_rounded_truly(words, steps, scale, range(100))


@pytest.mark.parametrize("scale", [1.0, 2.0**29])
def test_values_that_64_bits_or_a_float_cannot_decide_are_rounded_truly(scale, monkeypatch):
    source = np.random.default_rng(1)
    low = np.concatenate([np.arange(50), 2 ** np.arange(6, 48)])
    ends = np.concatenate([low, 2**63 - 1 - low])
    found = [np.stack([ends, source.integers(-(2**63), 2**63, len(ends), dtype=np.int64)])]
    for _ in range(32):  # eight million pairs, of which those are taken that are nearest to where rounding changes
        words = source.integers(-(2**63), 2**63, (2, 2**18), dtype=np.int64)
        found.append(words[:, near_half(words[0] & (2**63 - 1), words[1], scale) < 2.0**-46 * scale])
    words = np.concatenate(found, axis=1)
    pairs = words.shape[1]
    monkeypatch.setattr("common.privacy.noise.keystream", lambda _key: lambda _length: words.tobytes())
    steps = gaussian_steps(2 * pairs, scale, bytes)
    assert_rounded_truly(words, steps, scale, range(pairs))
    assert pairs > len(ends) + (100 if scale > 1 else -1)


def assert_rounded_truly(words, steps, scale, pairs):
    """Against mpmath, where the bits go on with zeros."""
    for pair in pairs:
        radius, angle = int(words[0, pair]) & (2**63 - 1), int(words[1, pair])
        true = tuple(int(mpmath.nint(value)) for value in true_pair(radius, angle, scale))
        assert (steps[pair], steps[pair + words.shape[1]]) == true


def near_half(radius, angle, scale):
    """How far a pair is, at its nearest, from where rounding changes; in float64."""
    length = scale * np.sqrt(-2 * np.log((radius + 0.5) / 2.0**63))
    pair = np.stack([length * np.cos(2 * np.pi * angle / 2.0**64), length * np.sin(2 * np.pi * angle / 2.0**64)])
    return np.abs(np.abs(pair - np.round(pair)) - 0.5).min(axis=0)


def true_pair(radius: int, angle: int, scale: float) -> tuple[Any, Any]:
    with mpmath.workdps(60):
        u = (mpmath.mpf(radius << 64) + 0.5) / mpmath.mpf(2) ** 127
        turn = (mpmath.mpf(angle << 64) + 0.5) / mpmath.mpf(2) ** 128
        length = scale * mpmath.sqrt(-2 * mpmath.log(u))
        return length * mpmath.cospi(2 * turn), length * mpmath.sinpi(2 * turn)


@pytest.mark.parametrize("size", [0, 1, 2, 3, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_any_number_of_values_can_be_drawn(size):
    steps = gaussian_steps(size, SCALE)
    assert steps.shape == (size,)
    assert bool((steps == steps.round()).all())
    assert len(steps.unique()) >= size - 60  # 65,543 values of some 2^28: fewer than 20 pairs meet by chance


def test_every_call_asks_the_operating_system_for_a_new_key(monkeypatch):
    asked = []

    def zeros(length):
        asked.append(length)
        return bytes(length)

    gaussian_steps(100, SCALE, zeros)
    gaussian_steps(100, SCALE, zeros)
    assert asked.count(32) == 2
    assert not torch.equal(gaussian_steps(100, SCALE), gaussian_steps(100, SCALE))


def test_no_seed_reaches_the_noise():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        draws.append(noised([torch.zeros(50)], clipping_norm=1.0, noise_multiplier=1.0)[0])
    assert not bool((draws[0] == draws[1]).any())


def test_forked_processes_never_share_noise():
    output = subprocess.run(
        [sys.executable, "-c", FORKING], check=True, timeout=PATIENCE_S, capture_output=True, text=True
    )
    digests = output.stdout.split()
    assert len(digests) == 10
    assert len(set(digests)) == 10


def test_noise_is_added_to_every_tensor_in_its_shape_and_type():
    sums = [torch.zeros(300, 200), torch.ones(()), torch.full((7, 1, 3), 5.0, dtype=torch.float64), torch.zeros(0)]
    before = [tensor.clone() for tensor in sums]
    noisy = noised(sums, clipping_norm=0.5, noise_multiplier=2.0)
    assert [(one.shape, one.dtype) for one in noisy] == [(one.shape, one.dtype) for one in sums]
    assert all(torch.equal(one, other) for one, other in zip(sums, before, strict=True))
    assert float(noisy[0].std()) == pytest.approx(1.0, abs=0.015)
    assert not torch.equal(noisy[2] - 5, torch.zeros(7, 1, 3))


@pytest.mark.parametrize(("clip", "multiplier"), [(1.0, 1.0), (0.3, 0.5), (7.0, 40.0), (1e-3, 300.0)])
def test_noise_has_the_deviation_that_is_accounted_for_and_hardly_more(clip, multiplier):
    size = 1_000_000
    assert 1 <= deviation(clip, multiplier, size) / (multiplier * clip) < 1.003
    noisy = noised([torch.zeros(size)], clipping_norm=clip, noise_multiplier=multiplier)[0]
    assert float(noisy.double().std()) / deviation(clip, multiplier, size) == pytest.approx(1, abs=0.0045)


@pytest.mark.parametrize("multiplier", [0.5, 3.0, 500.0])
def test_what_leaves_lies_on_the_grid_whatever_the_sum_is(multiplier):
    step = grid_step(0.7, multiplier)
    assert math.log2(step).is_integer()
    sums = torch.randn(100_000, dtype=torch.float64) * 3
    noisy = noised([sums], clipping_norm=0.7, noise_multiplier=multiplier)[0] / step
    assert bool((noisy == noisy.round()).all())


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50),
    st.floats(1e-3, 1e3),
    st.floats(0.01, 5000),
    st.integers(0, 2**32 - 1),
)
def test_two_sums_a_clipping_norm_apart_stay_within_what_the_noise_covers(values, clip, multiplier, seed):
    step = grid_step(clip, multiplier)
    first = torch.tensor(values, dtype=torch.float64)
    change = torch.randn(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    second = first + change * (clip / change.norm())
    apart = float((on_grid(first, step) - on_grid(second, step)).norm())
    assert apart * multiplier <= deviation(clip, multiplier, len(values)) * (1 + 1e-9)


def test_two_sums_that_rounding_moves_apart_in_every_value_stay_within_what_the_noise_covers():
    size, step = 2**20, 2.0**-24
    clip = math.sqrt(size) * (2**14 + 0.02) * step
    first = torch.full((size,), 0.49 * step, dtype=torch.float64)
    second = first + (2**14 + 0.02) * step
    assert grid_step(clip, 1.0) == step
    apart = float((on_grid(first, step) - on_grid(second, step)).norm())
    assert apart > clip * 1.00005
    assert apart <= deviation(clip, 1.0, size) - clip * 2.0**-12  # which is there for the clipping's own rounding


def test_rounding_forgets_what_lies_below_the_step():
    step = grid_step(1.0, 1.0)
    whole = torch.arange(-500, 500, dtype=torch.float64) * step
    below = whole + 0.49 * step * torch.linspace(-1, 1, 1000, dtype=torch.float64)
    assert torch.equal(on_grid(below, step), whole)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_noise_is_the_same_mechanism_on_every_device(device):
    sums = torch.zeros(1_000_000, device=device)
    noisy = noised([sums], clipping_norm=1.0, noise_multiplier=2.0)[0]
    assert noisy.device == sums.device
    assert float(noisy.double().std()) == pytest.approx(deviation(1.0, 2.0, 1_000_000), rel=0.0045)
