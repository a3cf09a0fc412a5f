"""Whatever a preset does: labels move with their image and stay labels, nothing is NaN, and the seed decides."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from common.config import AugmentationProbability, TrainingConfig
from common.config.augmentation import PRESETS
from common.learning.transforms import Stack, sample_crops

ALWAYS = {"rotation": 1.0, "scaling": 1.0}
CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"preset": name, "saturation": 0.0, "hue": 0.0} for name in PRESETS},
    "nnunet, always moved": {"preset": "nnunet", "probability": ALWAYS},
    "elastic": {"elastic": 0.4},
    "elastic, sheared, nearest": {"elastic": 0.2, "shear": 0.5, "shift": 0.5, "fill": "nearest", "tilt-degrees": 180},
}
# Of images and patches: even, odd, one slice, smaller than the patch, of one voxel.
SHAPES = [
    ((3, 33, 47), (16, 24)),
    ((1, 15, 12), (15, 12)),
    ((2, 9, 40), (16, 16)),
    ((2, 1, 1), (8, 8)),
    ((1, 17, 19, 13), (17, 19, 13)),
    ((1, 1, 21, 30), (1, 8, 16)),
    ((1, 7, 40, 8), (8, 16, 16)),
]


def a_training(patch: tuple[int, ...], changes: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig.model_validate({"patch-size": patch, "augmentation": changes})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_stack(shape: tuple[int, ...], seed: int, *, empty: bool = False) -> Stack:
    """Classes 0, 2 and 5 voxel by voxel."""
    noise = torch.rand(shape[0], 1, *shape[1:], generator=generator(seed))
    labels = torch.tensor([0, 2, 5], dtype=torch.uint8)[(noise[:, 0] * 3).long() * (not empty)]
    return Stack.of(noise, labels)


@pytest.mark.parametrize("changes", CHANGES)
@settings(max_examples=12, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 2**32), st.booleans())
def test_crops_are_finite_and_their_labels_are_those_of_the_study(
    changes: str, sizes: tuple[tuple[int, ...], tuple[int, ...]], seed: int, empty: bool
) -> None:
    shape, patch = sizes
    stack = a_stack(shape, seed, empty=empty)
    training = a_training(patch, CHANGES[changes])
    before = stack.images.clone(), stack.labels.clone()
    images, labels = sample_crops([stack] * 3, training, generator(seed))
    assert (images.shape, labels.shape) == ((3, 1, *patch), (3, *patch))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.isfinite().all()
    assert set(labels.unique().tolist()) <= {0, *stack.labels.unique().tolist()}
    again = sample_crops([stack] * 3, training, generator(seed))
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])
    assert torch.equal(stack.images, before[0])
    assert torch.equal(stack.labels, before[1])


@pytest.mark.parametrize("changes", CHANGES)
@settings(max_examples=8, deadline=None)
@given(st.sampled_from([((2, 60, 50), (24, 31)), ((1, 30, 40, 36), (17, 19, 13))]), st.integers(0, 2**32))
def test_the_mask_lies_where_the_image_lies(
    changes: str, sizes: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    """Of an image that is its own mask; intensities left as they are."""
    shape, patch = sizes
    noise = torch.rand(shape[0], 1, *shape[1:], generator=generator(seed))
    pool = functional.avg_pool2d if len(patch) == 2 else functional.avg_pool3d
    labels = (pool(noise, 13, stride=1, padding=6, count_include_pad=False) > 0.5).squeeze(1).to(torch.uint8)
    stack = Stack.of(labels.unsqueeze(1).float(), labels)
    off: dict[str, Any] = dict.fromkeys(("intensity", "noise", "brightness", "contrast"), 0.0)
    off |= {"low-resolution": 1.0, "gamma": [1.0, 1.0], "inverted-gamma": [1.0, 1.0], "blur": [1e-3, 1e-3]}
    images, moved = sample_crops([stack] * 4, a_training(patch, {**CHANGES[changes], **off}), generator(seed))
    mask = moved.unsqueeze(1).float()
    # Where all neighbours of a place are of one class, the image says which.
    inner = (images - images.round()).abs() < 1e-4
    assert float(inner.float().mean()) > 0.3
    assert torch.equal(images[inner].round(), mask[inner])
    # And elsewhere the nearest voxel has the most weight of all neighbours.
    assert float((images - mask).abs().max()) <= 1 - 0.5 ** len(patch) + 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_crops_otherwise_than_the_defaults(name: str) -> None:
    stack = a_stack((2, 40, 40), 1)
    colour = Stack(stack.images.expand(-1, 3, -1, -1).contiguous(), stack.labels, stack.foreground)
    seen = [
        sample_crops([colour] * 6, a_training((24, 24), changes), generator(3))[0] for changes in ({}, {"preset": name})
    ]
    assert not torch.equal(*seen)


def test_each_crop_is_changed_by_itself() -> None:
    """As drawn in a batch or alone: what a crop becomes does not depend on what lies beside it."""
    one, other = a_stack((1, 40, 40), 1), a_stack((1, 40, 40), 2)
    always = dict.fromkeys((field.alias for field in AugmentationProbability.model_fields.values()), 1.0)
    for changes in (*CHANGES.values(), {"preset": "nnunet", "probability": always}):
        training = a_training((16, 16), changes)
        first, _ = sample_crops([one, one], training, generator(5))
        second, _ = sample_crops([one, other], training, generator(5))
        assert torch.equal(first[0], second[0]), changes
