"""DICOM SEG as written: read back by this and by other libraries, and judged by dicom3tools' dciodvfy."""

import datetime
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import generate_uid

from client.data.read.dicom_seg import Grid, read_labels
from client.data.study.geometry import stack_slices
from client.data.study.labels import Vocabulary
from client.predict.dicom.segmentation import Author, write_segmentation
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.studies import AXIAL, ct_slices

DATA = os.environ.get("WARDROUND_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA is not set")
needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
CLASSES = ("liver", "liver-tumour", "vessel", "strange-thing")

# SOP classes of images without a place in the patient, and their modality.
PROJECTIONS = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
}


def write(sources: Sequence[Dataset], labels: np.ndarray, **options: Any) -> Dataset:
    return write_segmentation(
        sources,
        labels,
        CLASSES,
        Author("Wardround", version="ab" * 32),
        created=NOW,
        series_number=1001,
        description="Wardround segmentation",
        **options,
    )


def some_labels(shape: tuple[int, int, int]) -> np.ndarray:
    """A few voxels of every class; the last slice empty, where there are several."""
    labels = np.random.default_rng(sum(shape)).integers(0, 9, shape)
    labels[labels > len(CLASSES)] = 0
    labels.flat[:2] = (1, len(CLASSES))
    if shape[0] > 1:
        labels[-1] = 0
    return labels.astype(np.uint8)


def projection(modality: str) -> Dataset:
    """An image that is not placed in the patient."""
    (ds,) = ct_slices(np.zeros((1, 12, 17)))
    ds.SOPClassUID, ds.Modality = PROJECTIONS[modality], modality
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing, ds.SliceThickness, ds.FrameOfReferenceUID
    return ds


def multi_frame(slices: list[Dataset]) -> Dataset:
    """The slices as one image, by highdicom."""
    for ds in slices:
        ds.ImageType, ds.PatientPosition = ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS"
    return LegacyConvertedEnhancedCTImage(slices, generate_uid(), 2, generate_uid(), 1)


