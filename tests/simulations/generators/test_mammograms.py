"""Generated mammograms are films a site can read; what a mass is shows in its shape, and in nothing that is circled."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from skimage.measure import label as components
from skimage.measure import regionprops

from common.config import SiteConfig, SourceConfig
from simulations.generators.mammograms import BENIGN, MALIGNANT, Film, draw_mammogram, write_mammograms
from tests.client.data.cohorts import load_cohort
from tests.simulations.tiny import tiny_run

SEED = 5
COUNT = 40
ROWS = 160
CLASSES = ["benign", "malignant"]


@cache
def films() -> tuple[Film, ...]:
    return tuple(draw_mammogram(np.random.default_rng([SEED, number]), ROWS) for number in range(1, COUNT + 1))


def _pictures(folder: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": np.asarray(Image.open(path)).tobytes() for path in folder.rglob("*.png")}


def _solidities(kind: int) -> list[float]:
    """Of each mass, how much of its convex hull it fills."""
    return [
        region.solidity
        for film in films()
        for region in regionprops(components(film.truth == kind))
        if region.area > 40
    ]


def test_a_film_is_the_same_whatever_the_count_and_another_with_another_seed(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    write_mammograms(tmp_path / "few", count=2, seed=SEED, rows=96, progress=lambda *at: done.append(at))
    write_mammograms(tmp_path / "more", count=3, seed=SEED, rows=96)
    write_mammograms(tmp_path / "other", count=3, seed=SEED + 1, rows=96)
    few, more, other = (_pictures(tmp_path / name) for name in ("few", "more", "other"))
    assert sorted(few) == ["images/0001.png", "images/0002.png", "labels/0001.png", "labels/0002.png"]
    assert few.items() <= more.items()
    assert done == [(1, 2), (2, 2)]
    assert len({*more.values(), *other.values()}) == 12


def test_circles_hold_their_masses() -> None:
    held = []
    for film in films():
        label = film.label
        assert set(np.unique(label)) <= {0, BENIGN, MALIGNANT}
        for mass in film.masses:
            kind = MALIGNANT if mass.malignant else BENIGN
            assert label[round(mass.row), round(mass.column)] == kind, "also on films that were turned over"
        held.append((film.truth[film.label > 0] > 0).sum() / max((film.truth > 0).sum(), 1))
    assert np.mean(held) > 0.85


def test_circles_do_not_touch() -> None:
    for film in films():
        assert components(film.label > 0).max() == len(film.masses)


def test_size_and_number_of_circles_tell_nothing_of_what_is_in_them() -> None:
    masses = [mass for film in films() for mass in film.masses]
    radii = {kind: [mass.radius for mass in masses if mass.malignant == kind] for kind in (False, True)}
    assert 0.35 < len(radii[True]) / len(masses) < 0.65
    assert stats.ks_2samp(radii[False], radii[True]).pvalue > 0.05


def test_malignant_masses_are_less_round_but_some_of_each_are_like_the_other() -> None:
    benign, malignant = _solidities(BENIGN), _solidities(MALIGNANT)
    assert np.median(benign) > np.median(malignant) + 0.05
    assert min(benign) < np.median(malignant)
    assert max(malignant) > np.median(benign)


def test_masses_lie_in_the_breast_and_are_brighter_than_what_is_around() -> None:
    brighter = []
    for film in films():
        image = film.image.astype(float)
        for region in regionprops(components(film.truth > 0)):
            if region.area < 40:
                continue
            inside = components(film.truth > 0) == region.label
            around = ndimage.binary_dilation(inside, iterations=6) & (film.truth == 0)
            brighter.append(image[inside].mean() > image[around].mean())
    assert np.mean(brighter) > 0.85


def test_no_threshold_finds_the_masses() -> None:
    best = []
    for film in films():
        marked = film.truth > 0
        windows = [film.image >= level for level in np.quantile(film.image, np.linspace(0.3, 0.99, 20))]
        best.append(max(2 * (one & marked).sum() / (one.sum() + marked.sum()) for one in windows))
    assert np.mean(best) < 0.5


def test_breasts_and_machines_differ() -> None:
    assert len({film.image.shape for film in films()}) > COUNT / 3
    levels = [np.quantile(film.image, 0.9) for film in films()]
    assert max(levels) > 1.5 * min(levels)
    shares = [(film.image > 40).mean() for film in films()]
    assert max(shares) > 1.5 * min(shares)
    sides = [film.image[:, : film.image.shape[1] // 2].mean() > film.image.mean() for film in films()]
    assert 0.25 < np.mean(sides) < 0.75, "left and right breasts"


@pytest.mark.parametrize("rows", [64, 333])
def test_any_number_of_rows_can_be_drawn(rows: int) -> None:
    film = draw_mammogram(np.random.default_rng(0), rows)
    assert film.image.shape == film.truth.shape == film.label.shape
    assert film.image.shape[0] == rows
    assert film.image.dtype == np.uint8


def test_a_site_reads_every_film_with_both_classes(tmp_path: Path) -> None:
    write_mammograms(tmp_path, count=5, seed=SEED, rows=128)
    run = tiny_run(data={"modality": "MG", "classes": CLASSES}, preprocessing={"rows": 128})
    site = SiteConfig(name="invented", data=(SourceConfig(path=".", kind="images"),))
    cohort = load_cohort(site, run, root=tmp_path, site_key=b"k" * 32)
    assert not cohort.quarantined
    assert cohort.size == len(cohort.cases) == 5
    read = sorted(np.bincount(case.labels.numpy().ravel(), minlength=3).tolist() for case in cohort.cases)
    written = [np.asarray(Image.open(path)) for path in (tmp_path / "labels").iterdir()]
    assert read == sorted(np.bincount(one.ravel(), minlength=3).tolist() for one in written)
