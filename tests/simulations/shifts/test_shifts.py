"""A shift changes images or labels and never both, by what it says, and draws the same for the same patient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.data.study.study import Study
from common.config import validate
from simulations.shifts import SHIFTS, Shift, shifted
from simulations.shifts.annotator import Annotator
from simulations.shifts.bias_field import BiasField
from simulations.shifts.gain import Gain
from simulations.shifts.gamma import Gamma
from simulations.shifts.missed_regions import MissedRegions
from simulations.shifts.noise import Noise
from simulations.shifts.resolution import Resolution
from simulations.shifts.shift import ImageShift, LabelShift
from simulations.shifts.wrong_classes import WrongClasses

CLASSES = ("organ", "lesion")
SHAPES = [(2, 5, 12, 9), (1, 1, 7, 8), (3, 10, 11)]  # a volume of two channels, one slice, a photograph


def a_shift(kind: type[Shift], **settings: Any) -> Shift:
    return validate(kind, {"sites": ["north"], **settings})


def a_study(image: NDArray[Any], label: NDArray[Any] | None = None, **changes: Any) -> Study:
    space = image.shape[1:]
    volume = len(space) == 3
    values: dict[str, Any] = {
        "spacing_mm": (3.0, 1.0, 1.5) if volume else None,
        "affine": np.eye(4) if volume else None,
        "modality": "",
        "patient": "p",
        "key": "k",
        "files": (Path("p"),),
        "classes": CLASSES,
        **changes,
    }
    return Study(image.astype(np.float32), None if label is None else label.astype(np.uint8), **values)


def random_study(shape: tuple[int, ...] = SHAPES[0], **changes: Any) -> Study:
    rng = np.random.default_rng(5)
    label = rng.integers(0, 3, shape[1:])
    return a_study(rng.normal(100, 20, shape), label, findings=(1,), **changes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", SHIFTS)
def test_a_shift_is_of_images_or_of_labels_and_keeps_the_grid(kind: type[Shift], shape: tuple[int, ...]) -> None:
    before = random_study(shape)
    assert before.label is not None
    image, label = before.image.copy(), before.label.copy()
    after = shifted(before, [a_shift(kind)])
    assert after.label is not None
    assert (before.image == image).all()  # nothing is changed in place
    assert (before.label == label).all()
    assert after.image.shape == shape
    assert after.image.dtype == np.float32
    assert after.label.shape == shape[1:]
    assert after.label.dtype == np.uint8
    assert set(np.unique(after.label)) <= {0, 1, 2}
    assert np.isfinite(after.image).all()
    if issubclass(kind, ImageShift):
        assert (after.label == label).all()
        assert after.findings == before.findings
        assert not (after.image == image).all()
    else:
        assert issubclass(kind, LabelShift)
        assert (after.image == image).all()


@pytest.mark.parametrize("kind", SHIFTS)
def test_the_same_seed_and_patient_have_the_same_bits_whatever_came_before(kind: type[Shift]) -> None:
    label = np.zeros((5, 12, 9), int)
    label[::2, ::2, ::2] = 1  # each voxel a region

    def made(patient: str, key: str, seed: int) -> tuple[bytes, bytes, object]:
        study = a_study(random_study().image, label, findings=(1,), patient=patient, key=key)
        after = shifted(study, [a_shift(kind, seed=seed)])
        assert after.label is not None
        return after.image.tobytes(), after.label.tobytes(), after.findings

    first = made("p", "k", 0)
    others = [made("q", "k", 0), made("p", "l", 0), made("p", "k", 1)]
    assert made("p", "k", 0) == first
    if kind in (Noise, BiasField, MissedRegions):
        assert len({first[:2], *(one[:2] for one in others)}) == 4
    elif kind is not WrongClasses:  # nothing is drawn
        assert {*others} == {first}


def test_two_shifts_of_one_kind_draw_by_themselves() -> None:
    study = random_study()
    once, twice = (shifted(study, [a_shift(Noise)] * number).image for number in (1, 2))
    first, second = once - study.image, twice - once
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.2


def test_gain_and_offset_by_hand_and_padding_stays() -> None:
    padding = np.zeros((1, 2, 2), bool)
    padding[0, 0, 0] = True
    study = a_study(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), padding=padding)
    assert shifted(study, [a_shift(Gain, gain=2.0, offset=-0.5)]).image.tolist() == [[[[1.0, 3.5], [5.5, 7.5]]]]


def test_gamma_by_hand_of_each_channel() -> None:
    image = np.array([[[0.0, 5.0, 10.0]], [[100.0, 150.0, 200.0]]])
    made = shifted(a_study(image), [a_shift(Gamma, gamma=2.0)]).image
    assert made == pytest.approx(np.array([[[0.0, 2.5, 10.0]], [[100.0, 125.0, 200.0]]]), abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bias_of_a_flat_image_is_a_smooth_field_that_channels_share(shape: tuple[int, ...]) -> None:
    made = shifted(a_study(np.full(shape, 100.0)), [a_shift(BiasField, strength=0.1)]).image
    field = np.log(made / 100)
    assert (made == made[0]).all()
    assert 0 < np.abs(field).max() < 0.1 * 20  # at most twenty terms of at most 1 each
    if shape[-1] == 9:  # of third degree along each axis: the fourth difference is none
        assert np.abs(np.diff(field, 4, axis=-1)).max() < 1e-4


def test_noise_is_as_wide_as_it_says() -> None:
    ramp = np.linspace(0, 1000, 40 * 50 * 50).reshape(1, 40, 50, 50)
    added = shifted(a_study(ramp), [a_shift(Noise, deviation=0.1)]).image - ramp
    assert added.std() == pytest.approx(98, rel=0.01)  # 98 % of the range of a ramp lie between those percentiles
    assert abs(added.mean()) < 1


def test_a_coarser_scanner_keeps_what_is_wide_and_loses_what_is_thin() -> None:
    flat, thin = np.full((1, 16, 16, 16), 7.0), np.zeros((1, 16, 16, 16))
    thin[0, :, 8] = 1.0  # a plane one voxel thick, across the rows
    all_, slices = (a_shift(Resolution, factor=4.0, along=along) for along in ("all", "slices"))
    assert shifted(a_study(flat), [all_]).image == pytest.approx(flat, abs=1e-5)
    made = shifted(a_study(thin), [all_]).image
    assert made.max() < 0.4
    assert shifted(a_study(thin), [slices]).image == pytest.approx(thin, abs=1e-6)
    # Kept at four places and drawn straight between them: no bend elsewhere.
    bends = np.abs(np.diff(made[0, 0, :, 0], 2)) > 1e-6
    assert bends.sum() <= 8


def test_a_wrong_class_is_never_the_right_one_and_as_frequent_as_it_says() -> None:
    shift = a_shift(WrongClasses, probability=0.25, instead="classes-or-none")
    image = np.zeros((1, 2, 2))
    for findings, others in (((1,), {(), (2,)}), ((), {(1,), (2,)}), ((1, 2), {(1,), (2,)})):
        told = [
            shifted(a_study(image, findings=findings, patient=str(patient)), [shift]).findings
            for patient in range(2000)
        ]
        wrong = [one for one in told if one != findings]
        assert len(wrong) == pytest.approx(500, abs=80)  # four standard deviations of a binomial
        assert set(wrong) == others
    only = a_shift(WrongClasses, probability=1.0)
    assert shifted(a_study(image, findings=(1,)), [only]).findings == (2,)
    assert shifted(a_study(image, findings=(1,), classes=("organ",)), [only]).findings == (1,)  # there is no other


def test_missed_regions_are_whole_and_the_largest_is_seen() -> None:
    label = np.zeros((1, 9, 9), int)
    label[0, 0, :3], label[0, 4, :2], label[0, 8, 8], label[0, 5, 5] = 2, 2, 2, 1
    made = shifted(a_study(np.zeros((1, 1, 9, 9)), label), [a_shift(MissedRegions, probability=1.0)]).label
    wanted = label.copy()
    wanted[0, 4, :2] = wanted[0, 8, 8] = 0
    assert made is not None
    assert (made == wanted).all()


def test_a_region_that_hangs_together_by_corners_is_missed_or_seen_as_one() -> None:
    label = np.zeros((1, 9, 9), int)
    label[0, 0, :3] = 1
    label[0, [5, 6, 7, 8], [5, 6, 7, 8]] = 1  # a thin vessel, larger than what is compact
    made = shifted(a_study(np.zeros((1, 1, 9, 9)), label), [a_shift(MissedRegions, probability=1.0)]).label
    assert made is not None
    assert np.argwhere(made).tolist() == [[0, one, one] for one in (5, 6, 7, 8)]


def test_a_missed_region_leaves_the_class_that_it_lies_in() -> None:
    label = np.zeros((1, 9, 9), int)
    label[0, 1:8, 1:8] = 1  # bit of the organ
    label[0, 2, 2:5] |= 2
    label[0, 6, 6] |= 2
    study = a_study(np.zeros((1, 1, 9, 9)), label, overlap=True)
    made = shifted(study, [a_shift(MissedRegions, probability=1.0)]).label
    assert made is not None
    assert ((made & 1) == (label & 1)).all()
    assert np.flatnonzero((made & 2).any(axis=(0, 2))).tolist() == [2]


@pytest.mark.parametrize("margin", [-1.6, -1.0, 1.0, 1.6, 3.0])
def test_an_outline_moves_by_millimetres(margin: float) -> None:
    spacing = np.array([3.0, 1.0, 1.5])
    label = np.zeros((5, 12, 12), int)
    label[1:4, 3:9, 3:9] = 1
    made = shifted(a_study(np.zeros((1, *label.shape)), label), [a_shift(Annotator, margin_mm=margin)]).label
    # By brute force: each voxel's distance to the nearest one of the other side.
    places = np.argwhere(np.ones(label.shape))
    inside = label.ravel() == 1
    apart = np.linalg.norm((places[:, None] - places[None]) * spacing, axis=2)
    if margin > 0:
        wanted = inside | (apart[:, inside].min(1) <= margin)
    else:
        wanted = inside & (apart[:, ~inside].min(1) > -margin)
    assert made is not None
    assert ((made.ravel() == 1) == wanted).all()


def test_classes_grow_to_the_nearer_one_and_never_over_each_other() -> None:
    label = np.zeros((1, 1, 9), int)
    label[..., 0], label[..., 5], label[..., 6] = 1, 2, 1
    study = a_study(np.zeros((1, 1, 1, 9)), label, spacing_mm=(1.0, 1.0, 1.0))
    made = shifted(study, [a_shift(Annotator, margin_mm=3.0)]).label
    assert made is not None
    assert made.ravel().tolist() == [1, 1, 1, 2, 2, 2, 1, 1, 1]
    small = shifted(study, [a_shift(Annotator, margin_mm=-3.0)]).label
    assert small is not None
    assert (small == label).all()  # they would vanish


def test_a_study_without_a_label_stays_without() -> None:
    study = a_study(np.ones((1, 4, 4)))
    for kind in (WrongClasses, MissedRegions, Annotator):
        after = shifted(study, [a_shift(kind)])
        assert (after.label, after.findings) == (None, None)


@pytest.mark.parametrize("kind", [one for one in SHIFTS if issubclass(one, ImageShift)])
def test_values_that_are_no_numbers_stay_where_they_are_and_do_not_spread(kind: type[Shift]) -> None:
    before = random_study()
    before.image[0, 2, 3, 4] = np.nan
    after = shifted(before, [a_shift(kind)]).image
    assert (np.isnan(after) == np.isnan(before.image)).all()


def test_a_class_that_is_everywhere_does_not_shrink_towards_a_corner() -> None:
    everywhere = np.ones((6, 7))
    after = shifted(a_study(np.zeros((1, 6, 7)), everywhere), [a_shift(Annotator, **{"margin-mm": -2.0})])
    assert after.label is not None
    assert np.array_equal(after.label, everywhere)
