"""Changes of brightness against SciPy and numbers by hand."""

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from common.config import AugmentationConfig
from common.learning.augment import intensity


def a_config(**changes: Any) -> AugmentationConfig:
    return AugmentationConfig.model_validate({"intensity": 0, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crops(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed)) * 3 - 1


@pytest.mark.parametrize("shape", [(2, 1, 15, 12), (2, 1, 7, 9, 8), (1, 1, 1, 20)])
def test_blur_is_scipys(shape: tuple[int, ...]) -> None:
    before = crops(*shape)
    after = intensity._blurred(before, torch.full((shape[0],), 0.8), 1.0)
    for one, other in zip(before[:, 0], after[:, 0], strict=True):
        sigma = [0.8 if edge > 1 else 0.0 for edge in one.shape]
        expected = ndimage.gaussian_filter(one.double().numpy(), sigma, mode="nearest", radius=3)
        assert other.numpy() == pytest.approx(expected, abs=1e-5)


def test_each_crop_is_blurred_by_its_own_width() -> None:
    before = crops(2, 1, 16, 16)
    both = intensity._blurred(before, torch.tensor([0.5, 1.0]), 1.0)
    for place, width in enumerate((0.5, 1.0)):
        expected = ndimage.gaussian_filter(before[place, 0].double().numpy(), width, mode="nearest", radius=3)
        assert both[place, 0].numpy() == pytest.approx(expected, abs=1e-4)
    # As alone: how far it reaches follows from the run, and not from who lies beside it.
    assert torch.equal(both[:1], intensity._blurred(before[:1], torch.tensor([0.5]), 1.0))


def test_blurs_are_as_wide_as_the_run_says() -> None:
    """Of a bright voxel: what stays in the middle is the square of the share in one row of the Gaussian."""
    before = torch.zeros(300, 1, 25, 25)
    before[..., 12, 12] = 1
    middles = intensity.change(before, a_config(blur=(0.5, 2.0)), generator())[..., 12, 12].flatten()
    steps = np.arange(-6, 7)
    narrow, wide = (float((1 / np.exp(-((steps / width) ** 2) / 2).sum()) ** 2) for width in (0.5, 2.0))
    assert wide * 0.99 < float(middles.min()) < 1.1 * wide
    assert narrow * 0.9 < float(middles.max()) < narrow * 1.01


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_noise_is_of_the_crops_own_deviation(scale: float) -> None:
    before = crops(50, 1, 32, 32) * scale
    added = intensity.change(before, a_config(noise=0.3), generator()) - before
    shares = added.flatten(1).std(1) / before.flatten(1).std(1)
    assert 0.25 < float(shares.max()) < 0.33
    assert float((shares**2).mean()) == pytest.approx(0.3**2 / 2, rel=0.25)  # variance is uniform
    assert float(added.mean()) == pytest.approx(0, abs=0.01 * scale)


def test_gamma_is_a_power_of_the_share_and_keeps_mean_and_deviation() -> None:
    before = crops(3, 1, 20, 20)
    after = intensity._bent(before, torch.full((3,), 2.0))
    assert after.flatten(1).mean(1).tolist() == pytest.approx(before.flatten(1).mean(1).tolist(), abs=1e-5)
    assert after.flatten(1).std(1).tolist() == pytest.approx(before.flatten(1).std(1).tolist(), rel=1e-4)
    for one, other in zip(before.double().numpy(), after.double().numpy(), strict=True):
        power = ((one - one.min()) / (one.max() - one.min())) ** 2
        assert np.corrcoef(power.ravel(), other.ravel())[0, 1] == pytest.approx(1, abs=1e-6)


def test_inverted_gamma_bends_the_other_end() -> None:
    before = crops(1, 1, 30, 30)
    usual = intensity.change(before, a_config(gamma=(2, 2)), generator())
    inverted = intensity.change(before, a_config(inverted_gamma=(2, 2)), generator())
    mirrored = -intensity.change(-before, a_config(gamma=(2, 2)), generator())
    assert torch.allclose(inverted, mirrored)
    assert not torch.allclose(inverted, usual, atol=0.05)


def test_contrast_keeps_mean_within_the_crops_range() -> None:
    before = crops(4, 1, 20, 20)
    less = intensity._contrasted(before, torch.full((4,), 0.5))
    assert torch.allclose(less.flatten(1).mean(1), before.flatten(1).mean(1), atol=1e-5)
    assert torch.allclose(less.flatten(1).std(1), before.flatten(1).std(1) / 2, rtol=1e-4)
    more = intensity._contrasted(before, torch.full((4,), 1.9))
    assert float(more.max()) <= float(before.max())
    assert float(more.min()) >= float(before.min())


def test_statistics_are_of_all_channels_together() -> None:
    """A colour picture is changed as one of its voxels laid side by side, in which there is one channel."""
    before = crops(4, 3, 6, 8) * torch.tensor([1.0, 5.0, 0.2]).view(1, 3, 1, 1) + torch.arange(3).view(1, 3, 1, 1)
    changes: list[dict[str, Any]] = [{"noise": 0.5}, {"contrast": 0.5}, {"gamma": (2, 2)}, {"inverted_gamma": (2, 2)}]
    for change in changes:
        together = intensity.change(before, a_config(**change), generator())
        flat = intensity.change(before.reshape(4, 1, 18, 8), a_config(**change), generator())
        torch.testing.assert_close(together, flat.reshape(4, 3, 6, 8))


def test_brightness_is_a_factor_of_each_crop() -> None:
    before = crops(400, 1, 4, 4)
    factors = intensity.change(before, a_config(brightness=0.3), generator()) / before
    assert float(factors.flatten(1).std(1).max()) < 1e-4
    assert 0.7 <= float(factors.min()) < 0.72
    assert 1.28 < float(factors.max()) <= 1.3


def test_exponents_are_as_often_above_1_as_their_range_says() -> None:
    """Of three voxels, 0, 1/2 and 1: the exponent is known by where the middle one lies between the others."""
    before = torch.tensor([0.0, 0.5, 1.0]).expand(2000, 1, 1, 3)
    for name, sign in (("gamma", 1), ("inverted_gamma", -1)):
        after = intensity.change(sign * before, a_config(**{name: (0.25, 4.0)}), generator())[:, 0, 0]
        exponents = -torch.log2((after[:, 1] - after[:, 0]) / (after[:, 2] - after[:, 0]))
        assert float((exponents > 1).float().mean()) == pytest.approx(0.5, abs=0.04), name
        assert 0.24 < float(exponents.min()) < 0.26
        assert 3.9 < float(exponents.max()) < 4.1


@pytest.mark.parametrize("shape", [(20, 31), (9, 12, 16)])
def test_low_resolution_is_the_voxels_in_the_middle_of_coarse_ones_and_lines_between(shape: tuple[int, ...]) -> None:
    before = crops(1, 1, *shape)
    after = intensity._coarse(before, torch.tensor([0.45]))[0, 0].double().numpy()
    coarse = [round(0.45 * edge) for edge in shape]
    nearest = np.ix_(
        *[np.floor((np.arange(few) + 0.5) * edge / few).astype(int) for few, edge in zip(coarse, shape, strict=True)]
    )
    places = np.ix_(
        *[
            np.clip((np.arange(edge) + 0.5) * few / edge - 0.5, 0, few - 1)
            for few, edge in zip(coarse, shape, strict=True)
        ]
    )
    expected = ndimage.map_coordinates(before[0, 0].double().numpy()[nearest], np.broadcast_arrays(*places), order=1)
    assert after == pytest.approx(expected, abs=1e-5)


def test_crops_lose_resolution_by_factors_from_the_runs_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def coarse(those: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        seen.append(factors)
        return those

    monkeypatch.setattr(intensity, "_coarse", coarse)
    intensity.change(crops(1000, 1, 2, 2), a_config(low_resolution=0.2), generator())
    assert 0.2 <= float(seen[0].min()) < 0.21
    assert 0.99 < float(seen[0].max()) <= 1
    assert float(seen[0].mean()) == pytest.approx(0.6, abs=0.03)


def test_low_resolution_loses_detail_and_keeps_the_mean() -> None:
    before = crops(1, 1, 32, 32)
    after = intensity._coarse(before, torch.tensor([0.5]))
    assert torch.equal(intensity._coarse(before, torch.tensor([1.0])), before)
    assert float(after.diff(dim=-1).abs().mean()) < 0.8 * float(before.diff(dim=-1).abs().mean())
    assert intensity._coarse(crops(1, 1, 1, 5, 3), torch.tensor([0.1])).shape == (1, 1, 1, 5, 3)


def test_colour_leaves_light_and_grey_alone() -> None:
    light = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    before = torch.rand(20, 3, 8, 8, generator=generator(2))
    after = intensity.change(before, a_config(saturation=0.5, hue=0.5), generator())
    assert not torch.allclose(after, before, atol=0.1)
    assert torch.allclose((after * light).sum(1), (before * light).sum(1), atol=1e-5)
    grey = torch.rand(5, 1, 8, 8, generator=generator(3)).expand(-1, 3, -1, -1)
    assert torch.allclose(intensity.change(grey, a_config(saturation=0.5, hue=0.5), generator()), grey, atol=1e-4)


def test_a_turn_of_hue_goes_round_the_circle_and_keeps_the_strength_of_colour() -> None:
    """In YIQ, whose second and third axis are those of colour: the angle is the turn, and the length stays."""
    yiq = torch.tensor([(0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    before = torch.rand(400, 3, 2, 2, generator=generator(2))
    after = intensity.change(before, a_config(hue=0.2), generator())
    (one, other) = (torch.einsum("ic,ncyx->niyx", yiq, image)[:, 1:] for image in (before, after))
    torch.testing.assert_close(other.norm(dim=1), one.norm(dim=1), atol=1e-4, rtol=1e-3)
    turns = torch.atan2(*other.flip(1).unbind(1)) - torch.atan2(*one.flip(1).unbind(1))
    turns = torch.remainder(turns / (2 * torch.pi) + 0.5, 1) - 0.5
    assert torch.allclose(turns, turns[:, :1, :1].expand_as(turns), atol=1e-3)
    assert 0.19 < float(turns.max()) < 0.201
    assert -0.201 < float(turns.min()) < -0.19


def test_no_saturation_is_grey_and_half_a_turn_of_hue_the_opposite_colour() -> None:
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1)
    grey = intensity._coloured(red, torch.zeros(1), None).flatten()
    assert grey.tolist() == pytest.approx([0.299 * 0.6 + 0.701 * 0.4] * 3, abs=1e-5)
    turned = intensity._coloured(red, None, torch.tensor([torch.pi])).flatten().tolist()
    assert colorsys.rgb_to_hsv(*turned)[0] == pytest.approx(0.5, abs=0.02)  # of red 0


@pytest.mark.parametrize("value", [0.0, 1.0, -5.0])
def test_a_crop_that_is_the_same_everywhere_stays_finite(value: float) -> None:
    config = a_config(
        preset="nnunet",
        probability=dict.fromkeys(
            ("noise", "blur", "brightness", "contrast", "low-resolution", "gamma", "inverted-gamma"), 1.0
        ),
    )
    flat = torch.full((2, 1, 9, 7), value)
    after = intensity.change(flat, config, generator())
    assert after.isfinite().all()
    assert float(after.flatten(1).std(1).max()) < 1e-4 * max(1, abs(value))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_change_is_made_as_often_as_it_says(share: float) -> None:
    before = crops(500, 3, 4, 4)
    changes: dict[str, Any] = {"noise": 0.3, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.3}
    changes |= {"blur": (0.5, 1.0), "gamma": (0.5, 0.6), "inverted_gamma": (0.5, 0.6), "low_resolution": 0.4}
    for name, value in changes.items():
        after = intensity.change(before, a_config(**{name: value}, probability={name: share}), generator())
        touched = (after != before).flatten(1).any(1)
        assert float(touched.float().mean()) == pytest.approx(share, abs=0.07), name
        assert torch.equal(after[~touched], before[~touched])
