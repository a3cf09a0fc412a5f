from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.data import nifti, sources
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.studies import source, write_volume

DATA = DataConfig(modality="MR", classes=("head", "tail"))
AFFINE = np.array([[0.0, -2.0, 0, 5], [1.0, 0, 0.1, -4], [0, 0.2, 3.0, 9], [0, 0, 0, 1]])


def write_labelled(folder: Path, label: np.ndarray, label_affine: np.ndarray = AFFINE) -> np.ndarray:
    voxels = np.random.default_rng(3).normal(size=(5, 6, 7)).astype(np.float32)
    write_volume(folder / "images" / "a.nii.gz", voxels, AFFINE)
    write_volume(folder / "labels" / "a.nii.gz", label, label_affine)
    return voxels


def read(folder: Path, **options: object):  # type: ignore[no-untyped-def]
    (reference,) = sources.find(source(path=".", **options), folder).references
    return sources.read(reference, DATA)


def assert_refused(folder: Path, code: ErrorCode) -> None:
    with pytest.raises(DataError) as error:
        read(folder)
    assert error.value.code is code


def test_volume_is_read_as_z_y_x_with_its_place_in_the_patient(tmp_path: Path) -> None:
    label = np.zeros((5, 6, 7), np.uint8)
    label[1, 2, 3] = 2
    voxels = write_labelled(tmp_path, label)
    study = read(tmp_path)
    assert study.image[0, 3, 2, 1] == voxels[1, 2, 3]
    assert study.label[3, 2, 1] == 2
    # Oracle: nibabel's own mapping, RAS to LPS by hand.
    x, y, z = nib.affines.apply_affine(AFFINE, (1, 2, 3))
    assert (study.affine @ [3, 2, 1, 1])[:3] == pytest.approx([-x, -y, z])
    i, j, k = nib.affines.voxel_sizes(AFFINE)
    assert study.spacing_mm == pytest.approx((k, j, i))


def test_scaled_integers_become_real_values(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii")
    expected = nib.load(tmp_path / "a.nii").get_fdata()[1, 0, 1]
    assert sources.read_image(tmp_path / "a.nii").image[0, 1, 0, 1] == pytest.approx(expected)


def test_written_result_lies_on_the_image(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8))
    study = read(tmp_path)
    nifti.write_nifti(tmp_path / "out.nii.gz", study.image[0], study.affine)
    written, original = nib.load(tmp_path / "out.nii.gz"), nib.load(tmp_path / "images" / "a.nii.gz")
    assert written.affine == pytest.approx(original.affine)
    assert (written.get_fdata() == original.get_fdata()).all()


def test_flat_image_is_one_slice(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", np.ones((5, 6), np.float32), np.eye(4))
    assert sources.read_image(tmp_path / "a.nii").image.shape == (1, 1, 6, 5)


def test_label_of_another_shape_does_not_fit(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 8), np.uint8))
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


def test_label_in_another_place_does_not_fit_and_rounding_does(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 1e-3
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8), moved)
    assert read(tmp_path).label.sum() == 0
    moved[0, 3] += 1.0
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8), moved)
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


def test_wrong_label_value_is_unknown(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.full((5, 6, 7), 3, np.uint8))
    assert_refused(tmp_path, ErrorCode.LABEL_UNKNOWN)


def test_volume_without_label_map_has_no_label(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8))
    (tmp_path / "labels" / "a.nii.gz").unlink()
    assert_refused(tmp_path, ErrorCode.NO_LABEL)


def test_time_series_is_not_supported(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8))
    write_volume(tmp_path / "images" / "a.nii.gz", np.zeros((5, 6, 7, 2), np.float32), AFFINE)
    assert_refused(tmp_path, ErrorCode.UNSUPPORTED)


@pytest.mark.parametrize("keep", [0, 40, 400])
def test_cut_file_is_unreadable(tmp_path: Path, keep: int) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8))
    image = tmp_path / "images" / "a.nii.gz"
    image.write_bytes(image.read_bytes()[:keep])
    assert_refused(tmp_path, ErrorCode.UNREADABLE)
