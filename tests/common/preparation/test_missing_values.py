"""What was not measured is filled in, and counts in no statistic."""

import numpy as np
import pytest

from common.preparation import Geometry, Voxels
from common.preparation.missing_values import MissingValues, dead_lines
from simulations.generators.mammograms import draw_mammogram
from simulations.generators.retina import draw_retina


def mended(image: np.ndarray, step: MissingValues | None = None) -> np.ndarray:
    voxels = Voxels(image.astype(np.float32)[None])
    changed: np.ndarray = (step or MissingValues()).apply(voxels, Geometry(image.shape, 1, None)).image[0]
    return changed


def test_each_missing_value_becomes_the_nearest_that_was_measured() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 12, 15))
    missing = rng.random(image.shape) < 0.3
    image[missing] = rng.choice([np.nan, np.inf, -np.inf], missing.sum())
    found = mended(image, MissingValues(dead_lines=False))
    np.testing.assert_array_equal(found[~missing], image.astype(np.float32)[~missing])
    for z, y, x in np.argwhere(missing):
        known = np.argwhere(~missing[z])
        apart = np.square(known - (y, x)).sum(axis=1)
        nearest = {np.float32(image[z, row, column]) for row, column in known[apart == apart.min()]}
        assert found[z, y, x] in nearest


def test_a_slice_without_a_value_becomes_the_nearest_that_has_one() -> None:
    image = np.random.default_rng(1).normal(size=(5, 9, 10)).astype(np.float32)
    image[[0, 3]] = np.nan
    found = mended(image)
    np.testing.assert_array_equal(found[0], image[1])
    np.testing.assert_array_equal(found[3], image[2])


def test_where_nothing_was_measured_nothing_is_filled_in() -> None:
    image = np.full((1, 3, 9, 10), np.nan, np.float32)
    assert np.isnan(MissingValues().apply(Voxels(image), Geometry(image.shape[1:], 1, None)).image).all()


def generated() -> list[np.ndarray]:
    """Planes that look like images: of a mammogram, and of each channel of a retina."""
    rng = np.random.default_rng(2)
    pictures, _ = draw_retina(rng, 160)
    return [draw_mammogram(rng, 200).image.astype(np.float64), *np.moveaxis(pictures.astype(np.float64), -1, 0)]


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fault", ["constant", "brighter", "darker"])
@pytest.mark.parametrize("number", range(4))
def test_a_planted_dead_line_is_found_and_no_other(number: int, fault: str, rows: bool) -> None:
    plane = generated()[number]
    plane = plane if rows else plane.T
    sound = dead_lines(plane.astype(np.float32))
    line = plane.shape[0] // 2 + 7
    broken = plane.copy()
    broken[line] = {
        "constant": np.full(plane.shape[1], 31.0),
        "brighter": plane[line] + 60,
        "darker": plane[line] - 60,
    }[fault]
    assert set(dead_lines(broken.astype(np.float32))) - set(sound) == {line}
    found = mended(broken if rows else broken.T)
    expected = (plane[line - 1] + plane[line + 1]) / 2
    assert (found[line] if rows else found[:, line]) == pytest.approx(expected, abs=1e-3)


def test_images_have_no_dead_lines_of_their_own() -> None:
    """But for some at the very edge of a film, where it is black."""
    lines = [len(dead_lines(side.astype(np.float32))) for plane in generated() for side in (plane, plane.T)]
    assert sum(lines) <= 2
    structured = np.zeros((40, 40), np.float32)
    structured[10:30, 10:30] = 100  # a box: its edges are no lines
    assert not dead_lines(structured).size


def test_what_is_not_asked_for_stays() -> None:
    plane = generated()[0]
    plane[50] = 7.0
    np.testing.assert_array_equal(mended(plane, MissingValues(dead_lines=False)), plane.astype(np.float32))


def rows_of(*steps: float, noise: float = 0.01) -> np.ndarray:
    """40 columns, and rows that lie so far above the first; each a little noisy."""
    drawn = np.random.default_rng(4).normal(100, noise, (len(steps), 40))
    rows: np.ndarray = (drawn + np.array(steps)[:, None]).astype(np.float32)
    return rows


@pytest.mark.parametrize(("jump", "dead"), [(30, False), (50, True)])
def test_on_a_slope_a_dead_line_jumps_by_twice_what_its_neighbours_differ(jump: float, dead: bool) -> None:
    """A row every 10 up, so that two next but one differ by 20."""
    slope = [10.0 * row for row in range(20)]
    slope[9] += jump
    assert dead_lines(rows_of(*slope)).tolist() == ([9] if dead else [])


@pytest.mark.parametrize(("jump", "dead"), [(4, False), (20, True)])
def test_a_dead_line_jumps_by_more_than_lines_do(jump: float, dead: bool) -> None:
    """Rows that scatter by 1."""
    scattered = np.random.default_rng(6).normal(0, 1, 40)
    scattered[19] = scattered[21] = 0.0
    scattered[20] = jump
    assert dead_lines(rows_of(*scattered)).tolist() == ([20] if dead else [])


@pytest.mark.parametrize(("columns", "dead"), [(26, False), (38, True)])
def test_a_dead_line_jumps_with_all_but_a_tenth_of_its_length(columns: int, dead: bool) -> None:
    plane = rows_of(*[0.0] * 20, noise=1)
    plane[9, :columns] += 100
    assert dead_lines(plane).tolist() == ([9] if dead else [])


@pytest.mark.parametrize(("columns", "dead"), [(12, True), (7, False)])
def test_a_line_is_judged_by_what_lies_on_the_body(columns: int, dead: bool) -> None:
    """Outside of which all is 0; by a few voxels it is not judged at all."""
    plane = rows_of(*[0.0] * 20, noise=1)
    plane[9] += 60
    plane[:, columns:] = 0
    assert dead_lines(plane).tolist() == ([9] if dead else [])
