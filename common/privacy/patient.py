"""What a patient brings to a private step, and what is minimised: for all ways in which gradients are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

# (logits (N, K, *spatial), labels (N, ...)) -> scalar, the mean over a patient's crops.
Loss = Callable[[Tensor, Tensor], Tensor]


class Patient(NamedTuple):
    """What one patient brings to one step."""

    crops: Tensor  # (N, C, *spatial)
    labels: Tensor  # (N, ...)
    # Of what the network draws for this patient (dropout). None: the operating system's randomness.
    seed: int | None = None


__all__ = ["Loss", "Patient"]
