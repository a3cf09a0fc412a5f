"""Every loss of the table: sample by sample, finite, least where the answer is right; numbers of MONAI and torch."""

import numpy as np
import pytest
import torch
from monai.losses.cldice import SoftclDiceLoss
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from scipy import ndimage
from skimage.morphology import skeletonize
from torch import Tensor, nn
from torch.nn import functional

from common.config import RunConfig, canonical, parse
from common.errors import ConfigError
from common.losses import LOSSES, Loss, terms
from common.losses.cldice import CLDice
from common.losses.dice_ce import DiceCE
from common.losses.focal import Focal
from common.losses.skeleton_recall import SkeletonRecall
from common.losses.terms import dice_ce
from common.losses.tversky import Tversky
from common.privacy.autotune import choose
from common.privacy.patient import Patient

RUN = """
name = "losses"
[data]
modality = "CT"
classes = ["liver", "lesion"]
[training]
patch-size = [16, 16]
[federation]
rounds = 1
"""
EVERY = [
    *[pytest.param(loss.model_validate({}), id=loss.__name__) for loss in LOSSES],
    pytest.param(DiceCE(class_weights=(0.2, 1.0, 3.0), dice=0.5), id="DiceCE-weighted"),
    pytest.param(Focal(class_weights=(0.2, 1.0, 3.0), dice=1.0), id="Focal-weighted"),
    pytest.param(Tversky(gamma=0.75, cross_entropy=0.5), id="Tversky-focal"),
    pytest.param(Tversky(gamma=0.5), id="Tversky-steep"),
    pytest.param(Focal(gamma=0.5), id="Focal-steep"),
]


