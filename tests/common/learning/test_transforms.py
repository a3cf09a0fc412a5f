"""Training crops: sizes, places, and labels that stay true under augmentation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common.config import TrainingConfig
from common.learning.transforms import Stack, sample_crops

OFF = {"flips": False, "rotation_degrees": 0, "scaling": 0, "intensity": 0}


def make_training(patch: tuple[int, ...], fraction: float = 0.5, **augmentation: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {"patch_size": patch, "foreground_fraction": fraction, "augmentation": {**OFF, **augmentation}}
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_stack(*shape: int, seed: int = 0) -> Stack:
    """Smooth blobs as labels; the image is the label, so that both must move alike."""
    noise = torch.rand(shape[0], 1, *shape[1:], generator=generator(seed))
    pool = functional.avg_pool2d if len(shape) == 3 else functional.avg_pool3d
    labels = (pool(noise, 7, stride=1, padding=3, count_include_pad=False) > 0.5).squeeze(1).to(torch.uint8)
    return Stack.of(labels.unsqueeze(1).float(), labels)


def one_voxel(size: int, at: tuple[int, int]) -> Stack:
    labels = torch.zeros(1, size, size, dtype=torch.uint8)
    labels[0][at] = 1
    return Stack.of(labels.unsqueeze(1).float(), labels)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((3, 33, 47), (16, 24)),
        ((1, 9, 40), (16, 16)),
        ((2, 1, 1), (8, 8)),
        ((1, 17, 21, 30), (8, 8, 16)),
        ((1, 7, 40, 8), (8, 16, 16)),
    ],
)
def test_crops_have_the_patch_size_whatever_the_study_size(
    shape: tuple[int, ...], patch: tuple[int, ...], fraction: float
) -> None:
    training = make_training(patch, fraction, flips=True, rotation_degrees=30, scaling=0.2, intensity=0.1)
    images, labels = sample_crops([make_stack(*shape)] * 5, training, generator())
    assert images.shape == (5, 1, *patch)
    assert labels.shape == (5, *patch)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.isfinite().all()


def test_without_augmentation_a_crop_is_a_piece_of_the_study() -> None:
    labels = torch.arange(20 * 30).remainder(255).to(torch.uint8).reshape(1, 20, 30)
    stack = Stack.of(torch.arange(20.0 * 30).reshape(1, 1, 20, 30), labels)
    images, crops = sample_crops([stack] * 20, make_training((8, 12)), generator())
    for image, crop in zip(images[:, 0], crops, strict=True):
        row, column = divmod(int(image[0, 0]), 30)
        assert torch.equal(image, stack.images[0, 0, row : row + 8, column : column + 12])
        assert torch.equal(crop, labels[0, row : row + 8, column : column + 12].long())


def test_a_small_study_lies_in_the_middle_of_zeros() -> None:
    stack = Stack.of(torch.ones(1, 1, 3, 5), torch.ones(1, 3, 5, dtype=torch.uint8))
    image, labels = sample_crops([stack], make_training((8, 8)), generator())
    expected = torch.zeros(8, 8)
    expected[2:5, 1:6] = 1
    assert torch.equal(image[0, 0], expected) or torch.equal(image[0, 0], expected.roll((1, 1), (0, 1)))
    assert torch.equal(labels[0].float(), image[0, 0])


@pytest.mark.parametrize("at", [(0, 0), (31, 31), (0, 17), (16, 9)])
def test_foreground_crops_show_the_foreground_wherever_it_lies(at: tuple[int, int]) -> None:
    _, labels = sample_crops([one_voxel(32, at)] * 30, make_training((8, 8), fraction=1.0), generator())
    assert (labels.flatten(1).sum(1) == 1).all()


def test_foreground_lies_anywhere_in_the_central_half_of_the_crop() -> None:
    _, labels = sample_crops([one_voxel(64, (30, 30))] * 400, make_training((8, 8), fraction=1.0), generator())
    rows = labels.sum(2).argmax(1)
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}


def test_every_place_and_slice_is_drawn_without_foreground() -> None:
    places = torch.arange(2.0 * 5 * 5).reshape(2, 1, 5, 5)
    stack = Stack.of(places, torch.zeros(2, 5, 5, dtype=torch.uint8))
    images, _ = sample_crops([stack] * 400, make_training((3, 3), fraction=1.0), generator())
    corners = {int(value) for value in images[:, 0, 0, 0]}
    assert corners == {25 * z + 5 * y + x for z in range(2) for y in range(3) for x in range(3)}


def test_foreground_is_drawn_uniformly_over_voxels_of_all_slices() -> None:
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[0, 8, 8] = 1
    labels[1, 4:12, 4:12] = 2
    _, crops = sample_crops(
        [Stack.of(torch.zeros(2, 1, 16, 16), labels)] * 600, make_training((16, 16), 1.0), generator()
    )
    share = float((crops == 1).any(-1).any(-1).float().mean())
    assert share == pytest.approx(1 / 65, abs=0.02)


def test_balanced_foreground_draws_a_class_and_then_a_voxel_of_it() -> None:
    """Of 1 voxel among 4,161; by the shares of a fair coin of three sides, and by the places of each class."""
    labels = torch.zeros(2, 80, 80, dtype=torch.uint8)
    labels[0, 8, 8] = 1
    labels[1, 4:68, 4:68] = 2
    labels[0, 40:46, 40:50] = 7
    stack = Stack.of(torch.zeros(2, 1, 80, 80), labels, by_class=True)
    assert [len(index) for index in stack.foreground] == [1, 64 * 64, 60]
    _, crops = sample_crops([stack] * 900, make_training((4, 4), 1.0), generator())
    shares = [float((crops == number).flatten(1).any(1).float().mean()) for number in (1, 2, 7)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)
    usual = Stack.of(torch.zeros(2, 1, 80, 80), labels)
    _, crops = sample_crops([usual] * 900, make_training((4, 4), 1.0), generator())
    assert float((crops == 1).flatten(1).any(1).float().mean()) < 0.01


def test_balanced_foreground_of_classes_that_overlap_is_each_classs_own() -> None:
    """A lesion of 4 voxels within a liver of 900: each is the middle of half of the crops."""
    labels = torch.zeros(1, 60, 60, dtype=torch.uint8)
    labels[0, 10:40, 10:40] = 1
    labels[0, 20:22, 20:22] = 1 + 128
    stack = Stack.of(torch.zeros(1, 1, 60, 60), labels, by_class=True, overlap=True)
    assert [len(index) for index in stack.foreground] == [900, 4]
    _, crops = sample_crops([stack] * 600, make_training((4, 4), 1.0), generator())
    assert float((crops >= 128).flatten(1).any(1).float().mean()) == pytest.approx(0.5, abs=0.08)


def test_nothing_labelled_is_cropped_anywhere_however_it_is_indexed() -> None:
    empty = torch.zeros(1, 9, 9, dtype=torch.uint8)
    seen = [
        sample_crops(
            [Stack.of(torch.rand(1, 1, 9, 9, generator=generator()), empty, by_class=by_class)] * 3,
            make_training((4, 4), 1.0),
            generator(),
        )[0]
        for by_class in (False, True)
    ]
    assert torch.equal(*seen)


def test_a_huge_foreground_is_thinned_evenly() -> None:
    labels = torch.ones(1, 512, 512, dtype=torch.uint8)
    (index,) = Stack.of(torch.zeros(1, 1, 512, 512), labels).foreground
    assert len(index) <= 2**16
    assert len({int(step) for step in index.diff()}) == 1


@pytest.mark.parametrize("shape", [(1, 40, 40), (1, 20, 40, 40)])
def test_label_and_image_move_together(shape: tuple[int, ...]) -> None:
    patch = (24, 24) if len(shape) == 3 else (8, 24, 24)
    training = make_training(patch, flips=True, rotation_degrees=180, scaling=0.3)
    images, labels = sample_crops([make_stack(*shape)] * 8, training, generator())
    inside = labels.float()
    # The nearest voxel has at least 1/4 of the bilinear weight, 1/8 of the trilinear.
    assert float((images[:, 0] - inside).abs().max()) <= 1 - 0.5 ** len(patch)
    assert float(((images[:, 0] > 0.5) == (inside > 0.5)).float().mean()) > 0.95


def assert_disc(labels: Tensor, radius: float) -> None:
    """A disc keeps its area and middle under rotation and flips about its centre."""
    area = float(labels.sum())
    assert area == pytest.approx(math.pi * radius**2, rel=0.05)


def test_rotation_keeps_a_disc_and_zoom_scales_it() -> None:
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    labels = ((y**2 + x**2) < 12**2).to(torch.uint8).unsqueeze(0)
    stack = Stack.of(labels.unsqueeze(1).float(), labels)
    _, turned = sample_crops([stack] * 5, make_training((64, 64), rotation_degrees=180, flips=True), generator())
    for disc in turned:
        assert_disc(disc, 12)
    _, zoomed = sample_crops([stack] * 50, make_training((64, 64), scaling=0.2), generator())
    radii = (zoomed.flatten(1).sum(1) / math.pi).sqrt() / 12
    assert 0.79 < float(radii.min()) < 0.85
    assert 1.15 < float(radii.max()) < 1.21


def test_rotation_is_rigid_on_patches_that_are_not_square() -> None:
    y, x = torch.meshgrid(torch.arange(80) - 39.5, torch.arange(120) - 59.5, indexing="ij")
    labels = ((y**2 + x**2) < 10**2).to(torch.uint8).unsqueeze(0)
    stack = Stack.of(labels.unsqueeze(1).float(), labels)
    _, turned = sample_crops([stack] * 5, make_training((80, 120), rotation_degrees=90), generator(3))
    for disc in turned:
        assert_disc(disc, 10)
        assert int(disc.any(1).sum()) == pytest.approx(20, abs=2)
        assert int(disc.any(0).sum()) == pytest.approx(20, abs=2)


def test_rotated_crops_from_inside_a_study_have_no_black_corners() -> None:
    stack = Stack.of(torch.ones(1, 1, 96, 96), one_voxel(96, (48, 48)).labels)
    training = make_training((32, 32), 1.0, rotation_degrees=180, scaling=0.2)
    images, _ = sample_crops([stack] * 20, training, generator())
    assert float(images.min()) == pytest.approx(1, abs=1e-5)


def test_flips_alone_give_exactly_the_mirror_images() -> None:
    image = torch.rand(1, 1, 8, 8, generator=generator())
    stack = Stack.of(image, (image[:, 0] > 0.5).to(torch.uint8))
    images, labels = sample_crops([stack] * 60, make_training((8, 8), flips=True), generator())
    mirrors = [image[0, 0].flip(axes) for axes in ([], [0], [1], [0, 1])]
    seen = [next(i for i, mirror in enumerate(mirrors) if torch.equal(crop[0], mirror)) for crop in images]
    assert set(seen) == {0, 1, 2, 3}
    assert torch.equal(labels, (images[:, 0] > 0.5).long())


def test_intensity_stays_within_its_range_and_leaves_the_label() -> None:
    stack = Stack.of(torch.ones(1, 1, 8, 8), torch.ones(1, 8, 8, dtype=torch.uint8))
    images, labels = sample_crops([stack] * 200, make_training((8, 8), intensity=0.1), generator())
    assert 0.8 <= float(images.min()) < 0.9
    assert 1.1 < float(images.max()) <= 1.2
    assert (images.flatten(1).std(1) < 1e-6).all()
    assert (labels == 1).all()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_intensity_is_changed_as_often_as_it_says(share: float) -> None:
    stack = make_stack(1, 20, 20)
    training = make_training((20, 20), intensity=0.2, probability={"intensity": share})
    images, _ = sample_crops([stack] * 400, training, generator())
    touched = (images != stack.images).flatten(1).any(1)
    assert float(touched.float().mean()) == pytest.approx(share, abs=0.07)
    gains = images.flatten(1).amax(1) - images.flatten(1).amin(1)
    assert (gains[~touched] == 1).all()
    assert not touched.any() or (gains[touched] != 1).all()


def test_the_study_is_never_changed() -> None:
    stack = make_stack(2, 16, 16)
    before = stack.images.clone(), stack.labels.clone()
    sample_crops([stack] * 20, make_training((16, 16), flips=True, intensity=0.3), generator())
    assert torch.equal(stack.images, before[0])
    assert torch.equal(stack.labels, before[1])


def test_the_generator_alone_decides() -> None:
    training = make_training((8, 8), flips=True, rotation_degrees=20, scaling=0.1, intensity=0.1)
    results: list[Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))
        results.append(sample_crops([make_stack(3, 20, 20)] * 4, training, generator(seed))[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
