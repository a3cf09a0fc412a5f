"""Dice + cross entropy against numbers worked out by hand, torch's cross entropy and MONAI's Dice."""

import math

import pytest
import torch
from monai.losses.dice import DiceLoss
from torch.nn import functional

from common.losses.terms import dice_ce


def make_batch(samples: int = 3, classes: int = 3, edge: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, classes, edge, edge, generator=generator)
    return logits, torch.randint(classes, (samples, edge, edge), generator=generator)


def test_uniform_prediction_costs_what_the_formula_says() -> None:
    # Two voxels, one of them foreground, p = 1/2 everywhere: Dice = 2 * 0.5 / (1 + 1) = 0.5, cross entropy = ln 2.
    loss = dice_ce(torch.zeros(1, 2, 2), torch.tensor([[0, 1]]))
    assert float(loss) == pytest.approx(0.5 + math.log(2), abs=1e-4)


def test_it_is_torch_cross_entropy_plus_monai_dice() -> None:
    logits, target = make_batch()
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)(logits, target.unsqueeze(1))
    torch.testing.assert_close(dice_ce(logits, target), functional.cross_entropy(logits, target) + dice)


def test_a_perfect_prediction_costs_nothing() -> None:
    _, target = make_batch()
    logits = 50.0 * functional.one_hot(target, 3).movedim(-1, 1).float()
    assert float(dice_ce(logits, target)) == pytest.approx(0, abs=1e-5)


def test_the_batch_loss_is_the_mean_of_its_samples() -> None:
    logits, target = make_batch()
    alone = [dice_ce(logits[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(dice_ce(logits, target), torch.stack(alone).mean())


def test_a_sample_gets_the_gradient_it_would_get_alone() -> None:
    logits, target = make_batch()
    (together,) = torch.autograd.grad(dice_ce(leaf := logits.clone().requires_grad_(), target), leaf)
    (alone,) = torch.autograd.grad(dice_ce(leaf := logits[1:2].clone().requires_grad_(), target[1:2]), leaf)
    torch.testing.assert_close(together[1:2] * 3, alone)


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1e4])
def test_an_empty_mask_gives_finite_loss_and_gradient(scale: float) -> None:
    logits = (scale * make_batch()[0]).requires_grad_()
    loss = dice_ce(logits, torch.zeros(3, 7, 7, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_an_empty_mask_predicted_with_certainty_costs_nothing() -> None:
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1).expand(1, 2, 5).clone().requires_grad_()
    loss = dice_ce(logits, torch.zeros(1, 5, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_widened() -> None:
    logits, target = make_batch()
    loss = dice_ce(logits.bfloat16(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dice_ce(logits.bfloat16().float(), target))


def test_it_works_on_volumes_with_one_foreground_class() -> None:
    assert dice_ce(torch.zeros(2, 2, 3, 4, 5), torch.ones(2, 3, 4, 5, dtype=torch.int64)).isfinite()