def batch(*spatial: int, samples: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((samples, 3, *(spatial or (7, 9))), generator=generator)
    return logits, torch.randint(3, (samples, *(spatial or (7, 9))), generator=generator)


def with_loss(lines: str) -> str:
    return f"format = 2\n{RUN}[task]\n[task.loss]\n{lines}\n"


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("spatial", [(7, 9), (4, 5, 6)])
def test_a_samples_loss_and_gradient_are_those_it_has_alone(loss: Loss, spatial: tuple[int, ...]) -> None:
    logits, labels = batch(*spatial)
    leaf = logits.clone().requires_grad_()
    together = loss.of_each(leaf, labels)
    assert together.shape == (3,)
    alone = torch.cat([loss.of_each(logits[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together.detach(), alone)
    (gradient,) = torch.autograd.grad(together[1], leaf)
    assert not gradient[0].any()
    assert not gradient[2].any()
    assert gradient[1].any()


@pytest.mark.parametrize("loss", EVERY)
def test_the_right_answer_costs_least(loss: Loss) -> None:
    logits, labels = batch()
    right = 50.0 * functional.one_hot(labels, 3).movedim(-1, 1).float()
    wrong = 50.0 * functional.one_hot((labels + 1) % 3, 3).movedim(-1, 1).float()
    best, found, worst = (loss.of_each(some, labels) for some in (right, logits, wrong))
    assert (best < 0.05).all()
    assert (best < found).all()
    assert (found < worst).all()


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 1e4])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_one_class_alone_gives_finite_loss_and_gradient(loss: Loss, scale: float, label: int) -> None:
    logits = (scale * batch()[0]).requires_grad_()
    value = loss.of_each(logits, torch.full((3, 7, 9), label)).mean()
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", EVERY)
def test_half_precision_is_widened(loss: Loss) -> None:
    logits, labels = batch()
    found = loss.of_each(logits.bfloat16(), labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss.of_each(logits.bfloat16().float(), labels))


@pytest.mark.parametrize("loss", EVERY)
def test_a_private_step_can_take_it(loss: Loss) -> None:
    """The probe refuses losses that couple samples, and compares gradients in groups with those of one patient."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    images = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    assert choose(model, lambda logits, labels: loss.of_each(logits, labels).mean(), Patient(images, labels), 4)


def test_the_first_is_what_runs_train_with_that_name_none() -> None:
    logits, labels = batch()
    run = parse(RunConfig, RUN)
    assert torch.equal(run.task.loss(logits, labels), dice_ce(logits, labels))
    named = parse(RunConfig, with_loss('kind = "dice-ce"'))
    assert named.task == run.task
    assert '"loss"' not in canonical(run)


def test_weighted_cross_entropy_is_torchs() -> None:
    logits, labels = batch()
    weights = (0.2, 1.0, 3.0)
    found = DiceCE(class_weights=weights, dice=0.0).of_each(logits, labels)
    for place in range(3):
        theirs = functional.cross_entropy(logits[place, None], labels[place, None], weight=torch.tensor(weights))
        torch.testing.assert_close(found[place], theirs)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_monais(gamma: float) -> None:
    logits, labels = batch()
    theirs = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma, reduction="none")(logits, labels[:, None])
    torch.testing.assert_close(Focal(gamma=gamma).of_each(logits, labels), theirs.sum(1).flatten(1).mean(1))


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, labels = batch()
    theirs = functional.cross_entropy(logits, labels, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(Focal(gamma=0.0).of_each(logits, labels), theirs)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.5, 0.5), (0.9, 0.2)])
def test_tversky_is_monais(alpha: float, beta: float) -> None:
    logits, labels = batch()
    theirs = TverskyLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        alpha=alpha,
        beta=beta,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
        reduction="none",
    )(logits, labels[:, None])
    found = Tversky(alpha=alpha, beta=beta).of_each(logits, labels)
    torch.testing.assert_close(found, theirs.flatten(1).mean(1))


@pytest.mark.parametrize("spatial", [(12, 13), (8, 9, 7)])
def test_cldice_is_monais_on_each_sample_and_class(spatial: tuple[int, ...]) -> None:
    logits, labels = batch(*spatial)
    found = CLDice(weight=1.0).of_each(logits, labels) - DiceCE().of_each(logits, labels)
    truth = functional.one_hot(labels, 3).movedim(-1, 1).float()
    theirs = SoftclDiceLoss(iter_=3, smooth=1e-12)
    for place in range(3):
        by_class = [
            theirs(logits.softmax(1)[place : place + 1, number, None], truth[place : place + 1, number, None])
            for number in (1, 2)
        ]
        torch.testing.assert_close(found[place], torch.stack(by_class).mean())


def test_cldice_prices_a_cut_above_a_thinner_vessel() -> None:
    vessel = torch.zeros(1, 15, 40, dtype=torch.int64)
    vessel[:, 5:10, 2:38] = 1
    cut, thin = vessel.clone(), vessel.clone()
    cut[:, :, 18:22] = 0  # 20 voxels
    thin[:, 5, 2:22] = 0  # 20 voxels too
    found = {}
    for name, answer in (("cut", cut), ("thin", thin)):
        logits = 30.0 * functional.one_hot(answer, 2).movedim(-1, 1).float()
        found[name] = [float(CLDice(weight=weight).of_each(logits, vessel)) for weight in (0.0, 1.0)]
    assert found["cut"][0] == pytest.approx(found["thin"][0], rel=1e-3)  # the overlap is the same
    assert found["cut"][1] - found["cut"][0] > found["thin"][1] - found["thin"][0] + 0.02


@pytest.mark.parametrize("dims", [2, 3])
def test_the_tube_of_skeleton_recall_holds_scikit_images_skeleton(dims: int) -> None:
    """Thinning and the morphological skeleton choose other voxels; within the tube lie both."""
    vessel = _vessel(dims)
    line = skeletonize(vessel.numpy())
    missed = {}
    for name, answer in (("line", torch.from_numpy(line)), ("nothing", torch.zeros_like(vessel)), ("all", vessel > 0)):
        logits = 60.0 * functional.one_hot(answer.long(), 2).movedim(-1, 0).float()[None] - 30
        of_parts = [SkeletonRecall(weight=weight).of_each(logits, vessel[None].long()) for weight in (1.0, 0.0)]
        missed[name] = float(of_parts[0] - of_parts[1])
    assert missed["nothing"] == pytest.approx(1, abs=1e-3)
    assert missed["all"] == pytest.approx(0, abs=1e-3)
    # The line is a part of the tube that is as large as itself: all of it lies within.
    logits = torch.zeros(1, 2, *vessel.shape)
    tube = torch.autograd.grad(_recall(leaf := logits.clone().requires_grad_(), vessel), leaf)[0][0, 1] != 0
    assert (tube.numpy() & line).sum() >= 0.95 * line.sum()
    assert int(tube.sum()) < int(vessel.sum())  # and it is less than the whole


@pytest.mark.parametrize("iterations", [2, 5])
@pytest.mark.parametrize("spatial", [(40, 44), (15, 21, 18)])
def test_skeleton_recall_is_the_part_of_scipys_tube_that_is_missed(spatial: tuple[int, ...], iterations: int) -> None:
    """The tube by Lantuejoul's formula with SciPy; the first sample lacks a class, which then misses nothing."""
    rng = np.random.default_rng(0)
    labels = np.digitize(ndimage.gaussian_filter(rng.normal(size=(2, *spatial)), (0, *[3.0] * len(spatial))), [0, 0.05])
    labels[0][labels[0] == 2] = 1
    logits = torch.from_numpy(rng.normal(size=(2, 3, *spatial)).astype(np.float32))
    chances = logits.softmax(1).numpy()
    missed = [
        [_missed(labels[place] == number, chances[place, number], iterations) for number in (1, 2)]
        for place in range(2)
    ]
    assert missed[0][1] == 0
    truth = torch.from_numpy(labels.astype(np.int64))
    found = SkeletonRecall(iterations=iterations, weight=0.5).of_each(logits, truth) - DiceCE().of_each(logits, truth)
    assert found.numpy() == pytest.approx(0.5 * np.mean(missed, axis=1), abs=1e-4)


def _missed(mask: np.ndarray, chance: np.ndarray, iterations: int) -> float:
    """Of one class: the skeleton are the voxels that an opening takes from the mask, and from it eroded again."""
    cross, cube = ndimage.generate_binary_structure(mask.ndim, 1), np.ones((3,) * mask.ndim)
    line, eroded = np.zeros_like(mask), mask
    for _ in range(iterations + 1):
        smaller = ndimage.binary_erosion(eroded, cross, border_value=1)
        line |= eroded & ~ndimage.binary_dilation(smaller, cube)
        eroded = smaller
    tube = ndimage.binary_dilation(line, np.ones((5,) * mask.ndim)) & mask
    return 1 - float(chance[tube].sum() / tube.sum()) if tube.any() else 0.0


def _recall(logits: Tensor, vessel: Tensor) -> Tensor:
    return terms.skeleton_recall(terms.Voxels(logits, vessel[None].long()), 5).sum()


def _vessel(dims: int) -> Tensor:
    """A bar of 9 voxels that bends."""
    vessel = torch.zeros((40,) * dims)
    middle = (slice(16, 25),) * (dims - 2)
    vessel[(*middle, slice(6, 15), slice(4, 36))] = 1
    vessel[(*middle, slice(6, 36), slice(27, 36))] = 1
    return vessel


@pytest.mark.parametrize(
    "lines",
    [
        "class-weights = [1e300, 1.0, 1.0]",
        "class-weights = [1e-300, 1.0, 1.0]",
        "dice = 1e300",
        "dice = 0.0\ncross-entropy = 0.0",
        'kind = "focal"\ngamma = 1e300',
        'kind = "tversky"\nalpha = 0.0\nbeta = 0.0',
        'kind = "tversky"\ngamma = 0.0',
        'kind = "cldice"\niterations = 51',
        'kind = "skeleton-recall"\nweight = -1.0',
    ],
)
def test_what_cannot_be_computed_is_refused(lines: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.loss"):
        parse(RunConfig, with_loss(lines))


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("scale", [5.0, 20.0, 100.0])
def test_voxels_that_are_certain_leave_the_gradient_finite(loss: Loss, scale: float) -> None:
    logits, labels = batch()
    certain = (scale * functional.one_hot(labels, 3).movedim(-1, 1).float() + 0.01 * logits).requires_grad_()
    loss.of_each(certain, labels).mean().backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_weights_must_be_one_for_each_class() -> None:
    run = parse(RunConfig, with_loss("class-weights = [0.2, 1.0, 3.0]"))
    assert isinstance(run.task.criterion, DiceCE)  # type: ignore[attr-defined]  # of segmentation
    with pytest.raises(ConfigError, match="write 3, the background's first"):
        parse(RunConfig, with_loss("class-weights = [0.2, 1.0]"))


def test_a_key_of_another_loss_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        parse(RunConfig, with_loss('kind = "focal"\nalpha = 0.3'))
    with pytest.raises(ConfigError, match="loss"):
        parse(RunConfig, with_loss('kind = "focla"'))
