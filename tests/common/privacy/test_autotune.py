"""What the trial refuses before any patient is looked at: gradients that depend on what memory held."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError
from common.losses.terms import dice_ce
from common.privacy import autotune
from common.privacy.autotune import choose
from common.privacy.patient import Patient


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_remembered", {})


class _Dirty(torch.autograd.Function):
    """A kernel whose gradient has a part that it never wrote: whatever the memory held that it was given."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return gradient + torch.empty(4096)[:1024].sum().nan_to_num(1.0)


class Careless(nn.Module):
    """A network that works with memory it did not clean."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = _Dirty.apply(self.convolution(images))
        return logits


class InHalf(nn.Module):
    """Volumes in bfloat16, down to two slices."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 16, 3, padding=1)
        self.last = nn.Conv3d(16, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.last(self.convolution(images).relu())
        return logits


def patient(*spatial: int) -> Patient:
    return Patient(torch.zeros(2, 1, *spatial), torch.zeros(2, *spatial, dtype=torch.int64))


@pytest.mark.parametrize("held", [float("nan"), 0.0, 3.0])
def test_a_gradient_that_depends_on_what_memory_held_is_refused(held: float) -> None:
    """Whatever a long-lived process has left in holes of all sizes, NaN among it, in one trial as in the other."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(4096, 6000, (2000,), generator=generator).tolist()
    holes = [torch.full((size,), held) for size in sizes]
    _between = holes[::2]
    del holes
    with pytest.raises(PrivacyError, match="what another patient left in memory") as refused:
        choose(Careless(), dice_ce, patient(8, 8), 4)
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_the_same_network_with_clean_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Dirty, "backward", staticmethod(lambda _context, gradient: gradient))
    assert choose(Careless(), dice_ce, patient(8, 8), 4)


def test_half_precision_volumes_of_two_slices_are_refused_or_repeat_bit_for_bit() -> None:
    """torch 2.13 reads memory that it never wrote there, on processors with bfloat16; others may be used."""
    torch.manual_seed(0)
    model, generator = InHalf(), torch.Generator().manual_seed(1)
    crops, labels = torch.randn(2, 1, 2, 8, 8, generator=generator), torch.randint(2, (2, 2, 8, 8), generator=generator)

    def gradient(filled: float) -> Tensor:
        blocks = [torch.full((1 << power,), filled) for power in range(8, 20) for _ in range(8)]
        del blocks
        model.zero_grad(set_to_none=True)
        dice_ce(model(crops), labels).backward()
        return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])

    first = gradient(0.0)
    if all(torch.equal(first, gradient(filled)) for filled in (float("nan"), 5.0, float("nan"), 5.0)):
        choose(model, dice_ce, patient(2, 8, 8), 4)
    else:
        with pytest.raises(PrivacyError, match="what another patient left in memory"):
            choose(model, dice_ce, patient(2, 8, 8), 4)
