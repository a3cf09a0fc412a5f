"""Losses of classes that overlap: numbers of torch and MONAI, sample by sample, and fit for a private step."""

from typing import Any

import pytest
import torch
from monai.losses.cldice import SoftclDiceLoss
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor, nn
from torch.nn import functional

from common.losses import LOSSES, Loss
from common.losses.cldice import CLDice
from common.losses.dice_ce import DiceCE
from common.losses.focal import Focal
from common.losses.skeleton_recall import SkeletonRecall
from common.losses.tversky import Tversky
from common.privacy.autotune import choose
from common.privacy.patient import Patient

CLASSES = 3
EVERY = [
    *[pytest.param(loss.model_validate({}), id=loss.__name__) for loss in LOSSES],
    pytest.param(DiceCE(class_weights=(0.2, 1.0, 3.0), dice=0.5), id="DiceCE-weighted"),
    pytest.param(Focal(gamma=0.5, class_weights=(0.2, 1.0, 3.0), dice=1.0), id="Focal-weighted"),
    pytest.param(Tversky(gamma=0.75, cross_entropy=0.5), id="Tversky-focal"),
]


def batch(*spatial: int, samples: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels as bits, and the same as one map a class (N, K, *spatial) float."""
    generator = torch.Generator().manual_seed(seed)
    size = spatial or (7, 9)
    truth = torch.rand((samples, CLASSES, *size), generator=generator) < 0.4
    labels = (truth * torch.tensor([1, 2, 4]).view(1, -1, *[1] * len(size))).sum(1)
    return torch.randn((samples, CLASSES, *size), generator=generator), labels, truth.float()


def by_sample(loss: nn.Module, logits: Tensor, truth: Tensor) -> Tensor:
    return torch.stack([loss(logits[i : i + 1], truth[i : i + 1]) for i in range(len(logits))])


@pytest.mark.parametrize("spatial", [(7, 9), (4, 5, 6)])
def test_cross_entropy_is_torchs_of_each_class_by_itself(spatial: tuple[int, ...]) -> None:
    logits, labels, truth = batch(*spatial)
    found = DiceCE(dice=0.0).of_each(logits, labels, overlap=True)
    torch.testing.assert_close(found, by_sample(nn.BCEWithLogitsLoss(), logits, truth))
    weights = (0.5, 2.0, 7.0)
    heavy = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights).view(-1, *[1] * len(spatial)))
    found = DiceCE(dice=0.0, class_weights=weights).of_each(logits, labels, overlap=True)
    torch.testing.assert_close(found, by_sample(heavy, logits, truth))


@pytest.mark.parametrize("spatial", [(7, 9), (4, 5, 6)])
def test_dice_focal_tversky_and_cldice_are_monais(spatial: tuple[int, ...]) -> None:
    logits, labels, truth = batch(*spatial)
    exact: dict[str, Any] = {"smooth_nr": 1e-5, "smooth_dr": 1e-5}
    oracles: list[tuple[Loss, Any]] = [
        (DiceCE(cross_entropy=0.0), DiceLoss(sigmoid=True, **exact)),
        (Focal(gamma=2.0), FocalLoss(gamma=2.0)),
        (Tversky(alpha=0.3, beta=0.7), TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, **exact)),
    ]
    for ours, theirs in oracles:
        torch.testing.assert_close(ours.of_each(logits, labels, overlap=True), by_sample(theirs, logits, truth))
    plain = DiceCE().of_each(logits, labels, overlap=True)
    lines = CLDice(weight=1.0, iterations=3).of_each(logits, labels, overlap=True) - plain
    chances, theirs = logits.sigmoid(), SoftclDiceLoss(iter_=3, smooth=1e-12)
    of_classes = [by_sample(theirs, chances[:, k : k + 1], truth[:, k : k + 1]) for k in range(CLASSES)]
    torch.testing.assert_close(lines, torch.stack(of_classes).mean(0), atol=1e-5, rtol=1e-4)


def test_a_crossing_is_a_part_of_both_lines() -> None:
    """A horizontal and a vertical vessel: where only the first is claimed all of the second is missed."""
    labels = torch.zeros(1, 15, 15, dtype=torch.int64)
    labels[0, 7, :] += 1
    labels[0, :, 7] += 2
    first = torch.full((1, 2, 15, 15), -50.0)
    first[0, 0, 7, :] = 50.0
    both = first.clone()
    both[0, 1, :, 7] = 50.0
    loss = SkeletonRecall(weight=1.0)
    missed = loss.of_each(first, labels, overlap=True) - DiceCE().of_each(first, labels, overlap=True)
    torch.testing.assert_close(missed, torch.tensor([0.5]), atol=1e-3, rtol=0)
    assert float(loss.of_each(both, labels, overlap=True)) < 1e-3


@pytest.mark.parametrize("loss", EVERY)
def test_a_samples_loss_and_gradient_are_those_it_has_alone(loss: Loss) -> None:
    logits, labels, _ = batch()
    leaf = logits.clone().requires_grad_()
    together = loss.of_each(leaf, labels, overlap=True)
    alone = torch.cat([loss.of_each(logits[i : i + 1], labels[i : i + 1], overlap=True) for i in range(3)])
    torch.testing.assert_close(together.detach(), alone)
    (gradient,) = torch.autograd.grad(together[1], leaf)
    assert [bool(one.any()) for one in gradient] == [False, True, False]


@pytest.mark.parametrize("loss", EVERY)
def test_the_right_answer_costs_least(loss: Loss) -> None:
    logits, labels, truth = batch()
    best, found, worst = (
        loss.of_each(one, labels, overlap=True) for one in (100 * truth - 50, logits, 50 - 100 * truth)
    )
    assert (best < 0.05).all()
    assert (best < found).all()
    assert (found < worst).all()


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("label", [0, 1, 7])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_loss_and_gradient_are_finite(loss: Loss, label: int, scale: float) -> None:
    logits = (scale * batch()[0]).bfloat16().requires_grad_()
    value = loss.of_each(logits, torch.full((3, 7, 9), label), overlap=True)
    assert value.dtype == torch.float32
    value.mean().backward()
    assert value.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", EVERY)
def test_a_private_step_can_take_it(loss: Loss) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))
    images = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = batch(8, 8, samples=2)[1]

    def of_step(logits: Tensor, labels: Tensor) -> Tensor:
        return loss.of_each(logits, labels, overlap=True).mean()

    assert choose(model, of_step, Patient(images, labels), 4)


def test_without_overlap_nothing_is_what_it_was_not() -> None:
    """The loss of one class a voxel, from torch alone: to the bit what it was before classes could overlap."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn((3, 3, 7, 9), generator=generator), torch.randint(3, (3, 7, 9), generator=generator)
    logs = functional.log_softmax(logits, 1).flatten(2)
    truth = functional.one_hot(labels, 3).movedim(-1, 1).flatten(2).float()
    claimed, present = logs[:, 1:].exp(), truth[:, 1:]
    dice = 1 - ((2 * (claimed * present).sum(2) + 1e-5) / (claimed.sum(2) + present.sum(2) + 1e-5)).mean(1)
    assert torch.equal(DiceCE().of_each(logits, labels), dice - (logs * truth).sum(1).mean(1))
