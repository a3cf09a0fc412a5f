"""Which samples are explained, of which class a map is, and what is told of it inside and outside."""

from dataclasses import replace

import pytest
import torch

from client.explain.explanation import _chosen, _region_of
from client.explain.sanity import compared, randomised
from tests.client.explain.subjects import subject_of


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
