import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to

from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.data.study.study import Study
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.studies import read_image, source, write_volume

DATA = DataConfig(modality="MR", classes=("head", "tail"))
AFFINE = np.array([[0.0, -2.0, 0, 5], [1.0, 0, 0.1, -4], [0, 0.2, 3.0, 9], [0, 0, 0, 1]])


def write_labelled(folder: Path, label: np.ndarray, label_affine: np.ndarray = AFFINE) -> np.ndarray:
    voxels = np.random.default_rng(3).normal(size=(5, 6, 7)).astype(np.float32)
    write_volume(folder / "images" / "a.nii.gz", voxels, AFFINE)
    write_volume(folder / "labels" / "a.nii.gz", label, label_affine)
    return voxels


def read(folder: Path, **options: object) -> Study:
    (reference,) = sources.find(source(path=".", **options), folder).references
    return sources.read(reference, Vocabulary.of_run(DATA, reference.label_map))


def label_of(folder: Path, **options: object) -> np.ndarray:
    label = read(folder, **options).label
    assert label is not None
    return label


def set_codes(folder: Path, codes: tuple[int, int]) -> None:
    """Set sform_code of the image and of the label."""
    for name, code in zip(("images", "labels"), codes, strict=True):
        path = folder / name / "a.nii.gz"
        file = nib.Nifti1Image.from_filename(path)
        file.set_sform(AFFINE, code)
        file.set_qform(None, 0)
        nib.save(nib.Nifti1Image(np.asarray(file.dataobj), None, file.header), path)


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
    assert study.label is not None
    assert study.affine is not None
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
    expected = nib.Nifti1Image.from_filename(tmp_path / "a.nii").get_fdata()[1, 0, 1]
    assert read_image(tmp_path / "a.nii").image[0, 1, 0, 1] == pytest.approx(expected)


def test_flat_image_is_one_slice(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", np.ones((5, 6), np.float32), np.eye(4))
    assert read_image(tmp_path / "a.nii").image.shape == (1, 1, 6, 5)


def test_label_on_another_grid_is_resampled_as_nibabel_does(tmp_path: Path) -> None:
    turn = np.array([[0.1, 1.1, 0.2, -9], [-0.9, 0.15, 0, 6], [0.1, -0.2, 1.3, 5], [0, 0, 0, 1]])
    label = np.zeros((14, 12, 17), np.uint8)
    label[1:-1, 1:-1, 1:-1] = np.random.default_rng(2).integers(0, 3, (12, 10, 15))
    write_labelled(tmp_path, label, turn)
    image, own = (nib.load(tmp_path / folder / "a.nii.gz") for folder in ("images", "labels"))
    expected = np.asarray(resample_from_to(own, image, order=0).dataobj).transpose()
    assert 0 < (expected > 0).sum() < expected.size
    assert (label_of(tmp_path) == expected).all()


def test_label_one_voxel_away_moves_and_rounding_does_not(tmp_path: Path) -> None:
    label = np.zeros((5, 6, 7), np.uint8)
    label[2, 3, 4] = 1
    moved = AFFINE.copy()
    moved[0, 3] += 1e-3
    write_labelled(tmp_path, label, moved)
    assert np.argwhere(label_of(tmp_path)).tolist() == [[4, 3, 2]]
    moved[:, 3] = AFFINE[:, 3] + AFFINE[:, 1]
    write_labelled(tmp_path, label, moved)
    assert_refused(tmp_path, ErrorCode.LABEL_DOUBTFUL)  # it may have been drawn on these voxels
    assert np.argwhere(label_of(tmp_path, labels_checked=True)).tolist() == [[4, 4, 2]]


def test_label_beside_the_image_does_not_fit(tmp_path: Path) -> None:
    away = AFFINE.copy()
    away[2, 3] += 1000
    write_labelled(tmp_path, np.ones((5, 6, 8), np.uint8), away)
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)
    write_labelled(tmp_path, np.ones((5, 6, 7), np.uint8), away)
    assert_refused(tmp_path, ErrorCode.LABEL_DOUBTFUL)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 0), (1, 4), (3, 4)])
def test_label_on_another_grid_without_a_common_space_does_not_fit(tmp_path: Path, codes: tuple[int, int]) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 8), np.uint8))
    set_codes(tmp_path, codes)
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


@pytest.mark.parametrize("codes", [(1, 2), (2, 1), (4, 4)])
def test_label_on_another_grid_in_a_common_space_fits(tmp_path: Path, codes: tuple[int, int]) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 8), np.uint8))
    set_codes(tmp_path, codes)
    assert label_of(tmp_path).shape == (7, 6, 5)


def test_label_on_the_same_grid_needs_no_space(tmp_path: Path) -> None:
    # With code 0 nibabel counts from the middle of the volume, whatever the header's matrix.
    write_volume(tmp_path / "images" / "a.nii.gz", np.ones((5, 6, 7), np.uint8), np.eye(4))
    write_volume(tmp_path / "labels" / "a.nii.gz", np.ones((5, 6, 7), np.uint8), np.eye(4))
    set_codes(tmp_path, (0, 0))
    assert label_of(tmp_path).all()


