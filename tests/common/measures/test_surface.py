"""Surface distances against MONAI, against all pairs of surface voxels, and against cubes worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance

from common.errors import ConfigError
from common.measures.surface import SurfaceDistances, of_patient, surface_distances

MM = (3.0, 0.8, 0.5)


def blob(seed: int, shape: tuple[int, ...] = (9, 14, 17)) -> np.ndarray:
    """A ball of changing place and size with a ragged edge."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(edge) for edge in shape], indexing="ij")
    centre = [edge / 2 + rng.uniform(-2, 2) for edge in shape]
    distance = sum(np.square(axis - at) for axis, at in zip(axes, centre, strict=True))
    mask: np.ndarray = distance + rng.uniform(-6, 6, shape) < rng.uniform(9, 16)
    return mask


def onehot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spacing", [MM, (1.0, 1.0, 1.0)])
def test_distances_are_monais(seed: int, spacing: tuple[float, ...]) -> None:
    found, truth = blob(seed), blob(seed + 100)
    result = surface_distances(found, truth, spacing, 1.0)
    one, two = onehot(found), onehot(truth)
    hd95 = compute_hausdorff_distance(one, two, include_background=True, percentile=95, spacing=spacing)
    average = compute_average_surface_distance(one, two, include_background=True, symmetric=True, spacing=spacing)
    surface_dice = compute_surface_dice(one, two, [1.0], include_background=True, spacing=spacing)
    assert result.hd95 == pytest.approx(float(hd95), rel=1e-5)
    assert result.average == pytest.approx(float(average), rel=1e-5)
    assert result.surface_dice == pytest.approx(float(surface_dice), rel=1e-6)


@given(st.integers(0, 2**16), st.floats(0.3, 4.0), st.floats(0.3, 4.0))
@settings(max_examples=25, deadline=None)
def test_distances_are_those_of_all_pairs_of_surface_pixels(seed: int, height: float, width: float) -> None:
    rng = np.random.default_rng(seed)
    found, truth = (rng.random((7, 9)) < 0.4 for _ in range(2))
    found[3, 4] = truth[2, 2] = True
    points = []
    for mask in (found, truth):
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        points.append(np.argwhere(mask & ~inner) * [height, width])
    apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    ways = apart.min(axis=1), apart.min(axis=0)
    result = surface_distances(found, truth, (height, width), 1.0)
    assert result.hd95 == pytest.approx(max(np.percentile(way, 95) for way in ways))
    assert result.total == pytest.approx(sum(way.sum() for way in ways))
    assert result.voxels == sum(map(len, points))


def test_a_plate_moved_by_two_slices_of_three_mm_is_six_mm_away() -> None:
    found, truth = np.zeros((8, 6, 6), bool), np.zeros((8, 6, 6), bool)
    found[2], truth[4] = True, True  # each one slice thick, so that all of its voxels are surface
    result = surface_distances(found, truth, MM, 5.9)
    assert (result.hd95, result.average, result.surface_dice) == (6.0, 6.0, 0.0)
    assert surface_distances(found, truth, MM, 6.0).surface_dice == 1.0


def test_a_cube_a_voxel_larger_on_one_side() -> None:
    """A cube of 4 and one of 4 x 4 x 5. The new face lies 1.5 mm out, and so do its 16 voxels; all else is shared."""
    truth = np.zeros((10, 10, 10), bool)
    truth[3:7, 3:7, 3:7] = True
    found = truth.copy()
    found[3:7, 3:7, 7] = True
    result = surface_distances(found, truth, (1.0, 1.0, 1.5), 1.0)
    # Found: 4 x 4 x 5 - 2 x 2 x 3 = 68 surface voxels, truth: 64 - 8 = 56. Of found's, the 16 of the new face are 1.5
    # mm off. Of truth's old face the 12 on its rim are surface of found, too; the 4 in the middle are 1 mm from it.
    assert result.voxels == 68 + 56
    assert result.total == pytest.approx(16 * 1.5 + 4 * 1.0)
    assert result.within == 68 + 56 - 16
    assert result.hd95 == pytest.approx(1.5)


@pytest.mark.parametrize("shape", [(6, 6), (4, 6, 6)])
def test_empty_masks(shape: tuple[int, ...]) -> None:
    none, some, spacing = np.zeros(shape, bool), np.zeros(shape, bool), (1.0,) * len(shape)
    some[..., 1:5, 1:5] = True
    both = surface_distances(none, none, spacing, 1.0)
    assert (both.hd95, both.average, both.surface_dice) == (0.0, 0.0, 1.0)
    for found, truth in ((none, some), (some, none)):
        one = surface_distances(found, truth, spacing, 1.0)
        assert (one.hd95, one.average, one.surface_dice) == (math.inf, math.inf, 0.0)
        assert one.voxels == {2: 16 - 4, 3: 64 - 8}[len(shape)]  # without those inside


def test_a_single_slice_has_contours_and_is_not_all_surface() -> None:
    found, truth = blob(1, (21, 20)), blob(2, (21, 20))
    plane = surface_distances(found, truth, MM[1:], 1.0)
    assert surface_distances(found[None], truth[None], MM, 1.0) == plane
    assert plane.voxels < found.sum() + truth.sum()
    point = np.ones((1, 1, 1), bool)
    assert surface_distances(point, point, MM, 1.0).hd95 == 0


def test_masks_at_the_edge_of_the_image_have_their_surface_there() -> None:
    full = np.ones((5, 5), bool)
    assert surface_distances(full, full, (1.0, 1.0), 0.0) == SurfaceDistances(0.0, 0.0, 32, 32)


def test_of_a_patient_with_two_studies_all_surfaces_count_and_the_worst_distance() -> None:
    joined = of_patient([SurfaceDistances(1.0, 8.0, 6, 10), SurfaceDistances(5.0, 22.0, 1, 5)])
    assert (joined.hd95, joined.average, joined.surface_dice) == (5.0, 2.0, 7 / 15)


def test_other_grids_and_impossible_spacings_are_refused() -> None:
    mask = np.ones((3, 3), bool)
    with pytest.raises(ConfigError, match="one grid"):
        surface_distances(mask, np.ones((3, 4), bool), (1.0, 1.0), 1.0)
    with pytest.raises(ConfigError, match="a spacing for each axis"):
        surface_distances(mask, mask, (1.0, 1.0, 1.0), 1.0)
    for edge in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="above 0"):
            surface_distances(mask, mask, (edge, 1.0), 1.0)
