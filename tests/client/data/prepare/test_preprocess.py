from typing import NoReturn

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from client.data.prepare import changes_of
from client.data.prepare.intensity import Intensity
from client.data.prepare.preprocess import as_samples, preprocess, refusal, restore
from client.data.study.study import Study
from common.config import RunConfig
from common.errors import DataError, ErrorCode
from common.preparation import Geometry, Voxels
from tests.client.data.studies import blob, dice, photo_run, run_config

RAW = {"intensity": "window", "window": [0.0, 1.0]}


def photo(pixels: np.ndarray, label: np.ndarray | None = None) -> Study:
    return Study(pixels.astype(np.float32), label, None, None, "", "", "", ())


def volume(
    voxels: np.ndarray, spacing_mm: tuple[float, float, float], turn: np.ndarray | None = None, label: bool = True
) -> Study:
    """An axial study; turn: 3x3 directions of (z, y, x) in LPS."""
    directions = np.eye(3)[:, ::-1] if turn is None else turn
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    return Study(voxels.astype(np.float32)[None], voxels if label else None, spacing_mm, affine, "CT", "", "", ())


def sizes_of(study: Study, run: RunConfig) -> tuple[int, ...]:
    return tuple(preprocess(study, run)[0].shape)


def test_rows_keep_the_aspect_ratio() -> None:
    assert sizes_of(photo(np.zeros((3, 100, 151))), photo_run(rows=64)) == (3, 64, 97)


def test_2d_model_resamples_a_series_within_its_slices_only() -> None:
    run = run_config(preprocessing={"spacing-mm": [2.0, 1.0]})
    image, label, _ = preprocess(volume(blob((7, 20, 30)), (5.0, 1.0, 0.5)), run)
    assert image.shape == (1, 7, 10, 15)
    assert as_samples(image, 2).shape == (7, 1, 10, 15)
    assert label is not None
    assert label.shape == (7, 10, 15)


def test_3d_model_resamples_all_axes_and_is_one_sample() -> None:
    image, *_ = preprocess(
        volume(blob((7, 20, 30)), (5.0, 1.0, 0.5)), run_config(3, preprocessing={"spacing-mm": [2.5, 2, 1]})
    )
    assert image.shape == (1, 14, 10, 15)
    assert as_samples(image, 3).shape == (1, 1, 14, 10, 15)
    assert as_samples(torch.zeros(3, 8, 9), 2).shape == (1, 3, 8, 9)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    spacing=st.tuples(*[st.floats(0.3, 4.0)] * 3),
    dims=st.sampled_from([2, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_restore_comes_back_on_the_studys_own_grid(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], dims: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    turn = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    study = volume(rng.integers(0, 3, shape).astype(np.uint8), spacing, turn)
    run = run_config(dims, preprocessing={"spacing-mm": [1.0] * dims})
    assert study.label is not None
    image, label, way = preprocess(study, run)
    assert label is not None
    assert image.shape[1:] == label.shape
    restored = restore(label, way)
    assert restored.shape == shape
    assert set(np.unique(restored)) <= set(np.unique(study.label))


@pytest.mark.parametrize("dims", [2, 3])
def test_turned_study_without_resampling_is_restored_exactly(dims: int) -> None:
    values = np.random.default_rng(0).integers(0, 5, (4, 5, 7)).astype(np.uint8)
    turn = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, -1]])
    study = volume(values, (1.0, 1.0, 1.0), turn)
    run = run_config(dims)
    _, label, way = preprocess(study, run)
    assert label is not None
    assert (restore(label, way) == values).all()


@pytest.mark.parametrize("shape", [(11, 61, 83), (9, 96, 64)])
@pytest.mark.parametrize("dims", [2, 3])
def test_blob_survives_the_round_trip(shape: tuple[int, int, int], dims: int) -> None:
    study = volume(blob(shape), (3.0, 0.9, 0.7))
    run = run_config(dims, preprocessing={"spacing-mm": [2.0, 1.3, 1.1][-dims:]})
    _, label, way = preprocess(study, run)
    assert label is not None
    assert dice(restore(label, way), blob(shape)) > 0.9


def test_image_and_label_stay_aligned_when_resized() -> None:
    mask = blob((150, 201))
    image, label, _ = preprocess(photo(mask[None], mask), photo_run(rows=64, **RAW))
    assert label is not None
    assert dice((image[0] > 0.5).numpy(), label.numpy()) > 0.97


def test_same_anatomy_stored_in_another_order_gives_the_same_input() -> None:
    run = run_config(3, preprocessing={"spacing-mm": [1.0, 1.0, 1.0]})
    voxels = np.random.default_rng(2).integers(0, 200, (6, 10, 8)).astype(np.uint8)
    axial = volume(voxels, (2.0, 1.5, 1.0))
    flipped = volume(voxels[:, ::-1, ::-1], (2.0, 1.5, 1.0), np.array([[0.0, 0, -1], [0, -1, 0], [1, 0, 0]]))
    sagittal = volume(voxels.transpose(2, 0, 1), (1.0, 2.0, 1.5), np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]))
    reference = preprocess(axial, run)[0]
    for other in (flipped, sagittal):
        assert torch.equal(preprocess(other, run)[0], reference)