def read_back(path: Path, sources: list[Dataset], shape: tuple[int, ...]) -> np.ndarray:
    """The labels on the sources' stack, sorted by position, as the package reads them for training."""
    positions, orientations, spacings = (
        np.array([[float(x) for x in ds[keyword].value] for ds in sources])
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    stack = stack_slices(positions, orientations, spacings, float(sources[0].SliceThickness))
    instances = tuple(str(sources[z].SOPInstanceUID) for z in stack.order)
    grid = Grid(shape, stack, instances, sources[0].FrameOfReferenceUID)
    data = DataConfig(modality="CT", classes=CLASSES)
    return read_labels(path, grid, Vocabulary.of_run(data, {}).naming())


def errors(path: Path, ds: Dataset) -> list[str]:
    """What the validator calls an error."""
    ds.save_as(path, enforce_file_format=True)
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any(line.strip() == "Segmentation" for line in lines)  # it knew what it judged
    return [line for line in lines if line.startswith("Error")]


# Not under 8 pixels, which highdicom packs wrongly.
SHAPES = st.tuples(st.integers(1, 5), st.integers(3, 13), st.integers(3, 19))


@settings(max_examples=25, deadline=None)
@given(
    shape=SHAPES,
    seed=st.integers(0, 2**16),
    oblique=st.booleans(),
    spacing=st.tuples(*[st.floats(0.1, 9).map(lambda edge: round(edge, 4))] * 3),
)
def test_array_to_segmentation_to_array_is_exact(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    seed: int,
    oblique: bool,
    spacing: tuple[float, float, float],
) -> None:
    """Whatever the order of the images, the size, the direction and the spacing; most voxels and some slices empty."""
    rng = np.random.default_rng(seed)
    slices = ct_slices(np.zeros(shape), orientation=OBLIQUE if oblique else AXIAL, spacing_mm=spacing)
    labels = rng.integers(0, len(CLASSES) + 1, shape) * (rng.random(shape) < 0.3) * (rng.random((shape[0], 1, 1)) < 0.7)
    shuffled = rng.permutation(shape[0])
    path = tmp_path_factory.mktemp("seg") / "seg.dcm"
    sources = [slices[z] for z in shuffled]
    write(sources, labels[shuffled].astype(np.uint8)).save_as(path, enforce_file_format=True)
    assert (read_back(path, sources, shape) == labels).all()
    oracle = highdicom.seg.segread(path)
    masks = oracle.get_pixels_by_source_instance(
        [ds.SOPInstanceUID for ds in slices], assert_missing_frames_are_empty=True, combine_segments=True
    )
    assert (masks == labels).all()


def test_labels_of_a_multi_frame_image_lie_on_its_frames(tmp_path: Path) -> None:
    slices = ct_slices(np.zeros((4, 9, 7)), orientation=OBLIQUE)
    labels = some_labels((4, 9, 7))
    enhanced = multi_frame(slices)
    groups = enhanced.PerFrameFunctionalGroupsSequence
    heights = [float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups]
    of_frame = np.argsort(np.argsort(heights))  # the slice that each frame is
    write([enhanced], labels[of_frame]).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert (read_back(tmp_path / "seg.dcm", slices, labels.shape) == labels).all()


def test_segments_carry_standard_terms_and_their_maker(tmp_path: Path) -> None:
    slices = ct_slices(np.zeros((2, 9, 7)))
    seg = write(slices, some_labels((2, 9, 7)))
    seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    described = [seg.get_segment_description(number) for number in range(1, 5)]
    assert [segment.segment_label for segment in described] == list(CLASSES)
    assert [segment.segmented_property_type.value for segment in described[:3]] == ["10200004", "85756007", "59820001"]
    assert {one.algorithm_identification[0].AlgorithmVersion for one in described if one.algorithm_identification} == {
        "ab" * 32
    }
    assert len({segment.tracking_uid for segment in described}) == len(CLASSES)
    assert (seg.FrameOfReferenceUID, seg.PatientID) == (slices[0].FrameOfReferenceUID, "P1")
    assert seg.ContentDate == "20260102"


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    slices = ct_slices(np.zeros((2, 9, 7)))
    for name in ("a", "b"):
        seg = write(slices, some_labels((2, 9, 7)), entropy=["x"])
        seg.save_as(tmp_path / name, enforce_file_format=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_empty_result_keeps_a_frame_for_every_slice(tmp_path: Path) -> None:
    slices = ct_slices(np.zeros((3, 9, 7)))
    write(slices, np.zeros((3, 9, 7), np.uint8)).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert not read_back(tmp_path / "seg.dcm", slices, (3, 9, 7)).any()


@pytest.mark.parametrize("modality", PROJECTIONS)
def test_projection_needs_no_frame_of_reference(tmp_path: Path, modality: str) -> None:
    source, labels = projection(modality), some_labels((1, 12, 17))
    source.PatientOrientation = ["L", "F"]
    seg = write([source], labels)
    seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert "FrameOfReferenceUID" not in seg
    assert seg.PatientOrientation == ["L", "F"]
    data = DataConfig(modality="CR", classes=CLASSES)
    grid = Grid(labels.shape, None, (source.SOPInstanceUID,), "")
    assert (read_labels(tmp_path / "seg.dcm", grid, Vocabulary.of_run(data, {}).naming()) == labels).all()


def test_series_without_a_frame_of_reference_finds_its_segmentation_by_its_images(tmp_path: Path) -> None:
    slices, labels = ct_slices(np.zeros((3, 9, 7))), some_labels((3, 9, 7))
    for ds in slices:
        del ds.FrameOfReferenceUID
    first, second = (write(slices, labels) for _ in range(2))
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID
    first.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    for ds in slices:
        ds.FrameOfReferenceUID = ""
    assert (read_back(tmp_path / "seg.dcm", slices, labels.shape) == labels).all()


def test_images_without_a_place_are_segmented_one_at_a_time() -> None:
    frames = projection("US")
    frames.NumberOfFrames = 2
    series = [projection("CR") for _ in range(2)]
    for ds in series:
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", "1.3"
    for sources in ([frames], series):
        with pytest.raises(DataError, match="no place in the patient") as error:
            write(sources, some_labels((2, 12, 17)))
        assert error.value.code is ErrorCode.UNSUPPORTED


def test_images_of_two_studies_are_refused_without_their_uids() -> None:
    slices = ct_slices(np.zeros((2, 9, 7)))
    slices[1].StudyInstanceUID = "1.2.3.4"
    with pytest.raises(DataError, match="2 different values of StudyInstanceUID") as error:
        write(slices, some_labels((2, 9, 7)))
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH
    assert "1.2.3" not in str(error.value)


def raw(ds: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """Set an attribute to bytes, as a file may hold them."""
    number = pydicom.datadict.tag_for_keyword(keyword)
    assert number is not None
    tag = pydicom.tag.Tag(number)
    ds[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)


def test_numbers_with_more_digits_than_the_standard_allows_keep_their_place(tmp_path: Path) -> None:
    slices, labels = ct_slices(np.zeros((3, 9, 7))), some_labels((3, 9, 7))
    for z, ds in enumerate(slices):
        raw(
            ds,
            "ImagePositionPatient",
            "DS",
            f"-158.13580322265625\\5.12345678901234567\\{z * 2.99999999999:.15f}".encode(),
        )
        raw(ds, "PatientWeight", "DS", b"70.123456789012345678")
    write(slices, labels).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert (read_back(tmp_path / "seg.dcm", slices, labels.shape) == labels).all()


@needs_dciodvfy
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
@pytest.mark.parametrize("spacing_mm", [(3.0, 0.8, 0.7), (0.5, 2.0, 0.25)])
def test_validator_finds_no_error_on_slices(
    tmp_path: Path, orientation: tuple[float, ...], spacing_mm: tuple[float, float, float]
) -> None:
    slices = ct_slices(np.zeros((3, 12, 17)), orientation=orientation, spacing_mm=spacing_mm)
    for labels in (some_labels((3, 12, 17)), np.zeros((3, 12, 17), np.uint8)):
        assert errors(tmp_path / "seg.dcm", write(slices, labels)) == []
    assert errors(tmp_path / "seg.dcm", write(slices[:1], some_labels((1, 12, 17)))) == []
    assert errors(tmp_path / "seg.dcm", write([multi_frame(slices)], some_labels((3, 12, 17)))) == []


@needs_dciodvfy
@pytest.mark.parametrize("modality", PROJECTIONS)
def test_validator_finds_no_error_on_a_projection(tmp_path: Path, modality: str) -> None:
    assert errors(tmp_path / "seg.dcm", write([projection(modality)], some_labels((1, 12, 17)))) == []


@pytest.mark.parametrize(
    "sop_class", ["1.2.840.10008.5.1.4.1.1.6", "1.3.6.1.4.1.5962.301.9"], ids=["retired", "private"]
)
def test_image_of_a_retired_or_private_class_is_refused(sop_class: str) -> None:
    ds = projection("US")
    ds.SOPClassUID = sop_class
    with pytest.raises(DataError, match="private or retired") as error:
        write([ds], some_labels((1, 12, 17)))
    assert error.value.code is ErrorCode.UNSUPPORTED


@needs_dciodvfy
def test_frame_of_reference_without_a_place_in_it_makes_no_error(tmp_path: Path) -> None:
    ds = projection("CR")
    ds.FrameOfReferenceUID, ds.PixelSpacing, ds.PatientOrientation, ds.NumberOfFrames = "1.2.3", [0.5, 0.5], "", 1
    assert errors(tmp_path / "seg.dcm", write([ds], some_labels((1, 12, 17)))) == []


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("value", ["999.1.2", "1.02", "ab12", "1", "1." * 40 + "1"])
def test_image_whose_uid_is_none_is_refused_without_saying_it(keyword: str, value: str) -> None:
    slices = ct_slices(np.zeros((2, 9, 7)))
    raw(slices[1], keyword, "UI", value.encode())
    with pytest.raises(DataError, match=r"UID \(0020,00..\) is no UID|UID \(0008,0018\) is no UID") as error:
        write(slices, some_labels((2, 9, 7)))
    assert error.value.code is ErrorCode.UNSUPPORTED
    assert value == "1" or value not in str(error.value)


def test_image_without_a_study_is_refused() -> None:
    ds = projection("US")
    del ds.StudyInstanceUID
    with pytest.raises(DataError, match=r"Study Instance UID \(0020,000D\) is empty or missing"):
        write([ds], some_labels((1, 12, 17)))


@needs_dciodvfy
@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("PatientAge", "AS", b"45"),
        ("PatientSex", "CS", b"female "),
        ("PatientBirthDate", "DA", b"1970.02.30"),
        ("StudyTime", "TM", b"10:10:10"),
        ("PatientWeight", "DS", b"70,5"),
        ("PixelSpacing", "DS", b"0\\0 "),
        ("PatientIdentityRemoved", "CS", b"YES "),
        ("SpecificCharacterSet", "CS", b""),
        ("SliceThickness", "DS", b""),
        ("FrameOfReferenceUID", "UI", b""),
    ],
)
def test_odd_value_of_the_source_makes_no_error_in_the_segmentation(
    tmp_path: Path, keyword: str, vr: str, value: bytes
) -> None:
    flat = keyword == "PixelSpacing"  # without it a slice has no place at all
    slices = [projection("CR")] if flat else ct_slices(np.zeros((3, 12, 17)))
    for ds in slices:
        raw(ds, keyword, vr, value)
    assert errors(tmp_path / "seg.dcm", write(slices, some_labels((len(slices), 12, 17)))) == []


@needs_data
@needs_dciodvfy
@pytest.mark.parametrize(
    "paths",
    [
        [f"dicom_labelled/dcmqi/segmentations/ct-3slice/0{number}.dcm" for number in (1, 2, 3)],
        ["dicom_labelled/dcmqi/segmentations/24x38x3/multiframe/mf.dcm"],
        ["dicom_labelled/highdicom/dx_image.dcm"],
        ["dicom_labelled/rt_utils/one_slice_data/0.dcm"],
        ["dicom_conformance/eCT_Supplemental.dcm"],
        ["dicom_conformance/693_UNCI.dcm"],
        ["dicom_conformance/MR2_J2KI.dcm"],
        ["dicom_conformance/MR-SIEMENS-DICOM-WithOverlays.dcm"],
        ["dicom_conformance/RG1_J2KI.dcm"],
        ["dicom_conformance/US1_UNCI.dcm"],
    ],
    ids=lambda paths: Path(paths[0]).stem,
)
def test_validator_finds_no_error_on_real_images(tmp_path: Path, paths: list[str]) -> None:
    sources = [pydicom.dcmread(Path(str(DATA)) / path, stop_before_pixels=True) for path in paths]
    count = int(sources[0].get("NumberOfFrames") or len(sources))
    labels = np.zeros((count, sources[0].Rows, sources[0].Columns), np.uint8)
    labels[0, 3:9, 4:11], labels[-1, 20:22, 9:13] = 1, 4
    assert errors(tmp_path / "seg.dcm", write(sources, labels)) == []
