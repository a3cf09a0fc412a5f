"""NIfTI label maps on DICOM series: whose they are by name and folder, where they lie by their header."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset

from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.data.study.study import LONELY_LABEL, NO_IMAGE, Found
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.studies import ct_slices, save, segmentation, source, write_volume

SHAPE = (6, 20, 24)
LESION = Vocabulary.of_run(DataConfig(modality="CT", classes=("lesion",)), {})


def ct(patient: str = "P1", seed: int = 1, shape: tuple[int, int, int] = SHAPE) -> list[Dataset]:
    return ct_slices(np.random.default_rng(seed).integers(0, 3000, shape), patient=patient)


def mask() -> np.ndarray:
    """(z, y, x), asymmetric along each axis."""
    found = np.zeros(SHAPE, np.uint8)
    found[1:3, 4:12, 2:9] = 1
    found[4, 15, 20] = 1
    return found


def ras_affine(slices: list[Dataset]) -> np.ndarray:
    """Index (column, row, slice) -> RAS mm, from the attributes by the formula of PS3.3 C.7.6.2.1.1."""
    first, last = slices[0], slices[-1]
    row, column = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
    origin = np.array(first.ImagePositionPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = row * float(first.PixelSpacing[1])
    affine[:3, 1] = column * float(first.PixelSpacing[0])
    affine[:3, 2] = (np.array(last.ImagePositionPatient, float) - origin) / (len(slices) - 1)
    affine[:3, 3] = origin
    return np.diag([-1.0, -1, 1, 1]) @ affine


def write_label(path: Path, slices: list[Dataset], label: np.ndarray, code: int = 1) -> None:
    """As dcm2niix stores volumes: rows from the bottom of the picture."""
    image = nib.Nifti1Image(label.transpose(), ras_affine(slices))
    turned = image.as_reoriented(np.array([[0, 1], [1, -1], [2, 1]]))
    turned.set_sform(turned.affine, code)
    turned.set_qform(None, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(turned, path)


def find(folder: Path) -> Found:
    return sources.find(source(path="."), folder)


@pytest.mark.parametrize(
    ("images", "label"),
    [
        ("P1", "P1/seg.nii.gz"),
        ("P1/ct", "P1/label.nii.gz"),
        ("P1/ct", "P1/ct_mask.nii"),
        ("P1", "P1_seg.nii.gz"),
        ("images/P1", "labels/P1.nii.gz"),
        ("P1/dicom/deep", "P1/labels/lesion.nii.gz"),
    ],
)
def test_label_map_is_drawn_where_its_header_says_whatever_its_order_of_axes(
    tmp_path: Path, images: str, label: str
) -> None:
    slices = ct()
    save(tmp_path / images, slices)
    write_label(tmp_path / label, slices, mask())
    found = find(tmp_path)
    (reference,) = found.references
    assert found.left_out == {}
    assert any("NIfTI" in what for what in found.assumed)
    study = sources.read(reference, LESION)
    assert study.label is not None
    assert (study.label == mask()).all()
    assert study.labelling is not None
    assert (study.labelling.resampled, study.labelling.lost) == (0, 0)


def test_of_several_patients_each_gets_the_map_that_is_called_after_it(tmp_path: Path) -> None:
    masks = {}
    for number, patient in enumerate(("P1", "P2"), start=1):
        slices = ct(patient, seed=number)
        save(tmp_path / "images" / patient, slices)
        masks[patient] = np.roll(mask(), number, axis=2)
        write_label(tmp_path / "labels" / f"{patient}.nii.gz", slices, masks[patient])
    write_label(tmp_path / "labels" / "P3.nii.gz", ct(), mask())
    found = find(tmp_path)
    assert found.left_out == {LONELY_LABEL: 1}
    for reference in found.references:
        label = sources.read(reference, LESION).label
        assert label is not None
        assert (label == masks[reference.patient]).all()


def test_map_that_two_series_could_own_goes_to_none_and_two_maps_to_a_series_are_not_chosen_from(
    tmp_path: Path,
) -> None:
    for number in (1, 2):
        save(tmp_path / "P1" / f"s{number}", ct(seed=number))
    write_label(tmp_path / "P1" / "seg.nii.gz", ct(), mask())
    found = find(tmp_path)
    assert [one.labels for one in found.references] == [(), ()]
    assert found.left_out == {LONELY_LABEL: 1}
    for name in ("s1_seg.nii.gz", "s1_mask.nii.gz"):
        write_label(tmp_path / "P1" / name, ct(), mask())
    problems = [one.problem for one in find(tmp_path).references if one.labels]
    assert [problem and problem.code for problem in problems] == [ErrorCode.UNSUPPORTED]


def test_volume_that_is_no_label_by_name_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "P1", ct())
    write_volume(tmp_path / "P1" / "t1.nii.gz", np.ones((4, 4, 4), np.uint8), np.eye(4))
    found = find(tmp_path)
    assert [one.kind for one in found.references] == ["dicom"]
    assert found.references[0].labels == ()
    assert found.left_out == {NO_IMAGE: 1}


@pytest.mark.parametrize("code", [0, 4])
def test_map_that_does_not_say_it_lies_in_the_patient_is_refused(tmp_path: Path, code: int) -> None:
    slices = ct()
    save(tmp_path / "P1", slices)
    write_label(tmp_path / "P1" / "seg.nii.gz", slices, mask(), code)
    with pytest.raises(DataError, match="patient's space") as error:
        sources.read(find(tmp_path).references[0], LESION)
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH


def test_series_with_a_segmentation_and_a_map_is_drawn_from_both(tmp_path: Path) -> None:
    slices = ct()
    save(tmp_path / "P1", slices)
    upper, lower = mask(), mask()
    upper[3:], lower[:3] = 0, 0
    save(tmp_path / "P1", [segmentation(slices, {"lesion": upper > 0})], "seg-{}.dcm")
    write_label(tmp_path / "P1" / "seg.nii.gz", slices, lower)
    study = sources.read(find(tmp_path).references[0], LESION)
    assert study.label is not None
    assert (study.label == mask()).all()
