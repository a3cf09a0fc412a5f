"""Filters against their formulas, written out in numpy, and against images whose noise or field is known."""

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from scipy import stats
from skimage.color import rgb2hsv

from common.errors import ErrorCode
from common.preparation import Geometry, Step, Voxels
from common.preparation.bilateral import Bilateral
from common.preparation.clahe import CLAHE
from common.preparation.equalisation import Equalisation
from common.preparation.gaussian import Gaussian
from common.preparation.median import Median
from common.preparation.n4 import N4
from common.preparation.non_local_means import NonLocalMeans
from common.preparation.regions import every_so_often, noise, otsu
from tests.client.data.studies import blob

Floats = NDArray[np.float64]


def applied(step: Step, image: np.ndarray, spacing_mm: tuple[float, ...] | None = None) -> np.ndarray:
    """The first channel of (*sp) after a step."""
    geometry = Geometry(image.shape, 1, spacing_mm)
    changed: np.ndarray = step.apply(Voxels(image[None].astype(np.float32)), geometry).image[0]
    return changed


def windows(plane: np.ndarray, reach: int) -> Floats:
    """(Y, X, 2r+1, 2r+1) neighbourhoods, edges repeated."""
    padded = np.pad(plane.astype(np.float64), reach, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)


def noisy(shape: tuple[int, ...], deviation: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A body with a sharp edge, and the same with noise."""
    clean = 100 + 60 * blob(shape).astype(np.float32)
    return clean, (clean + np.random.default_rng(seed).normal(0, deviation, shape)).astype(np.float32)


def test_gaussian_is_the_weighted_mean_of_its_formula() -> None:
    image, sigma = np.random.default_rng(0).normal(size=(17, 22)), 0.8
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    expected = np.einsum("yxij,i,j->yx", windows(image, reach), weights, weights)
    assert applied(Gaussian(sigma=sigma), image) == pytest.approx(expected, abs=1e-5)


def test_gaussian_of_a_volume_reaches_as_many_mm_along_z() -> None:
    """Of a bright voxel: the standard deviation along each axis is the same length."""
    image = np.zeros((21, 41, 41), np.float32)
    image[10, 20, 20] = 1
    found = applied(Gaussian(sigma=3.0, volume=True), image, (2.0, 1.0, 1.0))
    for axis, mm in enumerate((2.0, 1.0, 1.0)):
        places = (np.arange(image.shape[axis]) - image.shape[axis] // 2) * mm
        along = found.sum(axis=tuple(other for other in range(3) if other != axis))
        assert np.sqrt((along * places**2).sum() / along.sum()) == pytest.approx(3.0, rel=0.02)
    flat = applied(Gaussian(sigma=3.0), image, (2.0, 1.0, 1.0))
    assert np.flatnonzero(flat.any(axis=(1, 2))).tolist() == [10]


def test_median_is_that_of_the_window() -> None:
    image = np.random.default_rng(1).normal(size=(13, 18))
    expected = np.median(windows(image, 2), axis=(-2, -1))
    assert applied(Median(radius=2), image) == pytest.approx(expected, abs=1e-6)


def test_median_of_a_volume_takes_a_voxel_that_stands_alone_in_its_slices_too() -> None:
    image = np.zeros((5, 9, 9))
    image[2, 2:7, 2:7] = 1
    assert applied(Median(), image)[2, 4, 4] == 1
    assert not applied(Median(volume=True), image).any()
    assert applied(Median(volume=True), image, (5.0, 1.0, 1.0))[2, 4, 4] == 1  # slices of 5 mm are too far away


def test_median_reaches_the_nearest_whole_number_of_slices() -> None:
    image = np.zeros((5, 9, 9))
    image[2, 2:7, 2:7] = 1
    for apart, reaches in ((1.9, True), (2.1, False)):  # a radius of 1 mm is 0.53 of them, or 0.48
        assert applied(Median(volume=True), image, (apart, 1.0, 1.0))[2, 4, 4] == (0 if reaches else 1)


@pytest.mark.parametrize("step", [Gaussian(), Median(), Bilateral(), NonLocalMeans()], ids=lambda step: step.kind)
def test_each_channel_is_filtered_by_itself(step: Step) -> None:
    channels = [noisy((20, 24), deviation, seed)[1] for seed, deviation in enumerate((3.0, 9.0, 5.0))]
    found = step.apply(Voxels(np.stack(channels)), Geometry((20, 24), 3, None)).image
    for one, channel in zip(found, channels, strict=True):
        np.testing.assert_array_equal(one, applied(step, channel))


@pytest.mark.parametrize("step", [Bilateral(), NonLocalMeans()], ids=lambda step: step.kind)
def test_noise_is_taken_of_what_is_inside(step: Step) -> None:
    """A part that is ten times as loud changes nothing out of its reach: all is as if it had been cut off."""
    _, image = noisy((60, 64), 3.0)
    image[:, 41:] += np.random.default_rng(3).normal(0, 30, (60, 23)).astype(np.float32)
    inside = np.zeros(image.shape, np.bool_)
    inside[:, :40] = True  # a voxel's noise is that of it and its neighbours
    assert noise(image, inside) == noise(image[:, :41]) < 0.7 * noise(image)
    found = step.apply(Voxels(image[None], None, inside), Geometry(image.shape, 1, None)).image[0]
    assert found[:, :30] == pytest.approx(applied(step, image[:, :41])[:, :30], abs=1e-3)
    assert np.abs(found - applied(step, image))[:, :30].mean() > 0.05


@pytest.mark.timeout(20)
def test_voxels_that_are_flat_as_foil_stop_no_run() -> None:
    """Within what is plausible, 0.005 to 50 mm, a width of 20 voxels is 200 000 of the other axis."""
    image = np.random.default_rng(2).normal(size=(40, 24, 24))
    found = applied(Gaussian(sigma=20.0, volume=True), image, (0.005, 50.0, 50.0))
    rows = applied(Gaussian(sigma=20.0), image)
    assert np.ptp(found, axis=0).max() < 0.2 * np.ptp(rows, axis=0).max()  # along z it is nearly one value


@pytest.mark.parametrize(
    ("radius", "spacing_mm", "refused"),
    [
        (4, (1.0, 1.0, 1.0), False),
        (5, (1.0, 1.0, 1.0), True),
        (5, (3.0, 1.0, 1.0), False),
        (2, (0.2, 1.0, 1.0), False),
        (3, (0.2, 1.0, 1.0), True),
    ],
)
def test_median_of_a_window_that_would_take_hours_sets_its_study_aside(
    radius: int, spacing_mm: tuple[float, ...], refused: bool
) -> None:
    geometry = Geometry((40, 512, 512), 1, spacing_mm)
    problem = Median(radius=radius, volume=True).refuse(geometry)
    assert (problem is not None) == refused
    assert problem is None or problem.code is ErrorCode.UNSUPPORTED
    assert Median(radius=10).refuse(geometry) is None


def test_bilateral_is_its_formula() -> None:
    """Away from the edges of the image, where ITK reaches as far as ours."""
    _, image = noisy((40, 44), 5.0)
    sigma, alike = 1.5, 2.0 * noise(image)
    reach = 3  # ITK cuts off at 2.5 sigma
    near = np.exp(-(np.square(np.mgrid[-reach : reach + 1, -reach : reach + 1]).sum(axis=0)) / (2 * sigma**2))
    around = windows(image, reach)
    weights = near * np.exp(-np.square(around - image[..., None, None]) / (2 * alike**2))
    expected = (weights * around).sum(axis=(-2, -1)) / weights.sum(axis=(-2, -1))
    found = applied(Bilateral(sigma=sigma), image)
    inner = np.s_[5:-5, 5:-5]
    assert np.abs(found - expected)[inner].max() < 0.25  # of noise of 5: likeness is looked up in a table
    assert np.abs(found - expected)[inner].mean() < 0.05


def test_non_local_means_is_its_formula() -> None:
    """With what scikit-image's fast form changes: of a patch's 5 x 5 differences it sums 4 x 4, and it counts no weight
    below exp(-5).
    """
    _, image = noisy((40, 44), 5.0)
    found = applied(NonLocalMeans(patch=5, search=4, strength=0.8), image)
    apart = [np.abs(found - _non_local_means(image, 4, strength)).mean() for strength in (0.7, 0.8, 0.9)]
    assert apart[1] < 0.01
    assert min(apart[0], apart[2]) > 0.02


def _non_local_means(image: np.ndarray, search: int, strength: float) -> Floats:
    deviation, half = noise(image), 2
    padded = np.pad(image.astype(np.float64), half + search, mode="reflect")
    patches = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    rows, columns = image.shape
    own = patches[search : search + rows, search : search + columns]
    total, value = np.zeros(image.shape), np.zeros(image.shape)
    for down, across in np.ndindex(2 * search + 1, 2 * search + 1):
        other = patches[down : down + rows, across : across + columns]
        # Patches of nothing but noise are 2 sigma^2 apart.
        apart = (np.square(own - other) - 2 * deviation**2)[..., 1:, 1:].sum(axis=(-2, -1)) / 25
        unlike = np.maximum(apart, 0) / (strength * deviation) ** 2
        weight = np.exp(-unlike) * (unlike < 5)
        total += weight
        value += weight * other[..., half, half]
    return value / total


@pytest.mark.parametrize("step", [Bilateral(), NonLocalMeans()], ids=lambda step: step.kind)
@pytest.mark.parametrize("unit", [1.0, 1000.0, 1e-3])
def test_denoising_takes_half_of_the_noise_at_least_and_keeps_the_edge_whatever_the_unit(
    step: Step, unit: float
) -> None:
    clean, image = noisy((64, 60), 5.0)
    found = applied(step, image * unit) / unit
    assert np.std(found - clean) < 0.5 * np.std(image - clean)
    blurred = applied(Gaussian(sigma=1.5), image)
    edge = np.abs(np.diff(clean, axis=0)) > 0
    assert np.abs(np.diff(found, axis=0))[edge].mean() > 1.5 * np.abs(np.diff(blurred, axis=0))[edge].mean()


@pytest.mark.parametrize("deviation", [1.0, 7.0])
def test_noise_is_what_was_added_also_over_a_slope_an_edge_and_an_empty_background(deviation: float) -> None:
    clean, image = noisy((80, 90), deviation)
    assert noise(image) == pytest.approx(deviation, rel=0.1)
    assert noise(image + np.arange(90, dtype=np.float32) * 3) == pytest.approx(deviation, rel=0.1)
    image[:, 30:] = 0
    assert noise(image) == pytest.approx(deviation, rel=0.15)
    assert noise(clean * 0) == 0


def test_n4_takes_out_a_known_field() -> None:
    rows, columns = np.mgrid[-1:1:48j, -1:1:44j]
    body = rows**2 + columns**2 < 0.8
    field = np.exp(0.4 * rows - 0.3 * columns**2)
    tissue = np.where(np.indices(body.shape).sum(axis=0) // 6 % 2, 100.0, 130.0) * body
    image = np.where(body, tissue * field, 0)
    found = applied(N4(shrink=2), image)
    ratio = np.log(image[body] / found[body])
    assert np.corrcoef(ratio, np.log(field[body]))[0, 1] > 0.97
    assert stats.variation((found / np.where(body, tissue, 1))[body]) < 0.3 * stats.variation(field[body])
    assert ratio.mean() == pytest.approx(0, abs=1e-3)


def test_n4_of_few_slices_is_that_of_each() -> None:
    image = np.stack([noisy((24, 28), 2.0, seed)[1] for seed in range(3)]) * blob((24, 28))
    together = applied(N4(iterations=3), image, (1.0, 1.0, 1.0))
    for found, one in zip(together, image, strict=True):
        np.testing.assert_array_equal(found, applied(N4(iterations=3), one, (1.0, 1.0)))


def test_n4_leaves_tissue_of_one_value_as_it_is() -> None:
    image = np.where(blob((40, 44)), 100.0, 0.0)
    np.testing.assert_array_equal(applied(N4(iterations=3), image), image)


def test_n4_fits_nothing_outside_of_what_is_inside() -> None:
    """The same values in another order out there, such as of a table: the field inside stays, to the last bit."""
    rng = np.random.default_rng(7)
    image = (100 + np.arange(48) + rng.normal(0, 3, (40, 48))).astype(np.float32)
    inside = np.ones((40, 48), np.bool_)
    inside[28:] = False
    image[:8] = 0
    image[28:] = rng.uniform(150, 900, (12, 48))
    other = image.copy()
    other[28:] = image[28:][:, ::-1]
    geometry = Geometry(image.shape, 1, None)
    one, two = (N4(shrink=1, iterations=5).apply(Voxels(each[None], None, inside), geometry) for each in (image, other))
    assert np.abs(one.image - image)[0, 8:28].max() > 1
    np.testing.assert_array_equal(one.image[0, :28], two.image[0, :28])


@pytest.mark.parametrize("step", [Equalisation(), CLAHE(tiles=2)], ids=lambda step: step.kind)
def test_of_a_picture_the_value_changes_as_that_of_a_grey_one_and_hue_and_saturation_stay(step: Step) -> None:
    """By scikit-image's HSV; black voxels have no colour and become grey."""
    picture = np.random.default_rng(8).beta(1, 4, (3, 40, 44)).astype(np.float32)
    picture[:, 10:20, 10:20] = 0
    found = step.apply(Voxels(picture), Geometry((40, 44), 3, None)).image
    before, after = (rgb2hsv(one, channel_axis=0) for one in (picture, found))
    assert after[2] == pytest.approx(applied(step, before[2]), abs=1e-5)
    coloured = (before[2] > 0) & (after[2] > 0.01)
    assert after[:2, coloured] == pytest.approx(before[:2, coloured], abs=1e-3)
    if isinstance(step, Equalisation):
        assert after[2, 15, 15] > 0
        assert after[1, 15, 15] == 0


def test_equalisation_of_nothing_that_is_inside_is_of_all() -> None:
    image = np.random.default_rng(3).random((1, 20, 20)).astype(np.float32)
    geometry = Geometry((20, 20), 1, None)
    found = Equalisation().apply(Voxels(image, None, np.zeros((20, 20), np.bool_)), geometry).image
    np.testing.assert_array_equal(found, Equalisation().apply(Voxels(image), geometry).image)


def test_a_sample_of_a_large_image_is_of_all_its_columns() -> None:
    columns = np.broadcast_to(np.arange(2048, dtype=np.float32), (2048, 2048))
    _, counts = np.unique(every_so_often(columns), return_counts=True)
    assert len(counts) == 2048
    assert counts.max() - counts.min() <= 2


def test_equalisation_gives_each_voxel_its_rank() -> None:
    image = np.random.default_rng(2).beta(2, 6, (3, 30, 40))
    ranks = stats.rankdata(image, method="max").reshape(image.shape) / image.size
    assert applied(Equalisation(bins=65536), image) == pytest.approx(ranks, abs=2e-3)


def test_equalisation_counts_what_is_inside_alone() -> None:
    image = np.random.default_rng(3).random((20, 20)).astype(np.float32)
    inside = np.zeros((20, 20), np.bool_)
    inside[:10] = True
    found = Equalisation(bins=65536).apply(Voxels(image[None], None, inside), Geometry((20, 20), 1, None)).image[0]
    ranks = stats.rankdata(image[:10], method="max").reshape(10, 20) / 200
    assert found[:10] == pytest.approx(ranks, abs=6e-3)
    assert not found[10:].any()


def test_clahe_of_one_tile_without_a_limit_is_equalisation() -> None:
    image = np.random.default_rng(4).beta(2, 5, (64, 64))
    image[0, :2] = 0, 1
    ranks = stats.rankdata(image, method="max").reshape(image.shape) / image.size
    assert applied(CLAHE(tiles=1, clip_limit=1.0), image) == pytest.approx(ranks, abs=0.02)


def test_clahe_raises_contrast_where_it_is_low_and_less_with_a_limit() -> None:
    rows, columns = np.mgrid[:96, :96]
    image = 0.5 + 0.4 * np.sign(columns - 48) + 0.02 * np.sin(rows) * np.sin(columns)
    local = [applied(CLAHE(clip_limit=limit), image)[20:40, 10:30].std() for limit in (1.0, 0.02)]
    assert local[0] > local[1] > 1.5 * image[20:40, 10:30].std()


def test_clahe_leaves_a_slice_its_darkest_and_brightest_value_and_a_picture_its_colours() -> None:
    rng = np.random.default_rng(5)
    image = np.stack([0.1 * rng.random((32, 32)), rng.random((32, 32))])
    found = applied(CLAHE(), image)
    for before, after in zip(image, found, strict=True):
        assert (after.min(), after.max()) == pytest.approx((before.min(), before.max()), abs=1e-3)
    picture = rng.uniform(0.05, 1, (3, 32, 32)).astype(np.float32)
    coloured = CLAHE().apply(Voxels(picture), Geometry((32, 32), 3, None)).image
    assert np.abs(coloured - picture).max() > 0.1
    shares = [one / one.max(axis=0) for one in (picture, coloured)]
    assert shares[1] == pytest.approx(shares[0], abs=1e-5)


def test_otsu_is_simpleitks() -> None:
    image = np.concatenate([np.full(300, 10.0), np.random.default_rng(6).normal(90, 5, 200)]).astype(np.float32)
    itk = SimpleITK.OtsuThreshold(SimpleITK.GetImageFromArray(image[None]), 0, 1)
    np.testing.assert_array_equal(image > otsu(image), SimpleITK.GetArrayFromImage(itk)[0].astype(bool))
