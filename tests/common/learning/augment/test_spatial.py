"""Warps against SciPy, which computes places and values by itself; a spline that folds nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from common.config import AugmentationConfig, TrainingConfig
from common.learning.augment import spatial
from common.learning.transforms import Stack, sample_crops

OFF = {"flips": False, "rotation_degrees": 0, "scaling": 0, "intensity": 0}


def a_config(**changes: Any) -> AugmentationConfig:
    return AugmentationConfig.model_validate({**OFF, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("fill", ["zero", "nearest"])
@pytest.mark.parametrize(("shape", "patch"), [((40, 50), (15, 12)), ((20, 24, 22), (7, 10, 9)), ((6, 5), (9, 9))])
def test_a_warped_crop_is_what_scipy_finds_at_the_same_places(
    shape: tuple[int, ...], patch: tuple[int, ...], fill: str
) -> None:
    image = torch.rand(2, *shape, generator=generator(1))
    label = torch.randint(0, 4, shape, generator=generator(2)).to(torch.uint8)
    config = a_config(rotation_degrees=90, tilt_degrees=60, zoom=(0.6, 1.7), shear=0.4, shift=0.4)
    for warp in spatial.draw(6, patch, config, generator(3)):
        middle = [edge / 2 for edge in shape]
        moved, mask = spatial.resampled(image, label, middle, warp, patch, fill=fill, device="cpu")
        matrix = warp.matrix.double().numpy()
        offset = np.array(middle) + warp.shift.double().numpy() - matrix @ ((np.array(patch) - 1) / 2)
        mode = "nearest" if fill == "nearest" else "grid-constant"
        for channel in range(2):
            expected = ndimage.affine_transform(image[channel].numpy(), matrix, offset, patch, order=1, mode=mode)
            assert np.abs(moved[channel].numpy() - expected).max() < 1e-4
        expected = ndimage.affine_transform(label.numpy(), matrix, offset, patch, order=0, mode=mode)
        assert (mask.numpy() == expected).mean() > 0.999  # a tie may go either way


@pytest.mark.parametrize("fill", ["zero", "nearest"])
@pytest.mark.parametrize(("shape", "patch"), [((40, 50), (16, 12)), ((20, 24, 22), (8, 10, 9))])
def test_a_bent_crop_is_what_scipy_finds_where_its_spline_leads(
    shape: tuple[int, ...], patch: tuple[int, ...], fill: str
) -> None:
    image = torch.rand(1, *shape, generator=generator(1))
    label = torch.zeros(shape, dtype=torch.uint8)
    config = a_config(rotation_degrees=90, elastic=0.4, shift=0.4)
    for warp in spatial.draw(4, patch, config, generator(3)):
        assert warp.points is not None
        moved, _ = spatial.resampled(image, label, [e / 2 for e in shape], warp, patch, fill=fill, device="cpu")
        offsets = np.indices(patch) - (np.reshape(patch, (-1, *[1] * len(patch))) - 1) / 2
        places = np.tensordot(warp.matrix.double().numpy(), offsets, 1)
        for axis, edge in enumerate(shape):
            places[axis] += edge / 2 + float(warp.shift[axis]) + _spline(warp.points[axis].double().numpy(), patch)
        mode = "nearest" if fill == "nearest" else "grid-constant"
        expected = ndimage.map_coordinates(image[0].numpy(), places, order=1, mode=mode)
        assert np.abs(moved[0].numpy() - expected).max() < 1e-4


def _spline(points: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """Of one axis of the moves: SciPy's spline along each axis of the crop."""
    for axis, edge in enumerate(patch):
        at = (np.arange(edge) + 0.5) / edge * spatial._INTERVALS
        knots = np.arange(-3, spatial._POINTS + 1)
        points = np.moveaxis(BSpline(knots, np.moveaxis(points, axis, 0), 3)(at), 0, axis)
    return points


@pytest.mark.parametrize("start", [(-3, -5), (2, 4), (33, 47)])
def test_a_piece_beyond_the_edge_repeats_it(start: tuple[int, int]) -> None:
    image = torch.rand(2, 40, 50, generator=generator(1))
    expected = np.pad(image.numpy(), ((0, 0), (20, 20), (20, 20)), mode="edge")
    expected = expected[:, 20 + start[0] : 32 + start[0], 20 + start[1] : 29 + start[1]]
    np.testing.assert_array_equal(spatial.nearest(image, start, (12, 9)).numpy(), expected)


