import nibabel as nib
import numpy as np
import pytest

from client.data.study.geometry import Stack, body_axes, stack_slices
from common.errors import DataError, ErrorCode

OBLIQUE = np.array([0.8, 0.6, 0.0, -0.36, 0.48, 0.8])


def positions(count: int, orientation: np.ndarray, step_mm: float = 2.5) -> np.ndarray:
    normal = np.cross(orientation[:3], orientation[3:])
    where: np.ndarray = np.array([3.0, -7.0, 11.0]) + np.arange(count)[:, None] * step_mm * normal
    return where


def stack(where: np.ndarray, orientation: np.ndarray = OBLIQUE) -> Stack:
    count = len(where)
    return stack_slices(where, np.tile(orientation, (count, 1)), np.tile([0.7, 0.6], (count, 1)), 4.0)


def assert_refused(where: np.ndarray, code: ErrorCode) -> None:
    with pytest.raises(DataError) as error:
        stack(where)
    assert error.value.code is code


def test_shuffled_slices_are_sorted_along_the_normal() -> None:
    where = positions(9, OBLIQUE)
    shuffled = np.random.default_rng(1).permutation(9)
    found = stack(where[shuffled])
    assert shuffled[found.order].tolist() == list(range(9))
    assert found.spacing_mm == pytest.approx((2.5, 0.7, 0.6))


def test_affine_puts_voxels_where_dicom_says() -> None:
    # PS3.3 equation C.7.6.2.1-1, by hand.
    where = positions(4, OBLIQUE)
    expected = where[3] + OBLIQUE[:3] * 0.6 * 5 + OBLIQUE[3:] * 0.7 * 2
    assert (stack(where).affine @ [3, 2, 5, 1])[:3] == pytest.approx(expected)


def test_one_slice_takes_the_thickness_as_spacing() -> None:
    assert stack(positions(1, OBLIQUE)).spacing_mm[0] == pytest.approx(4.0)


def test_rounded_positions_are_still_even() -> None:
    assert stack(positions(40, OBLIQUE, step_mm=1.25).round(2)).spacing_mm[0] == pytest.approx(1.25, abs=1e-3)


@pytest.mark.parametrize("lost", [1, 4, 7])
def test_lost_slice_is_missing(lost: int) -> None:
    assert_refused(np.delete(positions(9, OBLIQUE), lost, axis=0), ErrorCode.MISSING_SLICES)


def test_two_slices_at_one_position_are_refused() -> None:
    where = positions(5, OBLIQUE)
    assert_refused(np.concatenate([where, where[2:3]]), ErrorCode.GEOMETRY_MISMATCH)


def test_sideways_jump_is_refused_and_tilted_gantry_is_not() -> None:
    where = positions(6, OBLIQUE)
    tilted = where + np.arange(6)[:, None] * 0.9 * OBLIQUE[3:]
    assert stack(tilted).spacing_mm[0] == pytest.approx(2.5)
    jumped = where.copy()
    jumped[3:] += 5 * OBLIQUE[:3]
    assert_refused(jumped, ErrorCode.GEOMETRY_MISMATCH)


def test_mixed_orientations_are_refused() -> None:
    axial = np.array([1.0, 0, 0, 0, 1, 0])
    with pytest.raises(DataError, match="different orientations"):
        stack_slices(positions(2, axial), np.stack([axial, OBLIQUE]), np.ones((2, 2)), 1.0)


@pytest.mark.parametrize("orientation", [np.zeros(6), np.array([1.0, 0, 0, 1, 0, 0]), np.full(6, np.nan)])
def test_impossible_orientation_is_refused(orientation: np.ndarray) -> None:
    with pytest.raises(DataError) as error:
        stack(np.zeros((2, 3)), orientation)
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH


@pytest.mark.parametrize("code", ["RAS", "LPS", "SPL", "PIR", "AIL", "IRP"])
def test_every_storage_order_turns_into_the_same_body_axes(code: str) -> None:
    # Oracle: nibabel's orientations. The same anatomy, stored in another order.
    anatomy = np.arange(2 * 3 * 5).reshape(5, 3, 2)  # (i, j, k), RAS
    ras = np.diag([2.0, 3.0, 4.0, 1.0])
    target = nib.orientations.axcodes2ornt(tuple(code))
    stored = nib.Nifti1Image(anatomy.astype(np.int16), ras).as_reoriented(target_transform(target))
    affine = np.diag([-1.0, -1, 1, 1]) @ stored.affine @ np.eye(4)[[2, 1, 0, 3]]
    voxels = np.asarray(stored.dataobj).transpose()
    axes, flips = body_axes(affine, keep_slices=False)
    turned = np.flip(voxels.transpose(axes), tuple(axis for axis, flip in enumerate(flips) if flip))
    # RAS to (head, back, left): k up as it is, j and i reversed.
    assert (turned == anatomy.transpose()[:, ::-1, ::-1]).all()


def target_transform(target: np.ndarray) -> np.ndarray:
    start = nib.orientations.axcodes2ornt(("R", "A", "S"))
    return np.asarray(nib.orientations.ornt_transform(start, target))


def test_slices_of_a_sagittal_series_stay_slices() -> None:
    # Rows run back to front of the patient (y), columns downwards (-z), slices to the right.
    sagittal = np.array([0.0, 1, 0, 0, 0, -1])
    axes, flips = body_axes(stack(positions(3, sagittal), sagittal).affine, keep_slices=True)
    assert axes == (0, 1, 2)
    assert flips == (True, True, False)


def test_flat_affine_is_refused() -> None:
    with pytest.raises(DataError) as error:
        body_axes(np.diag([1.0, 0.0, 1.0, 1.0]), keep_slices=False)
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH


@pytest.mark.parametrize("spacing", [0.0, -0.7, np.nan, np.inf])
def test_pixels_without_a_size_are_implausible(spacing: float) -> None:
    with pytest.raises(DataError) as error:
        stack_slices(positions(3, OBLIQUE), np.tile(OBLIQUE, (3, 1)), np.tile([0.7, spacing], (3, 1)), 4.0)
    assert error.value.code is ErrorCode.IMPLAUSIBLE


@pytest.mark.parametrize("thickness_mm", [0.0, -5.0, np.nan])
def test_one_slice_without_a_thickness_is_a_millimetre_thick(thickness_mm: float) -> None:
    found = stack_slices(positions(1, OBLIQUE), OBLIQUE[None], np.array([[0.7, 0.6]]), thickness_mm)
    assert found.spacing_mm == pytest.approx((1.0, 0.7, 0.6))


def test_positions_that_are_no_numbers_are_refused() -> None:
    where = positions(3, OBLIQUE)
    where[1, 2] = np.nan
    assert_refused(where, ErrorCode.GEOMETRY_MISMATCH)
