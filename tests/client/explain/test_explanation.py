"""Which samples are explained, of which class a map is, who is of an ensemble, and what a picture shows."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from client.explain.explanation import _chosen, _member, _region_of
from client.explain.picture import _coloured, shown_slices
from client.explain.sanity import compared, randomised
from common.errors import ConfigError
from tests.client.explain.subjects import subject_of
from tests.client.thresholds import run_for


@pytest.mark.parametrize(
    ("answered", "most", "chosen"),
    [
        ([0, 5, 0, 2], 4, [1, 3]),  # where nothing was found there is nothing to explain
        ([3, 9, 4, 8], 2, [1, 3]),
        ([7, 7, 7], 2, [0, 1]),
        ([0, 0, 0, 0, 0], 3, [2]),
        ([-1.0, -3.0, -2.0], 2, [0, 2]),  # log-odds
    ],
)
def test_the_samples_with_the_largest_answer_are_explained_in_their_order(
    answered: list[float], most: int, chosen: list[int]
) -> None:
    assert _chosen(torch.tensor(answered), most) == chosen


def test_a_map_is_of_the_class_that_it_is_named_after_and_a_gates_of_any() -> None:
    subject = subject_of({"architecture": "unet", "channels": [4, 8]}, (8, 9), names=("lesion", "lesion-wall"))
    regions = torch.zeros(1, 2, 8, 9, dtype=torch.bool)
    regions[0, 0, :3], regions[0, 1, 5:] = True, True
    subject = replace(subject, regions=regions)
    for name, wanted in (
        ("lesion", regions[:, 0]),
        ("lesion-entropy", regions[:, 0]),
        ("lesion-wall", regions[:, 1]),
        ("lesion-wall-deviation", regions[:, 1]),
        ("gate-1", regions[:, 0] | regions[:, 1]),
    ):
        assert torch.equal(_region_of(name, subject), wanted), name


def test_random_networks_are_as_in_use_and_others_for_each_seed_and_member() -> None:
    subject = subject_of({"architecture": "unet", "channels": [4, 8], "dropout": 0.5}, (16, 16))
    networks = [
        *randomised([*subject.networks] * 2, subject.run, seed=0),
        *randomised(subject.networks, subject.run, seed=5),
    ]
    assert not any(module.training for network in networks for module in network.modules())
    first = [next(network.parameters()) for network in networks]
    assert not any(torch.equal(one, other) for one, other in ((first[0], first[1]), (first[0], first[2])))


def test_likeness_is_the_mean_over_the_samples() -> None:
    noise = torch.randn(2, 1, 40, 50, generator=torch.Generator().manual_seed(0))
    alike, other = compared(noise[0], noise[0]), compared(noise[0], noise[1])
    both = compared(torch.cat([noise[0], noise[0]]), torch.cat([noise[0], noise[1]]))
    for name in ("spearman", "ssim"):
        assert getattr(both, name) == pytest.approx((getattr(alike, name) + getattr(other, name)) / 2)


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        ("data", {"classes": ("vessel",)}),
        ("data", {"modality": "MR"}),
        ("preprocessing", {"rows": 32}),
        ("model", {"channels": (4, 16)}),
        ("training", {"patch_size": (32, 32)}),
    ],
)
def test_a_member_is_a_model_that_sees_and_says_the_same(table: str, changes: dict[str, Any]) -> None:
    run = run_for()
    other: Any = SimpleNamespace(run=run.model_copy(update={table: getattr(run, table).model_copy(update=changes)}))
    with pytest.raises(ConfigError, match="a --member has another"):
        _member(other, run)
    other.run = run.model_copy(update={"seed": 7, "federation": run.federation.model_copy(update={"rounds": 9})})
    assert _member(other, run) is other


def test_a_picture_shows_the_slices_with_the_largest_answer_or_else_the_largest_values() -> None:
    values, labels = np.full((7, 3, 4), np.nan, np.float32), np.zeros((7, 3, 4), np.uint8)
    for place, (value, voxels) in enumerate(((0.1, 3), (-9.0, 1), (0.2, 9), (3.0, 2), (0.3, 5), (0.5, 0))):
        values[place], labels[place].flat[:voxels] = value, 1
    result: Any = SimpleNamespace(values=values)
    explanation: Any = SimpleNamespace(labels=labels)
    assert shown_slices(explanation, result) == [0, 2, 3, 4]
    explanation.labels = None
    assert shown_slices(explanation, result) == sorted(np.argsort(-np.abs([0.1, -9.0, 0.2, 3.0, 0.3, 0.5]))[:4])


def test_positive_values_are_yellow_and_negative_ones_blue_over_what_stays_grey() -> None:
    """By hand: three quarters of the colour at the largest value, none at 0 or where the map says nothing."""
    grey = np.full((2, 2, 3), 100, np.float32)
    found = _coloured(grey, np.array([[1, -1], [0, np.nan]], np.float32), (2, 2))
    yellow, blue = ((np.array(one) * 0.75 + 25).round() for one in ((255, 245, 140), (170, 225, 255)))
    assert found.tolist() == [[yellow.tolist(), blue.tolist()], [[100] * 3] * 2]