def test_a_crop_that_nothing_moves_repeats_the_edge_of_image_and_label_too() -> None:
    images, labels = torch.rand(1, 1, 8, 9, generator=generator(1)), torch.ones(1, 8, 9, dtype=torch.uint8)
    asked = {**OFF, "fill": "nearest", "shift": 0.2, "probability": {"shift": 0.0}}
    training = TrainingConfig.model_validate({"patch_size": (12, 15), "augmentation": asked})
    crops, marks = sample_crops([Stack.of(images, labels)], training, generator())
    np.testing.assert_array_equal(crops[0, 0], np.pad(images[0, 0], ((2, 2), (3, 3)), mode="edge"))
    assert (marks == 1).all()


def test_rotation_and_zoom_alone_are_those_of_the_batch() -> None:
    """Two ways to one crop: the window's, and straight from the study."""
    labels = torch.zeros(1, 60, 60, dtype=torch.uint8)
    stack = Stack.of(torch.rand(1, 1, 60, 60, generator=generator(1)), labels)
    usual = {"rotation_degrees": 40.0, "scaling": 0.2}
    for patch in ((17, 24), (16, 16)):
        seen = [
            sample_crops(
                [stack] * 4,
                TrainingConfig.model_validate({"patch_size": patch, "augmentation": {**OFF, **usual, **more}}),
                generator(7),
            )[0]
            for more in ({}, {"fill": "nearest"})
        ]
        # Away from the edge of the study, where the two fill otherwise; coordinates are rounded in another order.
        assert float((seen[0] - seen[1]).abs().median()) < 1e-4


def test_tilt_is_of_volumes_that_are_nearly_cubes() -> None:
    config = a_config(tilt_degrees=30)
    cube, flat = (spatial.draw(5, patch, config, generator())[0].matrix for patch in ((8, 16, 24), (7, 16, 24)))
    assert not torch.equal(cube[0], torch.tensor([1.0, 0, 0]))
    assert torch.equal(flat, torch.eye(3))
    assert torch.equal(spatial.draw(1, (16, 16), config, generator())[0].matrix, torch.eye(2))
    # As far as it says and no further, about both axes of the plane; rotation in the plane goes its own way.
    both = a_config(tilt_degrees=30, rotation_degrees=5)
    matrices = torch.stack([warp.matrix for warp in spatial.draw(400, (8, 16, 24), both, generator())]).abs()
    for place, most in (((0, 1), 30), ((0, 2), 30), ((1, 2), 5)):
        turned = math.degrees(math.asin(float(matrices[:, *place].max())))
        assert 0.9 * most < turned < most + (20 if most == 5 else 1)  # two tilts turn a little in the plane as well


@pytest.mark.parametrize("patch", [(20, 20), (12, 12, 12)])
def test_rotations_keep_lengths_and_zoom_scales_them(patch: tuple[int, ...]) -> None:
    config = a_config(rotation_degrees=180, tilt_degrees=180)
    for warp in spatial.draw(20, patch, config, generator()):
        assert torch.allclose(warp.matrix @ warp.matrix.T, torch.eye(len(patch)), atol=1e-5)
        assert float(torch.det(warp.matrix)) == pytest.approx(1, abs=1e-5)
    zooms = [
        float(torch.det(warp.matrix)) ** (-1 / len(patch))
        for warp in spatial.draw(400, patch, a_config(zoom=(0.7, 1.4)), generator())
    ]
    assert 0.7 <= min(zooms) < 0.72
    assert 1.36 < max(zooms) <= 1.4
    assert np.mean(np.log(zooms)) == pytest.approx(math.log(0.7 * 1.4) / 2, abs=0.03)