def test_wrong_label_value_is_unknown(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.full((5, 6, 7), 3, np.uint8))
    assert_refused(tmp_path, ErrorCode.LABEL_UNKNOWN)


def test_volume_without_label_map_has_no_label(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8))
    (tmp_path / "labels" / "a.nii.gz").unlink()
    assert_refused(tmp_path, ErrorCode.NO_LABEL)


def test_time_series_is_not_supported(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8))
    write_volume(tmp_path / "images" / "a.nii.gz", np.zeros((5, 6, 7, 9), np.float32), AFFINE)
    assert_refused(tmp_path, ErrorCode.UNSUPPORTED)


@pytest.mark.parametrize("keep", [0, 40, 400])
def test_cut_file_is_unreadable(tmp_path: Path, keep: int) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8))
    image = tmp_path / "images" / "a.nii.gz"
    image.write_bytes(image.read_bytes()[:keep])
    assert_refused(tmp_path, ErrorCode.UNREADABLE)


def test_fourth_axis_is_taken_off_where_it_holds_one_volume_and_refused_where_many(tmp_path: Path) -> None:
    voxels = np.random.default_rng(1).normal(size=(5, 6, 7, 9, 1)).astype(np.float32)
    write_volume(tmp_path / "one.nii", voxels[..., :1, :], AFFINE)
    assert (read_image(tmp_path / "one.nii").image[0] == voxels[..., 0, 0].transpose()).all()
    write_volume(tmp_path / "nine.nii", voxels, AFFINE)
    with pytest.raises(DataError) as error:
        read_image(tmp_path / "nine.nii")
    assert error.value.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float64, np.int8])
def test_labels_of_every_number_type_are_whole_numbers(tmp_path: Path, kind: type) -> None:
    label = np.random.default_rng(1).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    write_labelled(tmp_path, label)
    image = nib.Nifti1Image(label.astype(kind), AFFINE, dtype=kind)
    nib.save(image, tmp_path / "labels" / "a.nii.gz")
    assert (label_of(tmp_path) == label.transpose()).all()


def test_label_without_a_voxel_is_a_label(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.zeros((5, 6, 7), np.uint8))
    study = read(tmp_path)
    assert study.label is not None
    assert not study.label.any()
    assert study.classes == ("head", "tail")


def write_with_transforms(path: Path, sform: tuple[np.ndarray, int], qform: tuple[np.ndarray, int]) -> None:
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), None)
    image.set_sform(*sform)
    image.set_qform(*qform)
    nib.save(image, path)


def test_header_that_places_the_volume_twice_is_refused_when_both_are_the_patients(tmp_path: Path) -> None:
    first, second, path = np.diag([2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1]), tmp_path / "a.nii"
    second[:3, 3] = 1.5, 0, 0  # less than a voxel
    write_with_transforms(path, (first, 1), (second, 2))
    assert read_image(path).affine is not None
    second[:3, 3] = 5, 0, 0
    write_with_transforms(path, (first, 1), (second, 2))
    with pytest.raises(DataError, match="sform and qform") as error:
        read_image(path)
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH
    write_with_transforms(path, (first, 4), (second, 1))  # an atlas' space, and the patient's
    affine = read_image(path).affine
    assert affine is not None
    assert affine[:3, 3].tolist() == [0, 0, 0]


def header(path: Path) -> bytearray:
    write_volume(path, np.zeros((5, 6, 7), np.uint8), AFFINE)
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_that_announces_more_than_any_memory_is_refused_before_it_is_believed(
    tmp_path: Path, suffix: str
) -> None:
    many, far = header(tmp_path / "x.nii"), header(tmp_path / "x.nii")
    struct.pack_into("<8h", many, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    struct.pack_into("<f", far, 108, 1e12)
    for content in (many, far):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(gzip.compress(bytes(content), mtime=0) if suffix == ".nii.gz" else bytes(content))
        with pytest.raises(DataError, match="announces") as error:
            read_image(path)
        assert error.value.code is ErrorCode.OUT_OF_MEMORY


@pytest.mark.parametrize("content", [b"", b"\x5c\x01", bytes(400), gzip.compress(bytes(10), mtime=0)])
def test_file_that_is_no_nifti_is_unreadable(tmp_path: Path, content: bytes) -> None:
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            read_image(tmp_path / name)
        assert error.value.code is ErrorCode.UNREADABLE


def test_volume_of_the_second_format_and_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    voxels = np.random.default_rng(1).integers(0, 900, (5, 6, 7)).astype(np.int16)
    nib.save(nib.Nifti2Image(voxels, AFFINE), tmp_path / "two.nii.gz")
    swapped = nib.Nifti1Image(voxels, AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(swapped, tmp_path / "big.nii")
    for name in ("two.nii.gz", "big.nii"):
        assert (read_image(tmp_path / name).image[0] == voxels.transpose()).all()


def test_as_found_every_value_is_a_class(tmp_path: Path) -> None:
    write_labelled(tmp_path, np.random.default_rng(1).choice([0, 4, 900], (5, 6, 7)).astype(np.int16))
    (reference,) = sources.find(source(path="."), tmp_path).references
    assert sources.read(reference, Vocabulary.as_found({})).classes == ("4", "900")


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("micron", 0.001), ("meter", 1000), ("unknown", 1)])
def test_lengths_are_in_the_headers_unit(tmp_path: Path, unit: str, mm: float) -> None:
    """The same volume in each unit; the right values by nibabel, and by hand."""
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.diag([2 / mm, 3 / mm, 4 / mm, 1]))
    image.header.set_xyzt_units(unit)
    label = nib.Nifti1Image(np.ones((5, 6, 8), np.uint8), np.diag([2.0, 3, 4, 1]))
    label.header.set_xyzt_units("mm")
    for folder, file in (("images", image), ("labels", label)):
        (tmp_path / folder).mkdir()
        nib.save(file, tmp_path / folder / "a.nii.gz")
    stored = nib.Nifti1Image.from_filename(tmp_path / "images" / "a.nii.gz").header
    assert stored.get_xyzt_units()[0] == unit
    study = read(tmp_path)
    assert study.spacing_mm == pytest.approx(tuple(float(edge) * mm for edge in stored.get_zooms()[::-1]))
    assert study.spacing_mm == pytest.approx((4, 3, 2))
    assert study.label is not None
    assert study.label.all()  # the label in mm covers the image, whatever that is in


