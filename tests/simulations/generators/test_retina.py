"""Invented retinas are pictures a site can read, whose masks lie on what looks like vessels."""

import hashlib
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from common.config import SiteConfig, SourceConfig
from simulations.generators.retina import _camera, draw_retina, write_retinas
from simulations.generators.retina_vessels import _angle, _Tree
from simulations.scenarios.scenario import load_scenario
from tests.client.data.cohorts import load_cohort

SEED = 11


@cache
def _draw(number: int, rows: int = 512) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, vessels, and the field: the camera is the first thing drawn."""
    image, label = draw_retina(np.random.default_rng([SEED, number]), rows)
    inside = _camera(np.random.default_rng([SEED, number]), rows).field() > 0
    mirrored = inside[:, ::-1]
    seen = image[..., 0].astype(float)
    # Either eye: the field lies where the light is.
    return image, label, inside if seen[inside].mean() >= seen[mirrored].mean() else mirrored


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_a_patient_is_the_same_whatever_the_count(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    write_retinas(tmp_path / "few", count=2, seed=SEED, rows=96, progress=lambda *at: done.append(at))
    write_retinas(tmp_path / "more", count=3, seed=SEED, rows=96)
    write_retinas(tmp_path / "other", count=2, seed=SEED + 1, rows=96)
    few, more, other = (_hashes(tmp_path / name) for name in ("few", "more", "other"))
    assert list(few) == ["images/0001.png", "images/0002.png", "labels/0001.png", "labels/0002.png"]
    assert few.items() <= more.items()
    assert len({*more.values(), *other.values()}) == 6 + 4, "every picture and every mask is another one"
    assert done == [(1, 2), (2, 2)]


@pytest.mark.parametrize("rows", [17, 65, 97, 256, 511])
def test_every_size_is_drawn(rows: int, tmp_path: Path) -> None:
    write_retinas(tmp_path, count=2, seed=SEED, rows=rows)
    for name in ("0001.png", "0002.png"):
        image, label = Image.open(tmp_path / "images" / name), Image.open(tmp_path / "labels" / name)
        assert (image.mode, label.mode) == ("RGB", "L")
        assert image.size == label.size
        assert image.height == rows
        assert set(np.unique(np.asarray(label))) == {0, 255}


def test_vessels_cover_what_they_cover_in_an_eye() -> None:
    for rows, count in ((512, 6), (97, 20)):
        for number in range(count):
            _, label, inside = _draw(number, rows)
            assert 0.05 < label.sum() / inside.sum() < 0.15
            assert not label[~inside].any()


def _beside(chosen: np.ndarray, number: int) -> np.ndarray:
    """Green of the chosen pixels of a picture's vessels, by that of the pixels without vessel near each."""
    image, label, inside = _draw(number)
    well_inside = ndimage.binary_erosion(inside, iterations=8)
    free = ndimage.binary_dilation(label, iterations=5) & ~ndimage.binary_dilation(label, iterations=2) & well_inside
    green, share = image[..., 1].astype(float), ndimage.uniform_filter(free.astype(float), 21)
    counts = chosen & well_inside & (share > 0.02)
    near = ndimage.uniform_filter(green * free, 21)[counts] / share[counts]
    return np.asarray(green[counts] / np.maximum(near, 1))


def test_masked_pixels_are_darker_than_those_beside_them() -> None:
    ratios = [_beside(_draw(number)[1] > 0, number) for number in range(12)]
    assert max(ratio.mean() for ratio in ratios) < 0.96
    assert min((ratio < 1).mean() for ratio in ratios) > 0.75
    assert np.mean([ratio.mean() for ratio in ratios]) < 0.88


def test_thin_vessels_are_darker_than_those_beside_them_too() -> None:
    ratios = []
    for number in range(12):
        vessel = _draw(number)[1] > 0
        thin = vessel & ~ndimage.binary_dilation(ndimage.binary_opening(vessel, np.ones((3, 3))), iterations=2)
        assert thin.sum() > 0.03 * vessel.sum(), "there are vessels of one or two pixels"
        assert thin.sum() < 0.9 * vessel.sum(), "and wider ones"
        ratios.append(_beside(thin, number).mean())
    assert max(ratios) < 1
    assert np.mean(ratios) < 0.95


def test_no_threshold_finds_the_vessels() -> None:
    best = []
    for number in range(6):
        image, label, inside = _draw(number)
        green = image[..., 1]
        best.append(max(_dice((green < level) & inside, label > 0) for level in range(5, 255, 5)))
    assert np.mean(best) < 0.5


def test_field_is_lit_and_what_is_around_it_is_nearly_black() -> None:
    sizes = set()
    for number in range(12):
        image, _, inside = _draw(number)
        surround = ndimage.binary_dilation(inside, iterations=30) ^ True
        assert image[inside].mean() > 40
        if surround.any():
            assert np.percentile(image[surround], 99) < 60
        sizes.add(image.shape)
    assert len(sizes) > 6, "cameras differ"


def test_cameras_differ_in_colour_and_brightness() -> None:
    means = np.array([(image[inside].mean(0)) for image, _, inside in (_draw(number) for number in range(16))])
    assert np.ptp(means.mean(1)) > 40
    assert np.ptp(means[:, 1] / means[:, 0]) > 0.2


def test_pixels_and_degrees_are_each_others_inverse() -> None:
    camera = _camera(np.random.default_rng(SEED), 97)
    row, column = camera.pixels(*camera.degrees())
    assert np.allclose(row.ravel(), np.arange(97), atol=1e-3)
    assert np.allclose(column.ravel(), np.arange(camera.columns), atol=1e-3)


def test_an_even_fork_opens_by_murrays_75_degrees() -> None:
    child = 0.5 ** (1 / 3)
    assert 2 * math.degrees(_angle(1.0, child, child)) == pytest.approx(74.9, abs=0.1)


def test_a_small_branch_leaves_at_a_wide_angle_and_the_vessel_goes_straight_on() -> None:
    small, rest = 0.02 ** (1 / 3), 0.98 ** (1 / 3)
    assert math.degrees(_angle(1.0, small, rest)) > 60
    assert math.degrees(_angle(1.0, rest, small)) < 15


def test_a_fork_keeps_the_cubes_of_the_radii() -> None:
    rng = np.random.default_rng(SEED)
    tree = _Tree(rng, _camera(rng, 512), 1.0, 2.7)
    for _ in range(50):
        before = len(tree._buds)
        _, ahead = tree._branch(0.0, 0.0, 0.0, 0.3, trunk=False)
        if len(tree._buds) > before:
            aside = max(tree._buds, key=lambda bud: bud.number).radius
            assert ahead**3 + aside**3 == pytest.approx(0.3**3, rel=0.01)
    assert len(tree._buds) > 25


def test_a_site_reads_every_picture(tmp_path: Path) -> None:
    write_retinas(tmp_path, count=5, seed=SEED, rows=128)
    run = load_scenario("vessels").config.run
    site = SiteConfig(name="invented", data=(SourceConfig(path=".", kind="images"),))
    cohort = load_cohort(site, run, root=tmp_path, site_key=b"k" * 32)
    assert not cohort.quarantined
    assert cohort.size == len(cohort.cases) == 5
    for number, case in enumerate(cohort.cases, start=1):
        written = np.asarray(Image.open(tmp_path / "labels" / f"{number:04}.png"))
        assert case.images.shape[1:3] == (3, 512)
        assert float(case.labels.float().mean()) == pytest.approx((written > 0).mean(), rel=0.02)
