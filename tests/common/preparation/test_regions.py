"""Regions that are found: against drawn ones, against published masks, and against MONAI's box."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms.utils import generate_spatial_bounding_box
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import disk

from common.errors import DataError, ErrorCode
from common.preparation import Geometry, Step, Voxels
from common.preparation.breast_region import BreastRegion, breast
from common.preparation.crop import CropToForeground
from common.preparation.equalisation import Equalisation
from common.preparation.field_of_view import FieldOfView
from common.preparation.pectoral_muscle import PectoralMuscle
from common.preparation.step import Mask
from simulations.generators import mammograms
from tests.client.data.studies import dice

DATA = os.environ.get("WARDROUND_DATA")
real_images = pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA is not set")


def applied(step: Step, image: np.ndarray) -> Voxels:
    """A picture (C, Y, X) after a step."""
    return step.apply(Voxels(image.astype(np.float32)), Geometry(image.shape[1:], len(image), None))


def found(step: Step, image: np.ndarray) -> Mask:
    inside = applied(step, image).inside
    assert inside is not None
    return inside


def disc(shape: tuple[int, int], radius: float) -> Mask:
    rows, columns = np.indices(shape)
    inside: Mask = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) < radius
    return inside


def fundus(rng: np.random.Generator) -> tuple[np.ndarray, Mask]:
    """A dim disc with a dark middle on a noisy dark ground, and a speck of light outside of it; its field of view."""
    seen = disc((150, 200), 70)
    red = np.where(seen, 0.5 - 0.37 * disc((150, 200), 12), 0.03) + rng.normal(0, 0.02, seen.shape)
    red[5:8, 5:8] = 1
    return np.stack([red, red / 2, red / 4]).clip(0, 1), seen


def test_field_of_view_is_the_drawn_disc_with_its_dark_middle_and_no_speck() -> None:
    image, seen = fundus(np.random.default_rng(0))
    inside = found(FieldOfView(), image)
    assert dice(inside, seen) > 0.99
    assert not inside[5:8, 5:8].any()
    assert inside[70:80, 95:105].all()
    assert not applied(FieldOfView(), image).image[:, ~inside].any()
    assert dice(found(FieldOfView(margin=5), image), disc((150, 200), 65)) > 0.98


def test_a_frame_around_the_picture_and_what_hangs_on_the_disc_by_a_thread_are_not_seen() -> None:
    image, seen = fundus(np.random.default_rng(0))
    image[:, [0, -1]], image[:, :, [0, -1]] = 1, 1
    rows, columns = np.indices(seen.shape)
    beside = np.hypot(rows - 75, columns - 184) < 9
    image[:, beside] = 0.5
    image[:, 75, 165:180] = 0.5  # a thread of one pixel
    inside = found(FieldOfView(), image)
    assert not inside[beside].any()
    assert dice(inside, seen) > 0.99


@real_images
def test_field_of_view_is_the_published_one() -> None:
    """Of photographs by three cameras, brought to [0, 1] as a run does."""
    agreements = []
    for camera in ("drive", "chasedb1", "hrf"):
        folder = Path(str(DATA)) / "vessels" / camera
        for path in sorted((folder / "images").iterdir())[::7]:
            size = (300, 280)
            picture = np.asarray(Image.open(path).resize(size)).transpose(2, 0, 1)
            mask = np.asarray(Image.open(next((folder / "fov").glob(f"{path.stem}.*"))).convert("L").resize(size)) > 127
            ends = np.percentile(picture, (0.5, 99.5), axis=(1, 2))[..., None, None]
            agreements.append(dice(found(FieldOfView(), ((picture - ends[0]) / (ends[1] - ends[0])).clip(0, 1)), mask))
    assert len(agreements) >= 9
    assert min(agreements) > 0.97
    assert np.mean(agreements) > 0.99


def test_what_comes_after_counts_inside_alone() -> None:
    image, _ = fundus(np.random.default_rng(1))
    seen = applied(FieldOfView(), image)
    equalised = Equalisation().apply(seen, Geometry((150, 200), 3, None)).image.max(axis=0)
    assert seen.inside is not None
    assert np.median(equalised[seen.inside]) == pytest.approx(0.5, abs=0.03)
    assert not equalised[~seen.inside].any()


@pytest.fixture
def films(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, Mask]]:
    """Generated mammograms, and the breast that was drawn on each; every other one with a bright label in the dark."""
    drawn: list[Mask] = []
    draw = mammograms._breast

    def kept(*arguments: Any) -> Any:
        inside, depth = draw(*arguments)
        drawn.append(inside)
        return inside, depth

    monkeypatch.setattr(mammograms, "_breast", kept)
    films = []
    for seed in range(8):
        film = mammograms.draw_mammogram(np.random.default_rng(seed), 256).image.astype(np.float32)
        # The generator turns half of them round after drawing.
        inside = drawn[-1] if film[drawn[-1]].mean() > film[drawn[-1][:, ::-1]].mean() else drawn[-1][:, ::-1]
        if seed % 2:
            away = np.s_[10:40, -40:-10] if inside[:, :20].sum() > inside[:, -20:].sum() else np.s_[10:40, 10:40]
            film[away] = np.where(inside[away], film[away], 255)
        films.append((film, inside))
    return films


def test_breast_is_the_drawn_one_without_the_label(films: list[tuple[np.ndarray, Mask]]) -> None:
    agreements = [dice(breast(film), inside) for film, inside in films]
    assert min(agreements) > 0.95
    film, _ = films[1]
    after = applied(BreastRegion(), film[None])
    assert after.inside is not None
    assert not after.image[0][~after.inside].any()
    np.testing.assert_array_equal(after.image[0][after.inside], film[after.inside])


def mammogram(right: bool, muscle: bool) -> tuple[np.ndarray, Mask]:
    """A breast with a straight edge of muscle, and where that is."""
    rows, columns = np.mgrid[:240, :180].astype(np.float64)
    inside = (rows - 110) ** 2 / 105**2 + columns**2 / 130**2 < 1
    corner = inside & (columns / 70 + rows / 120 < 1)
    noise = np.random.default_rng(3).normal(0, 4, rows.shape)
    gland = 40 * np.exp(-((rows - 150) ** 2 + (columns - 60) ** 2) / 1500)
    image = np.where(inside, 90 + gland + 60 * (corner & muscle) + noise, 4)
    return (image[:, ::-1], corner[:, ::-1]) if right else (image, corner)


def test_what_hangs_on_the_breast_by_a_thread_is_none_of_it() -> None:
    """A label on the film, with a scratch from there into the breast."""
    image, _ = mammogram(right=False, muscle=False)
    inside = breast(image.astype(np.float32))
    marked = image.copy()
    marked[108:111, 120:160] = 200
    marked[95:125, 148:176] = 200
    seen = breast(marked.astype(np.float32))
    assert not seen[95:125, 148:176].any()
    assert dice(seen, inside) > 0.99


def test_of_parts_that_are_all_thin_the_largest_is_the_breast() -> None:
    plane = np.zeros((120, 100), np.float32)
    plane[30:90, 40:42] = 100
    plane[50:60, 70:72] = 100
    seen = breast(plane)
    assert seen[35:85, 41].all()
    assert not seen[:, 60:].any()


def test_a_dark_spot_in_the_breast_is_breast() -> None:
    image, _ = mammogram(right=False, muscle=False)
    image[140:152, 50:62] = 4
    assert breast(image.astype(np.float32))[100:160, 40:80].all()


def test_the_margin_is_as_many_pixels_in_every_direction() -> None:
    image, _ = mammogram(right=False, muscle=False)
    wide = ndimage.binary_dilation(breast(image.astype(np.float32)), disk(6))
    np.testing.assert_array_equal(found(BreastRegion(margin=6), image[None]), wide)


@pytest.mark.parametrize("step", [BreastRegion(), FieldOfView(), PectoralMuscle()])
def test_what_an_earlier_step_took_off_stays_off(step: Step) -> None:
    image = fundus(np.random.default_rng(3))[0] if isinstance(step, FieldOfView) else mammogram(False, muscle=True)[0]
    image = image if image.ndim == 3 else image[None]
    given = np.ones(image.shape[1:], bool)
    given[:, 70:] = False
    after = step.apply(Voxels(image.astype(np.float32), None, given), Geometry(given.shape, len(image), None)).inside
    assert after is not None
    assert not (after & ~given).any()
    assert 0.2 < after.sum() / given.sum() < 1


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("steps", [(PectoralMuscle(),), (BreastRegion(), PectoralMuscle())])
def test_muscle_is_taken_off_at_its_edge_on_either_side(right: bool, steps: tuple[Step, ...]) -> None:
    image, corner = mammogram(right, muscle=True)
    geometry, voxels = Geometry(image.shape, 1, None), Voxels(image[None].astype(np.float32))
    for step in steps:
        voxels = step.apply(voxels, geometry)
    assert voxels.inside is not None
    tissue = breast(image.astype(np.float32))
    assert dice(~voxels.inside & tissue, corner) > 0.95
    assert voxels.image[0][~voxels.inside].max() == voxels.image.min()


@pytest.mark.parametrize("step", [BreastRegion(), PectoralMuscle(), FieldOfView()])
def test_a_study_whose_label_would_be_blacked_out_is_refused(step: Step) -> None:
    """A mass circled on the film, on the muscle, or beside the disc: a network would learn to find it in the dark."""
    if isinstance(step, FieldOfView):
        image, seen = fundus(np.random.default_rng(2))
        hidden = ~disc(seen.shape, 72)
    else:
        grey, corner = mammogram(right=False, muscle=True)
        image, seen = grey[None], breast(grey.astype(np.float32))
        hidden = corner if isinstance(step, PectoralMuscle) else ~seen
    rows, columns = np.indices(seen.shape)
    seen = seen & (rows + columns > 150)  # below the muscle
    geometry = Geometry(image.shape[1:], len(image), None)
    place, dark = np.argwhere(seen), np.argwhere(hidden & ~seen)
    for share, fits in ((0.04, True), (0.06, False)):
        label = np.zeros(seen.shape, np.uint8)
        label[tuple(place[:1000].T)] = 1  # of another class all can be seen
        label[tuple(place[1000 : 1000 + round(500 * (1 - share))].T)] = 2
        label[tuple(dark[len(dark) // 3 :][: round(500 * share)].T)] = 2  # out in the dark
        voxels = Voxels(image.astype(np.float32), label)
        if fits:
            after = step.apply(voxels, geometry)
            np.testing.assert_array_equal(after.label, label)
            continue
        with pytest.raises(DataError, match=rf"{step.kind} would cut off 6% of a class.*at most 5%") as refused:
            step.apply(voxels, geometry)
        assert refused.value.code == ErrorCode.LABEL_DOUBTFUL


def test_where_there_is_no_muscle_nothing_is_taken_off() -> None:
    image, _ = mammogram(right=False, muscle=False)
    np.testing.assert_array_equal(applied(PectoralMuscle(), image[None]).image[0], image.astype(np.float32))


@real_images
def test_muscle_of_published_mammograms_is_a_bright_corner() -> None:
    """Every tenth film of mini-MIAS: one of the nine has no clear edge at most; what is taken off is brighter."""
    taken = 0
    films = sorted((Path(str(DATA)) / "mini_mias").glob("*.pgm"))[::10]
    for path in films:
        image = np.asarray(Image.open(path).convert("L").resize((512, 512))).astype(np.float32)
        tissue = breast(image)
        muscle = tissue & ~found(PectoralMuscle(), image[None])
        if muscle.any():
            taken += 1
            assert 0.01 < muscle.sum() / tissue.sum() < 0.5
            assert image[muscle].mean() > image[tissue & ~muscle].mean()
    assert len(films) == 9
    assert taken >= 8


@pytest.mark.parametrize("shape", [(7, 20, 30), (31, 17)])
def test_crop_is_monais_box(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    image = np.zeros((1, *shape), np.float32)
    inner = tuple(slice(edge // 4, edge - edge // 3) for edge in shape)
    image[0][inner] = rng.random(image[0][inner].shape) - 0.7
    for margin in (0, 2):
        start, end = generate_spatial_bounding_box(
            image, select_fn=lambda x: x > 0.1, margin=margin, allow_smaller=True
        )
        step = CropToForeground(threshold=0.1, margin=margin)
        part = applied(step, image).image
        np.testing.assert_array_equal(part, image[0][tuple(map(slice, start, end))][None])


def test_crop_is_of_what_otsu_calls_bright_and_within_what_is_inside() -> None:
    rng = np.random.default_rng(5)
    image = rng.normal(10, 2, (1, 30, 40))
    image[0, 8:21, 5:33] = rng.normal(90, 2, (13, 28))
    bright = np.argwhere(image[0] > threshold_otsu(image[0]))
    (top, left), (bottom, right) = bright.min(axis=0), bright.max(axis=0) + 1
    np.testing.assert_array_equal(
        applied(CropToForeground(), image).image, image[:, top:bottom, left:right].astype(np.float32)
    )
    inside = np.zeros((30, 40), bool)
    inside[10:18, 3:20] = True
    voxels = Voxels(image.astype(np.float32), None, inside)
    after = CropToForeground().apply(voxels, Geometry((30, 40), 1, None))
    np.testing.assert_array_equal(after.image, voxels.image[:, 10:18, 5:20])
    assert after.inside is not None
    assert after.inside.all()
    assert applied(CropToForeground(threshold=0.0), np.abs(image)).image.shape == image.shape


def test_the_box_of_a_picture_follows_from_its_brightness() -> None:
    """The mean of the channels: where one of them is bright alone there is nothing to see yet."""
    picture = np.zeros((3, 20, 24))
    picture[0, 2:18, 2:22] = 0.5
    picture[:, 6:12, 8:19] = 0.9
    np.testing.assert_array_equal(
        applied(CropToForeground(threshold=0.3), picture).image, picture[:, 6:12, 8:19].astype(np.float32)
    )
