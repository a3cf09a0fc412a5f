"""Multi-frame images, converted by other programs from series of single frames whose reading is tested elsewhere."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from client.data.dicom.frames import frame_order, frames_of
from client.data.read import dicom
from client.data.study.labels import Vocabulary
from client.data.study.study import Reference, Study
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.studies import ct_slices, save, segmentation

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
SHAPE = (5, 12, 17)
VALUES = np.random.default_rng(5).integers(0, 3000, SHAPE)
SHUFFLED = (3, 0, 4, 2, 1)
LESION = Vocabulary.of_run(DataConfig(modality="CT", classes=("lesion",)), {})


def multi_frame(slices: list[Dataset], order: tuple[int, ...] = SHUFFLED) -> Dataset:
    """The slices as one object of many frames, in that order."""
    ds = LegacyConvertedEnhancedCTImage(slices, generate_uid(), 7, generate_uid(), 1)
    frames = ds.pixel_array.reshape(len(slices), *SHAPE[1:])
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    ds.PerFrameFunctionalGroupsSequence = [groups[index] for index in order]
    ds.PixelData = frames[list(order)].tobytes()
    return ds


def read(*paths: Path, labels: tuple[Path, ...] = ()) -> Study:
    reference = Reference("dicom", "P1", "key", paths, labels)
    return dicom.read(reference, LESION.naming() if labels else None)


def saved(folder: Path, *objects: Dataset) -> tuple[Path, ...]:
    save(folder, list(objects), "object{}.dcm")
    return tuple(folder / f"object{number}.dcm" for number in range(len(objects)))


def assert_refused(folder: Path, ds: Dataset, code: ErrorCode) -> str:
    with pytest.raises(DataError) as error:
        read(*saved(folder, ds))
    assert error.value.code is code
    return str(error.value)


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1.0, 0), OBLIQUE])
def test_many_frames_in_any_order_are_the_series_they_were_made_of(tmp_path: Path, orientation: Any) -> None:
    slices = ct_slices(VALUES, orientation=orientation, slope=2.0)
    single = read(*saved(tmp_path / "single", *slices))
    many = read(*saved(tmp_path / "many", multi_frame(slices)))
    assert np.array_equal(many.image, single.image)
    assert many.affine is not None
    assert single.affine is not None
    assert np.allclose(many.affine, single.affine)
    assert many.spacing_mm == pytest.approx(single.spacing_mm)
    assert len(many.files) == len(VALUES)


def rescaling(slope: float, intercept: float) -> list[Dataset]:
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept = slope, intercept
    return [item]


def test_each_frame_is_rescaled_by_its_own_numbers_else_by_the_shared_ones(tmp_path: Path) -> None:
    ds = multi_frame(ct_slices(VALUES), tuple(range(5)))
    order = frame_order(ds)
    ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = rescaling(7, 3)
    for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        group.PixelValueTransformationSequence = rescaling(number + 1, -10 * number)
    del ds.PerFrameFunctionalGroupsSequence[4].PixelValueTransformationSequence
    slopes = np.array([1, 2, 3, 4, 7])[order][:, None, None]
    intercepts = np.array([0, -10, -20, -30, 3])[order][:, None, None]
    assert np.array_equal(read(*saved(tmp_path, ds)).image[0], VALUES * slopes + intercepts)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segmentation_written_onto_many_frames_comes_back_exactly(tmp_path: Path, kind: str) -> None:
    mask = np.random.default_rng(2).random(SHAPE) < 0.3
    ds = multi_frame(ct_slices(VALUES, orientation=OBLIQUE))
    (path,) = saved(tmp_path, ds)
    study = read(path)
    in_file = mask[np.argsort(frame_order(pydicom.dcmread(path)))]
    seg = segmentation([pydicom.dcmread(path)], {"lesion": in_file}, kind)
    save(tmp_path, [seg], "seg{}.dcm")
    label = read(path, labels=(tmp_path / "seg0.dcm",)).label
    assert label is not None
    assert np.array_equal(label, mask)
    assert study.image.shape[1:] == SHAPE


def test_segmentation_that_only_names_frames_lies_on_them(tmp_path: Path) -> None:
    mask = np.random.default_rng(2).random(SHAPE) < 0.3
    (path,) = saved(tmp_path, multi_frame(ct_slices(VALUES)))
    order = frame_order(pydicom.dcmread(path))
    seg = segmentation([pydicom.dcmread(path)], {"lesion": mask[np.argsort(order)]})
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    save(tmp_path, [seg], "seg{}.dcm")
    label = read(path, labels=(tmp_path / "seg0.dcm",)).label
    assert label is not None
    assert np.array_equal(label, mask)


def test_one_frame_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    study = read(*saved(tmp_path, multi_frame(ct_slices(VALUES[:1], intercept=0), (0,))))
    assert np.array_equal(study.image[0], VALUES[:1])
    assert study.affine is not None


def test_two_phases_in_one_object_are_refused_with_what_to_do(tmp_path: Path) -> None:
    ds = multi_frame(ct_slices(VALUES))
    groups = ds.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence
    assert "series of their own" in assert_refused(tmp_path, ds, ErrorCode.GEOMETRY_MISMATCH)


def test_two_stacks_in_one_object_are_refused_with_what_to_do(tmp_path: Path) -> None:
    ds = multi_frame(ct_slices(VALUES))
    for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.StackID = "1" if number < 3 else "2"
        group.FrameContentSequence = [content]
    assert "2 stacks" in assert_refused(tmp_path, ds, ErrorCode.GEOMETRY_MISMATCH)


def test_a_lost_frame_is_a_missing_slice(tmp_path: Path) -> None:
    ds = multi_frame(ct_slices(VALUES), (4, 3, 1, 0))
    ds.NumberOfFrames = 4
    assert_refused(tmp_path, ds, ErrorCode.MISSING_SLICES)


@pytest.mark.parametrize("kept", [0, 4])
def test_frames_without_a_place_are_refused(tmp_path: Path, kept: int) -> None:
    ds = multi_frame(ct_slices(VALUES))
    ds.SOPClassUID = EnhancedCTImageStorage
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:kept]
    assert f"of {kept}" in assert_refused(tmp_path, ds, ErrorCode.GEOMETRY_MISMATCH)


def test_groups_without_positions_are_refused(tmp_path: Path) -> None:
    ds = multi_frame(ct_slices(VALUES))
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    assert_refused(tmp_path, ds, ErrorCode.GEOMETRY_MISMATCH)


def test_a_clip_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (clip,) = ct_slices(VALUES[:1])
    clip.SOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    clip.NumberOfFrames, clip.PixelData = 2, clip.PixelData * 2
    assert "single images" in assert_refused(tmp_path, clip, ErrorCode.UNSUPPORTED)


@pytest.mark.parametrize(("slope", "intercept"), [("0", "5"), ("NaN", "0"), ("1", "inf")])
def test_rescaling_that_means_nothing_is_implausible(slope: str, intercept: str) -> None:
    one, *_ = ct_slices(VALUES)
    one.RescaleSlope, one.RescaleIntercept = float(slope), float(intercept)
    with pytest.raises(DataError) as error:
        frames_of(one)
    assert error.value.code is ErrorCode.IMPLAUSIBLE


needs_data = pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set")


@needs_data
@pytest.mark.parametrize("study", ["23x38x3", "24x38x3"])
def test_real_converted_image_is_the_series_it_was_made_of(study: str) -> None:
    folder = Path(os.environ["WARDROUND_DATA"]) / "dicom_labelled/dcmqi/segmentations" / study
    single, many = read(*(folder / "image").glob("*.dcm")), read(folder / "multiframe/mf.dcm")
    assert np.array_equal(many.image, single.image)
    assert many.image.max() > many.image.min()
    assert many.affine == pytest.approx(single.affine)


@needs_data
def test_real_enhanced_ct_stored_against_its_normal_is_turned_and_rescaled() -> None:
    path = Path(os.environ["WARDROUND_DATA"]) / "dicom_conformance/eCT_Supplemental.dcm"
    study = read(path)
    # By its header: axes (-1, 0, 0) and (0, 1, 0), so the normal points to the feet; frame 2 is 10 mm above frame 1.
    assert np.array_equal(study.image[0], pydicom.dcmread(path).pixel_array[::-1] - 1024.0)
    assert study.spacing_mm == pytest.approx((10.0, 0.388672, 0.388672))