def test_window_is_linear_and_clipped() -> None:
    run = run_config(preprocessing={"intensity": "window", "window": [-100.0, 300.0]})
    image, *_ = preprocess(photo(np.array([[[-500, -100, 100, 300, 900]]])), run)
    assert image.flatten().tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_percentiles_are_numpys_on_each_channel() -> None:
    pixels = np.random.default_rng(4).normal(size=(3, 41, 57)) * np.array([1, 10, 100])[:, None, None]
    image, *_ = preprocess(photo(pixels), photo_run())
    for found, channel in zip(image, pixels, strict=True):
        low, high = np.percentile(channel, [0.5, 99.5])
        assert found.numpy() == pytest.approx(np.clip((channel - low) / (high - low), 0, 1), abs=1e-4)


def test_percentiles_of_a_large_study_are_sampled_evenly() -> None:
    ramp = np.broadcast_to(np.arange(4.0), (1, 2**20, 4))  # a stride of 4 would see one column
    image, *_ = preprocess(photo(ramp), run_config())
    assert float(image.mean()) == pytest.approx(0.5, abs=0.01)


def test_zscore_has_mean_zero_and_variance_one() -> None:
    image, *_ = preprocess(
        photo(np.random.default_rng(4).normal(7, 3, (1, 33, 21))), run_config(preprocessing={"intensity": "zscore"})
    )
    assert float(image.mean()) == pytest.approx(0, abs=1e-5)
    assert float(image.std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("intensity", ["percentile", "min-max", "zscore", "zscore-foreground"])
def test_constant_image_gives_finite_input(intensity: str) -> None:
    image, *_ = preprocess(photo(np.full((1, 8, 8), 5)), run_config(preprocessing={"intensity": intensity}))
    assert torch.isfinite(image).all()


def test_min_max_takes_the_lowest_to_0_and_the_highest_to_1() -> None:
    image, *_ = preprocess(photo(np.array([[[-7.0, 3.0, 13.0]]])), run_config(preprocessing={"intensity": "min-max"}))
    assert image.flatten().tolist() == pytest.approx([0, 0.5, 1])


def test_zscore_of_the_foreground_is_of_what_simpleitks_otsu_finds_bright() -> None:
    rng = np.random.default_rng(8)
    pixels = np.where(blob((40, 60)), rng.normal(200, 20, (40, 60)), 20).astype(np.float32)
    image, *_ = preprocess(photo(pixels[None]), run_config(preprocessing={"intensity": "zscore-foreground"}))
    bright = SimpleITK.GetArrayFromImage(SimpleITK.OtsuThreshold(SimpleITK.GetImageFromArray(pixels), 0, 1)).astype(
        bool
    )
    assert (bright == blob((40, 60))).all()
    assert image[0].numpy() == pytest.approx((pixels - pixels[bright].mean()) / pixels[bright].std(), abs=1e-4)


def test_the_foreground_is_found_and_measured_within_what_is_inside() -> None:
    """A frame far brighter than all else, which an earlier step has left out: by scikit-image's Otsu, by hand."""
    rng = np.random.default_rng(6)
    image = np.where(rng.random((30, 32)) < 0.4, rng.normal(90, 4, (30, 32)), rng.normal(10, 3, (30, 32)))
    inside = np.zeros((30, 32), np.bool_)
    inside[4:-4, 4:-4] = True
    image[~inside] = 5000
    seen = image[inside].astype(np.float32)
    counted = seen[seen > threshold_otsu(seen)].astype(np.float64)
    run = run_config(preprocessing={"intensity": "zscore-foreground"})
    voxels = Voxels(image[None].astype(np.float32), None, inside)
    found = Intensity(run).apply(voxels, Geometry((30, 32), 1, None)).image[0]
    assert found == pytest.approx((image - counted.mean()) / counted.std(), rel=1e-4, abs=1e-4)


def test_foreground_of_one_value_leaves_a_picture_of_two_as_large_as_any_other() -> None:
    """Its deviation is none: what is dark was hundreds of millions, and a loss of that ends a run."""
    pixels = np.zeros((20, 30), np.float32)
    pixels[5:9, 4:20] = 255
    image, *_ = preprocess(photo(pixels[None]), run_config(preprocessing={"intensity": "zscore-foreground"}))
    assert image.numpy() == pytest.approx((pixels[None] - pixels.mean()) / pixels.std(), abs=1e-5)


@pytest.mark.parametrize("intensity", ["zscore", "percentile", "min-max", "zscore-foreground"])
def test_values_near_the_end_of_float32_do_not_overflow(intensity: str) -> None:
    values = np.array([-3e38, -1e38, 0, 1e38, 3e38])
    image, *_ = preprocess(photo(values[None, None]), run_config(preprocessing={"intensity": intensity}))
    wide = {
        "zscore": (values - values.mean()) / values.std(),
        "zscore-foreground": (values - values[2:].mean()) / values[2:].std(),  # Otsu parts -1e38 from 0, by hand
    }
    low, high = np.percentile(values, [0.5, 99.5]) if intensity == "percentile" else (-3e38, 3e38)
    expected = wide.get(intensity, np.clip((values - low) / (high - low), 0, 1))
    assert image.flatten().numpy() == pytest.approx(expected, rel=1e-5)


def test_a_window_beyond_float32_gives_numbers() -> None:
    image, *_ = preprocess(
        photo(np.array([[[-5.0, 0, 5]]])),
        run_config(preprocessing={"intensity": "window", "window": [-1e39, 1e39]}),
    )
    assert image.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_ordinary_images_keep_the_bits_that_they_had() -> None:
    """As it was computed before there were foregrounds, regions and large values to think of."""
    pixels = torch.from_numpy(np.random.default_rng(11).integers(-1000, 2000, (1, 37, 41)).astype(np.float32))
    zscored, *_ = preprocess(photo(pixels.numpy()), run_config(preprocessing={"intensity": "zscore"}))
    deviation, mean = torch.std_mean(pixels[0], correction=0)
    assert torch.equal(zscored[0], pixels[0].clone().sub_(mean).div_(deviation.clamp_min(1e-6)))
    scaled, *_ = preprocess(photo(pixels.numpy()), run_config())
    low, high = map(float, np.percentile(pixels.flatten().numpy(), (0.5, 99.5)))
    assert torch.equal(scaled[0], pixels[0].clone().sub_(low).div_(high - low).clamp_(0, 1))


def test_colour_becomes_grey_and_grey_three_channels() -> None:
    grey = preprocess(photo(np.array([0.0, 1.0, 0.0])[:, None, None]), run_config(preprocessing=RAW))[0]
    assert grey.tolist() == [[[pytest.approx(0.587)]]]
    three = preprocess(photo(np.full((1, 2, 2), 0.25)), photo_run(**RAW))[0]
    assert three.shape == (3, 2, 2)
    assert (three == 0.25).all()


def test_study_itself_is_left_as_it_was() -> None:
    study = photo(np.full((1, 4, 4), 0.3))
    preprocess(study, run_config(preprocessing=RAW))[0].zero_()
    assert (study.image == np.float32(0.3)).all()


def test_downsampling_keeps_the_mean_of_a_fine_pattern() -> None:
    checkers = np.indices((128, 128)).sum(axis=0) % 2
    image, *_ = preprocess(photo(checkers[None]), run_config(preprocessing={"rows": 32, **RAW}))
    assert image.numpy() == pytest.approx(0.5, abs=0.02)


def test_studies_that_do_not_fit_the_run_are_refused() -> None:
    flat = photo(np.zeros((1, 8, 8)))
    cases = [
        (flat, run_config(3), ErrorCode.UNSUPPORTED),
        (flat, run_config(preprocessing={"spacing-mm": [1.0, 1.0]}), ErrorCode.UNSUPPORTED),
        (photo(np.zeros((4, 8, 8))), photo_run(), ErrorCode.UNSUPPORTED),
        (photo(np.full((1, 8, 8), np.nan)), run_config(), ErrorCode.IMPLAUSIBLE),
        (photo(np.array([[[np.inf, -np.inf]]])), run_config(), ErrorCode.IMPLAUSIBLE),
    ]
    for study, run, code in cases:
        with pytest.raises(DataError) as error:
            preprocess(study, run)
        assert error.value.code is code


def test_study_that_the_run_would_blow_up_is_refused_before_a_voxel_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(*_: object) -> NoReturn:
        raise AssertionError("a voxel was touched")

    for change in changes_of(run_config()):
        monkeypatch.setattr(type(change), "apply", touch)
    large = volume(blob((5, 20, 30)), (3.0, 0.8, 0.7))
    run = run_config(preprocessing={"spacing-mm": [0.0005, 0.0005]})  # 5 x 32000 x 42000
    told = refusal(Geometry((5, 20, 30), 1, large.spacing_mm, large.affine), run)
    with pytest.raises(DataError, match=r"more than 2\.1 thousand million voxels") as refused:
        preprocess(large, run)
    assert told is not None
    assert (told.code, str(told)) == (refused.value.code, str(refused.value))
    assert told.code is ErrorCode.UNSUPPORTED


def test_labels_of_another_shape_are_not_restored() -> None:
    with pytest.raises(ValueError, match="preprocess gave"):
        restore(np.zeros((3, 3), np.uint8), preprocess(photo(np.zeros((1, 8, 8))), run_config()).way)