def test_shifts_are_shares_of_the_edge_and_shear_keeps_the_volume() -> None:
    warps = spatial.draw(300, (10, 40), a_config(shift=0.2, shear=0.2), generator())
    most = torch.stack([warp.shift for warp in warps]).abs().amax(0)
    assert most.tolist() == pytest.approx([2, 8], rel=0.05)
    assert all(float(torch.det(warp.matrix)) == pytest.approx(1, abs=1e-6) for warp in warps)
    turned = spatial.draw(5, (10, 40), a_config(rotation_degrees=90, shear=0.4), generator())
    for warp in turned:  # a crop is sheared along its own rows, and then turned
        assert torch.allclose(warp.matrix.norm(dim=0)[1], torch.tensor(1.0), atol=1e-5)
    slants = torch.stack([warp.matrix[1, 0] for warp in warps]).abs()
    assert float(slants.max()) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_change_is_made_as_often_as_it_says(share: float) -> None:
    changes: dict[str, dict[str, Any]]
    changes = {"rotation": {"rotation_degrees": 90}, "scaling": {"scaling": 0.3}, "shift": {"shift": 0.2}}
    changes |= {"shear": {"shear": 0.3}, "elastic": {"elastic": 0.2}}
    for name, change in changes.items():
        odds = {**dict.fromkeys(changes, 0.6), name: share}  # of the others, which are not asked for
        warps = spatial.draw(1000, (8, 8), a_config(**change, probability=odds), generator())
        assert sum(warp.moves for warp in warps) / 1000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, False),
        ({"rotation_degrees": 40, "scaling": 0.2, "flips": True, "intensity": 0.1, "noise": 0.2}, False),
        *[({key: 0.2}, True) for key in ("tilt_degrees", "shift", "shear", "elastic")],
        ({"zoom": (0.9, 1.1)}, True),
        ({"fill": "nearest"}, True),
        ({"rotation_degrees": 40, "probability": {"rotation": 0.9}}, True),
        ({"scaling": 0.2, "probability": {"scaling": 0.9}}, True),
    ],
)
def test_crops_are_warped_one_by_one_where_something_else_is_asked_for(changes: dict[str, Any], asked: bool) -> None:
    assert spatial.is_asked(a_config(**changes)) is asked


def test_control_points_move_by_a_share_of_their_distance_along_each_axis() -> None:
    warps = spatial.draw(50, (8, 20, 40), a_config(elastic=0.3), generator())
    most = torch.stack([warp.points for warp in warps if warp.points is not None]).abs().amax((0, 2, 3, 4))
    assert most.tolist() == pytest.approx([0.3 * 2, 0.3 * 5, 0.3 * 10], rel=0.01)


@pytest.mark.parametrize("edge", [1, 15, 32])
def test_the_bend_is_scipys_cubic_spline(edge: int) -> None:
    points = torch.rand(1, spatial._POINTS, generator=generator())
    at = (np.arange(edge) + 0.5) / edge * spatial._INTERVALS
    expected = BSpline(np.arange(-3, spatial._POINTS + 1), points[0].double().numpy(), 3)(at)
    assert spatial._bent(points, (edge,))[0].numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("patch", [(40, 40), (24, 24, 24)])
def test_the_strongest_bend_folds_nothing(patch: tuple[int, ...]) -> None:
    """Neighbours stay in order: the determinant of the deformation is above 0 everywhere."""
    for seed in range(20):
        (warp,) = spatial.draw(1, patch, a_config(elastic=0.4), generator(seed))
        assert warp.points is not None
        field = spatial._bent(
            warp.points.sign() * 0.4 * torch.tensor([edge / 4 for edge in patch]).view(-1, *[1] * len(patch)), patch
        )
        slopes = np.stack([np.stack(np.gradient(axis), -1) for axis in field.double().numpy()], -2)
        assert np.linalg.det(slopes + np.eye(len(patch))).min() > 0
        assert float(field.abs().max()) <= 0.4 * max(patch) / 4


def test_shifted_whole_images_show_the_nearest_voxel_where_they_end() -> None:
    """The guide's fill: nothing of a picture that is all one class is ever background."""
    stack = Stack.of(torch.full((1, 1, 32, 32), 0.7), torch.full((1, 32, 32), 3, dtype=torch.uint8))
    training = TrainingConfig.model_validate({"patch-size": (32, 32), "augmentation": {"preset": "guide"}})
    images, labels = sample_crops([stack] * 20, training, generator())
    assert images.numpy() == pytest.approx(0.7, abs=1e-5)
    assert (labels == 3).all()
