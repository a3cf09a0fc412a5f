"""Features equal what is counted by hand or by SciPy, and are of the region alone."""

import numpy as np
import pytest
from scipy import ndimage, stats

from common.errors import DataError
from simulations.diagnosis import radiomics
from simulations.diagnosis.radiomics import features

ROWS, COLUMNS = np.indices((64, 64))


def disc(radius: float, row: float = 32, column: float = 32) -> np.ndarray:
    return np.asarray(np.hypot(ROWS - row, COLUMNS - column) <= radius)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((64, 64)).astype(np.float32)


def test_grey_levels_are_those_of_scipy() -> None:
    values = noise()[disc(12)]
    found = radiomics.first_order(values)
    assert found["mean"] == pytest.approx(values.mean(dtype=np.float64))
    assert found["deviation"] == pytest.approx(values.std(dtype=np.float64))
    assert found["skewness"] == pytest.approx(stats.skew(values.astype(np.float64)))
    assert found["kurtosis"] == pytest.approx(stats.kurtosis(values.astype(np.float64), fisher=False))
    assert found["percentile-90"] == pytest.approx(np.percentile(values, 90))


def test_entropy_of_sixteen_equal_shares_is_four_bits() -> None:
    levels = np.repeat(np.arange(16), 50).astype(np.float32)
    assert radiomics.first_order(levels)["entropy"] == pytest.approx(4.0)
    assert radiomics.first_order(np.full(50, 7, np.float32))["entropy"] == 0


def test_shape_of_a_square_is_counted_by_hand() -> None:
    square = np.zeros((64, 64), bool)
    square[20:40, 10:30] = True
    found = radiomics.shape(square)
    assert (found["area"], found["eccentricity"], found["solidity"]) == (400, 0, 1)
    # The perimeter runs through the middles of the outermost pixels: 4 x 19.
    assert found["roundness"] == pytest.approx(4 * np.pi * 400 / 76**2)


def test_co_occurrence_is_counted_by_hand() -> None:
    """Stripes of one pixel: side by side levels differ by 15, one below the other by nothing."""
    stripes = np.where(COLUMNS % 2, 1, 16).astype(np.uint8)
    whole = np.ones((64, 64), bool)
    found = radiomics.co_occurrence(stripes, whole)
    # Distance 1: 0 and both diagonals 15 apart, 90 degrees alike. Distances 2 and 4: all alike in all but rounding of
    # diagonals (scikit-image steps round(2 sin 45) = 1 and round(4 sin 45) = 3, both odd).
    assert found["contrast-1"] == pytest.approx(3 / 4 * 15**2)
    assert found["contrast-2"] == pytest.approx(2 / 4 * 15**2)
    assert found["homogeneity-1"] == pytest.approx((3 / (1 + 15**2) + 1) / 4)
    assert found["correlation-1"] == pytest.approx((-3 + 1) / 4, abs=1e-6)
    # Two kinds of pair, each half of all: energy is the root of 2 x 1/4.
    assert found["energy-1"] == pytest.approx(np.sqrt(0.5), abs=1e-3)


def test_texture_is_of_pairs_within_the_region_alone() -> None:
    region = disc(14)
    levels = radiomics.quantised(noise(), region)
    assert set(np.unique(levels[region])) == set(range(1, 17))
    assert not levels[~region].any()
    # Oracle: every pair counted one by one.
    counts = np.zeros((16, 16))
    for row, column in np.argwhere(region):
        if column + 1 < 64 and region[row, column + 1]:
            one, other = levels[row, column] - 1, levels[row, column + 1] - 1
            counts[one, other] += 1
            counts[other, one] += 1
    shares = counts / counts.sum()
    apart = np.subtract.outer(np.arange(16), np.arange(16)) ** 2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(radiomics, "DISTANCES", (1,))
        patched.setattr(radiomics, "ANGLES", (0.0,))
        ours = radiomics.co_occurrence(levels, region)
    assert ours["contrast-1"] == pytest.approx((shares * apart).sum())
    assert ours["energy-1"] == pytest.approx(np.sqrt((shares**2).sum()))
    assert ours["homogeneity-1"] == pytest.approx((shares / (1 + apart)).sum())


def test_patterns_of_a_flat_image_are_one_and_shares_sum_to_one() -> None:
    flat = radiomics.binary_patterns(np.zeros((64, 64), np.float32), disc(10))
    assert flat["pattern-8-1-8"] == 1  # no neighbour is darker
    found = radiomics.binary_patterns(noise(), disc(10))
    assert sum(value for name, value in found.items() if name.startswith("pattern-8-2")) == pytest.approx(1)


def test_a_bright_disc_stands_out_by_its_brightness_and_points_to_its_middle() -> None:
    region = disc(12)
    smooth = ndimage.gaussian_filter(region.astype(np.float32), 1.5)
    found = radiomics.edge(smooth, region)
    dark = radiomics.edge(1 - smooth, region)
    assert found["contrast"] == pytest.approx(
        smooth[region].mean() - smooth[ndimage.binary_dilation(region, iterations=3) & ~region].mean(), abs=0.1
    )
    assert found["radial"] > 0.95
    assert dark["radial"] < -0.95
    assert dark["contrast"] == pytest.approx(-found["contrast"])
    blurred = radiomics.edge(ndimage.gaussian_filter(region.astype(np.float32), 5), region)
    assert blurred["sharpness"] < found["sharpness"]


def test_stripes_point_nowhere() -> None:
    stripes = (np.sin(COLUMNS / 2)).astype(np.float32)
    assert abs(radiomics.edge(stripes, disc(12))["radial"]) < 0.1


def test_exposure_changes_no_texture() -> None:
    image, region = noise(), disc(12)
    one, other = features(image, region), features(image * np.float32(0.5) + np.float32(0.2), region)
    for name in one:
        if name.split("-")[0] in (*radiomics.PROPERTIES, "pattern", "skewness", "kurtosis", "radial", "area"):
            assert other[name] == pytest.approx(one[name], abs=0.02), name


def test_what_lies_far_from_the_region_changes_nothing() -> None:
    image, region = noise(), disc(8, row=20, column=20)
    other = image.copy()
    other[50:, 50:] = 9
    assert features(other, region) == features(image, region)


def test_turning_the_image_changes_no_feature() -> None:
    image, region = ndimage.gaussian_filter(noise(), 1.5), disc(10, row=30, column=34) & (ROWS + COLUMNS < 68)
    one, other = features(image, region), features(np.rot90(image).copy(), np.rot90(region).copy())
    assert one.keys() == other.keys()
    for name in one:
        assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("region", [disc(2), disc(5, row=0, column=63), np.ones((64, 64), bool), ROWS == 10])
def test_every_feature_of_every_region_is_a_number(region: np.ndarray) -> None:
    for image in (noise(), np.zeros((64, 64), np.float32)):
        assert all(np.isfinite(value) for value in features(image, region).values())


def test_regions_without_texture_and_volumes_are_refused() -> None:
    with pytest.raises(DataError, match="too few for texture"):
        features(noise(), disc(1))
    with pytest.raises(DataError, match="flat images"):
        features(np.zeros((4, 64, 64), np.float32), np.ones((4, 64, 64), bool))
