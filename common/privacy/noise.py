"""Gaussian noise for a clipped sum, from a cryptographic keystream, exact to the last bit that leaves.

Two things break a Gaussian mechanism that is right on paper: noise that can be foretold, and the low bits of floats,
from which the sum can be read off (Mironov 2012, https://doi.org/10.1145/2382196.2382264; Holohan and Braghin 2021,
https://arxiv.org/abs/2107.10138). Here

- the bits are an AES-256-CTR keystream. Each call draws its key from the operating system and drops it, so there is no
  counter to repeat, no state for a forked process to share, and no seed that reaches it;
- sum and noise are integer multiples of one power of two, the step, before they meet. Let R round to the step. For a
  multiple s of it, s + R(z) = R(s + z): what leaves is a function of s plus ideal noise, so it reveals no more than the
  ideal Gaussian mechanism, whatever its low bits are, under every accountant. Rounding moves the sum by at most
  step / 2 per value; the noise is larger by as much, see `deviation`;
- R(z) is the true rounding. z = sqrt(-2 ln u) cos(2 pi v) (Box and Muller 1958) is taken in float64 from u and v of 63
  and 64 bits, and where those or float64 cannot decide between two multiples (a few in a million), it is computed again
  with 40 digits from 64 bits more. What remains of the difference to the ideal is a probability below 2^-90 a value.

Sum and noise meet without error while they stay below 2^52 steps; what a tensor's type then drops is dropped from noisy
values. The time a draw takes depends on the noise alone.
"""

import math
import os
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

# Steps in the clipping norm, at least: what rounding adds to a model of 2 million values is 9e-5 of the noise.
_STEPS_IN_NORM = 2**24
# Steps in a standard deviation, at most: more could not be decided in float64 often enough.
_STEPS_IN_DEVIATION = 2**28
# What clipping may do to a norm beyond the bound: in double precision its rounding is far below this.
_CLIPPING_ERROR = 2.0**-12
# Values drawn together; their intermediate results stay in the cache.
_CHUNK = 2**15

# Bound of the error of a standard normal value in float64, for u at least 2^-17 away from 0 and 1. Its parts, each at
# its worst u: 2^-45 from rounding u, 2^-49 from the bits of u that were not drawn, 2^-48 from the angle.
_ERROR = 2.0**-44
_RADIUS_BITS, _MORE_BITS = 63, 64
_EDGE = 2**46
_DIGITS = 40
_PI = Decimal("3.14159265358979323846264338327950288419716939937510")

Entropy = Callable[[int], bytes]


def noised(sums: Sequence[Tensor], *, clipping_norm: float, noise_multiplier: float) -> list[Tensor]:
    """Add the Gaussian mechanism's noise to a sum of clipped gradients.

    Args:
        sums: finite tensors, together one vector; one patient moves it by at most `clipping_norm`.
        clipping_norm: L2.
        noise_multiplier: standard deviation over clipping norm, as it is accounted for; > 0.

    Returns:
        Tensors like `sums`, in their type and on their device.
    """
    count = sum(tensor.numel() for tensor in sums)
    step = grid_step(clipping_norm, noise_multiplier)
    scale = deviation(clipping_norm, noise_multiplier, count) / step
    steps = gaussian_steps(count, scale)
    ends = np.cumsum([0, *(tensor.numel() for tensor in sums)])
    return [
        (on_grid(tensor, step) + step * steps[start:end].to(tensor.device).view(tensor.shape)).to(tensor.dtype)
        for tensor, (start, end) in zip(sums, pairwise(ends), strict=True)
    ]


def grid_step(clipping_norm: float, noise_multiplier: float) -> float:
    """The step of the grid that sum and noise are rounded to: a power of two."""
    step = max(clipping_norm / _STEPS_IN_NORM, noise_multiplier * clipping_norm / _STEPS_IN_DEVIATION)
    return 2.0 ** math.floor(math.log2(step))