@pytest.mark.parametrize("without", ["label", "image"])
def test_file_that_was_saved_without_its_place_is_asked_about(tmp_path: Path, without: str) -> None:
    """np.eye(4) instead of the image's affine: by its header a label lies elsewhere than where it was drawn."""
    label = np.zeros((24, 20, 16), np.uint8)
    label[4:9, 4:9, 4:9] = 1
    affine = np.diag([-1.0, -1, 2, 1])
    affine[:3, 3] = 12, 10, -6
    of_image, of_label = (affine, np.eye(4)) if without == "label" else (np.eye(4), affine)
    for crop in (slice(None), slice(0, 14)):  # of the image's size, and of another
        write_volume(tmp_path / "images" / "a.nii.gz", np.random.default_rng(1).normal(size=label.shape), of_image)
        write_volume(tmp_path / "labels" / "a.nii.gz", label[:, :, crop], of_label)
        assert_refused(tmp_path, ErrorCode.LABEL_DOUBTFUL)
        moved = read(tmp_path, labels_checked=True)
        assert moved.labelling is not None
        assert moved.label is not None


def test_label_whose_axes_run_the_other_way_is_in_its_place(tmp_path: Path) -> None:
    """Another program's order of axes: the same box, the same size where two edges are alike, another affine."""
    label = np.random.default_rng(2).integers(0, 3, (6, 6, 7)).astype(np.uint8)
    write_volume(tmp_path / "images" / "a.nii.gz", np.random.default_rng(1).normal(size=(6, 6, 7)), AFFINE)
    own = nib.Nifti1Image(label, AFFINE)
    turned = own.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    assert turned.shape == own.shape
    (tmp_path / "labels").mkdir()
    nib.save(turned, tmp_path / "labels" / "a.nii.gz")
    assert (label_of(tmp_path) == label.transpose()).all()


@pytest.mark.parametrize(
    ("value", "whole"), [(1.0000000236, True), (0.99999994, True), (1.00009, True), (0.9882, False), (1.4, False)]
)
def test_label_off_a_whole_number_by_rounding_alone_is_that_number(tmp_path: Path, value: float, whole: bool) -> None:
    label = np.zeros((5, 6, 7), np.uint8)
    label[1:3, 2, 3] = 1
    write_labelled(tmp_path, label)
    nib.save(nib.Nifti1Image(label.astype(np.float32) * np.float32(value), AFFINE), tmp_path / "labels" / "a.nii.gz")
    if whole:
        assert (label_of(tmp_path) == label.transpose()).all()
    else:
        assert_refused(tmp_path, ErrorCode.LABEL_UNKNOWN)


def test_label_of_bytes_with_a_scale_factor_is_read(tmp_path: Path) -> None:
    """255 with scl_slope 1/255, which is 1.0000000236 in float32."""
    label = np.zeros((5, 6, 7), np.uint8)
    label[1:3, 2, 3] = 1
    write_labelled(tmp_path, label)
    nib.save(nib.Nifti1Image(label * 255, AFFINE), tmp_path / "raw.nii")
    content = bytearray((tmp_path / "raw.nii").read_bytes())
    struct.pack_into("<ff", content, 112, 1 / 255, 0)
    path = tmp_path / "labels" / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(content), mtime=0))
    assert 1 < np.asarray(nib.Nifti1Image.from_filename(path).dataobj).max() < 1.000001
    assert (label_of(tmp_path) == label.transpose()).all()


def test_copy_of_the_image_is_no_label(tmp_path: Path) -> None:
    voxels = np.random.default_rng(3).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    for folder in ("images", "labels"):
        write_volume(tmp_path / folder / "a.nii.gz", voxels, AFFINE)
    assert_refused(tmp_path, ErrorCode.NO_LABEL)