def deviation(clipping_norm: float, noise_multiplier: float, count: int) -> float:
    """Standard deviation of the noise for a sum of `count` values.

    A patient's clipped gradient is, once rounded, at most step / 2 * sqrt(count) longer, and two sums that are rounded
    themselves are at most step * sqrt(count) further apart.
    """
    rounding = grid_step(clipping_norm, noise_multiplier) * math.sqrt(count)
    return noise_multiplier * (clipping_norm * (1 + _CLIPPING_ERROR) + rounding)


def on_grid(values: Tensor, step: float) -> Tensor:
    """The nearest multiples of the step, in float64."""
    return (values.double() / step).round_().mul_(step)


def gaussian_steps(count: int, scale: float, entropy: Entropy = os.urandom) -> Tensor:
    """Independent draws of R(scale * z), z standard normal, R to the nearest integer.

    Args:
        count: of values.
        scale: standard deviation; at most 2^29.
        entropy: of the keystream's key and of the bits of undecided values; another one than the operating system's
            is for tests.

    Returns:
        (count,) float64 on the CPU, whole numbers.
    """
    stream = keystream(entropy(32))
    steps = torch.empty(count, dtype=torch.float64)
    for chunk in torch.split(steps, _CHUNK):
        pairs = (len(chunk) + 1) // 2
        words = np.frombuffer(stream(16 * pairs), dtype="<i8").reshape(2, pairs)
        chunk.copy_(_chunk(words, scale, entropy)[: len(chunk)])
    return steps


def keystream(key: bytes) -> Callable[[int], bytes]:
    """The next bytes of AES-256-CTR under a key used for nothing else, its counter from 0 (NIST SP 800-38A)."""
    encryptor = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    return lambda length: encryptor.update(bytes(length))


def _chunk(words: np.ndarray, scale: float, entropy: Entropy) -> Tensor:
    """(2, pairs) random int64 to 2 * pairs rounded values: first all cosines, then all sines."""
    radius_bits = torch.from_numpy(words[0] & (2**_RADIUS_BITS - 1))
    angle_bits = torch.from_numpy(words[1].copy())
    radius = (radius_bits.double() + 0.5).mul_(2.0**-_RADIUS_BITS).log_().mul_(-2).sqrt_().mul_(scale)
    angle = angle_bits.double().mul_(2 * math.pi * 2.0**-64)  # v in [-1/2, 1/2)
    exact = torch.cat([radius * angle.cos(), radius * angle.sin()])
    steps = exact.round()
    undecided = (exact.sub_(steps).abs_() > 0.5 - scale * _ERROR).view(2, -1)
    undecided |= (radius_bits < _EDGE) | (radius_bits >= 2**_RADIUS_BITS - _EDGE)
    for pair in undecided.any(dim=0).nonzero().flatten().tolist():
        cosine, sine = _exactly(int(radius_bits[pair]), int(angle_bits[pair]), scale, entropy)
        steps[pair], steps[pair + len(radius_bits)] = cosine, sine
    return steps


def _exactly(radius_bits: int, angle_bits: int, scale: float, entropy: Entropy) -> tuple[float, float]:
    """The pair of values that these bits begin, rounded, from as many further bits as decide it."""
    with localcontext() as context:
        context.prec = _DIGITS
        u = _extended(radius_bits, entropy) / 2 ** (_RADIUS_BITS + _MORE_BITS)
        turn = _extended(angle_bits, entropy) / 2 ** (64 + _MORE_BITS)
        radius = (-2 * u.ln()).sqrt() * Decimal(scale)
        cosine, sine = _cosine(turn), _cosine(turn - Decimal("0.25"))
        return float((radius * cosine).to_integral_value()), float((radius * sine).to_integral_value())


def _extended(bits: int, entropy: Entropy) -> Decimal:
    """The middle of the interval that these bits and further random ones name."""
    return Decimal(bits << _MORE_BITS | int.from_bytes(entropy(_MORE_BITS // 8), "little")) + Decimal("0.5")


def _cosine(turn: Decimal) -> Decimal:
    """Of 2 pi * turn, by its series around 0."""
    square = (2 * _PI * (turn - turn.to_integral_value())) ** 2
    term = total = Decimal(1)
    order = 0
    while abs(term) > Decimal(10) ** -_DIGITS:
        order += 2
        term *= -square / (order * (order - 1))
        total += term
    return total
