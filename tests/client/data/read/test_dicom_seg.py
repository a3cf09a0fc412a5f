"""DICOM SEG read against highdicom, against masks that dcmqi's authors drew, and against arrays."""

import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from client.data.read import sources
from client.data.read.dicom_seg import Grid, read_labels
from client.data.study.labels import Vocabulary
from client.data.study.study import Study
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.studies import ct_slices, save, segmentation, source

DATA = os.environ.get("WARDROUND_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA is not set")
LESION = DataConfig(modality="CT", classes=("lesion",))
TWO = DataConfig(modality="CT", classes=("organ", "lesion"))
SHAPE = (5, 12, 17)

# Segmentations whose images are in the folder, and these images; in the test data.
_DCMQI, _CONFORMANCE = "dicom_labelled/dcmqi/segmentations", "dicom_conformance"
REAL = [
    *(
        (f"{folder}/{name}.dcm", f"{_DCMQI}/ct-3slice")
        for folder, name in [
            (_DCMQI, "liver"),
            (_DCMQI, "partial_overlaps"),
            (_CONFORMANCE, "liver"),
            (_CONFORMANCE, "liver_deflate"),
            (_CONFORMANCE, "liver_expb"),
            (_CONFORMANCE, "liver_j2k"),
            (_CONFORMANCE, "liver_rle"),
        ]
    ),
    (f"{_DCMQI}/23x38x3/seg/label.seg", f"{_DCMQI}/23x38x3/image"),
    (f"{_DCMQI}/24x38x3/seg/label.seg", f"{_DCMQI}/24x38x3/image"),
    (f"{_DCMQI}/sparse-labelmap-noppv.dcm", f"{_DCMQI}/24x38x3/image"),
    (f"{_DCMQI}/sparse-labelmap-ppv5.dcm", f"{_DCMQI}/24x38x3/image"),
    ("dicom_labelled/highdicom/seg_image_ct_binary_single_frame.dcm", "dicom_labelled/highdicom/ct_image.dcm"),
]
# Three that highdicom cannot decode: the same mask is in the plain file beside them.
PLAIN = dict.fromkeys(("liver_deflate.dcm", "liver_expb.dcm", "liver_rle.dcm"), "liver.dcm")


def stored(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 3000, shape)


def box(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[1:3, 2:9, 4:11] = True
    return mask


def read(folder: Path, data: DataConfig | None = LESION, **options: object) -> Study:
    """The only study of a folder; as found without a run."""
    (reference,) = sources.find(source(path=".", **options), folder).references
    label_map = reference.label_map
    return sources.read(reference, Vocabulary.of_run(data, label_map) if data else Vocabulary.as_found(label_map))


def label_of(folder: Path, data: DataConfig | None = LESION, **options: object) -> np.ndarray:
    label = read(folder, data, **options).label
    assert label is not None
    return label


def assert_refused(folder: Path, code: ErrorCode, match: str | None = None) -> None:
    with pytest.raises(DataError, match=match) as error:
        read(folder)
    assert error.value.code is code


def coded(seg: Dataset, *codes: str) -> Dataset:
    """Give the segments these property types, all of SNOMED CT."""
    for segment, value in zip(seg.SegmentSequence, codes, strict=True):
        segment.SegmentedPropertyTypeCodeSequence[0].CodeValue = value
    return seg


def nrrd(path: Path) -> np.ndarray:
    """(z, y, x) of a gzip-coded NRRD of shorts; axes along +x, +y, +z."""
    header, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    assert (fields["type"], fields["encoding"], fields["endian"]) == ("short", "gzip", "little")
    sizes = [int(size) for size in fields["sizes"].split()]
    return np.frombuffer(gzip.decompress(body), "<i2").reshape(sizes[::-1])


def with_images(folder: Path, seg: str, images: str) -> Path:
    """A folder with a real segmentation and its images."""
    root = Path(str(DATA))
    if (root / images).is_dir():
        shutil.copytree(root / images, folder, dirs_exist_ok=True)
    else:
        shutil.copy(root / images, folder)
    return Path(shutil.copy(root / seg, folder / "seg.dcm"))


@needs_data
@pytest.mark.parametrize(("seg", "images"), REAL, ids=[Path(seg).name for seg, _ in REAL])
def test_real_segmentation_equals_highdicoms_reading_voxel_for_voxel(tmp_path: Path, seg: str, images: str) -> None:
    with_images(tmp_path, seg, images)
    study = read(tmp_path, None)
    plain = Path(str(DATA)) / seg
    oracle = highdicom.seg.segread(plain.with_name(PLAIN.get(plain.name, plain.name)))
    instances = [str(pydicom.dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for file in study.files]
    masks = oracle.get_pixels_by_source_instance(
        instances, assert_missing_frames_are_empty=True, ignore_spatial_locations=True
    )
    numbers = [number for number in oracle.segment_numbers if number != 0]
    assert masks.any()
    expected = np.zeros(masks.shape[:3], np.uint8)
    for k, number in enumerate(numbers, start=1):
        expected[masks[..., oracle.segment_numbers.index(number)] != 0] = k
    assert study.label is not None
    assert (study.label == expected).all()
    assert study.classes == tuple(oracle.get_segment_description(number).segment_label for number in numbers)


@needs_data
@pytest.mark.parametrize(
    ("seg", "images", "mask"),
    [
        ("liver.dcm", "ct-3slice", "liver_seg.nrrd"),
        ("23x38x3/seg/label.seg", "23x38x3/image", "23x38x3/nrrd/label.nrrd"),
        ("24x38x3/seg/label.seg", "24x38x3/image", "24x38x3/nrrd/label.nrrd"),
        ("sparse-labelmap-noppv.dcm", "24x38x3/image", "sparse_labelmap_noppv_seg.nrrd"),
        ("sparse-labelmap-ppv5.dcm", "24x38x3/image", "sparse_labelmap_ppv5_seg.nrrd"),
    ],
)
def test_real_segmentation_equals_the_mask_it_was_made_from(tmp_path: Path, seg: str, images: str, mask: str) -> None:
    with_images(tmp_path, f"{_DCMQI}/{seg}", f"{_DCMQI}/{images}")
    expected = nrrd(Path(str(DATA)) / _DCMQI / mask) == 1  # 5 is the padding of the second labelmap
    assert (label_of(tmp_path, None) == expected).all()


@needs_data
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.6])
@pytest.mark.parametrize(
    "name", ["ct_binary", "ct_binary_overlap", "ct_binary_fractional", "ct_true_fractional", "cr_binary"]
)
def test_frames_are_placed_by_their_source_images_as_highdicom_does(name: str, threshold: float) -> None:
    """The images are not in the test data, so nothing but the references says where a frame belongs."""
    path = Path(str(DATA)) / "dicom_labelled" / "highdicom" / f"seg_image_{name}.dcm"
    oracle = highdicom.seg.segread(path)
    instances = [str(uid) for _, _, uid in oracle.get_source_image_uids()]
    pixels = oracle.get_pixels_by_source_instance(
        instances, assert_missing_frames_are_empty=True, ignore_spatial_locations=True
    )
    expected = np.zeros(pixels.shape[:3], np.uint8)
    for k in range(pixels.shape[3]):
        expected[pixels[..., k] >= (threshold if "fractional" in name else 1)] = k + 1
    grid = Grid(expected.shape, None, tuple(instances), "")
    label = read_labels(path, grid, Vocabulary().naming(), threshold)
    assert (label == expected).all()
    assert label.any() == (name != "ct_true_fractional" or threshold < 0.6)


@needs_data
@pytest.mark.parametrize("name", ["liver_nonbyte_aligned", "liver_nonbyte_aligned_j2k", "liver_nonbyte_aligned_rle"])
def test_segmentation_of_two_rows_and_columns_less_is_brought_onto_its_series(tmp_path: Path, name: str) -> None:
    with_images(tmp_path, f"{_CONFORMANCE}/{name}.dcm", f"{_DCMQI}/ct-3slice")
    expected = nrrd(Path(str(DATA)) / _DCMQI / "liver_seg.nrrd").copy()
    expected[:, 510:] = expected[:, :, 510:] = 0
    assert (label_of(tmp_path, None) == expected).all()


@needs_data
@pytest.mark.parametrize("name", ["control", "control_labelmap", "dots", "dots_tiled_full"])
def test_segmentation_of_a_slide_is_not_supported(name: str) -> None:
    path = Path(str(DATA)) / "dicom_labelled" / "highdicom" / f"seg_image_sm_{name}.dcm"
    with pytest.raises(DataError, match="tiled slide") as error:
        read_labels(path, Grid((1, 10, 10), None, ("1.2",), ""), Vocabulary().naming())
    assert error.value.code is ErrorCode.UNSUPPORTED


def test_as_found_every_segment_is_a_class_in_the_order_met(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    other = np.roll(box(), 2, axis=2)
    save(tmp_path, [*slices, segmentation(slices, {"Left Kidney": box(), "cyst ": other, "table": ~box()})])
    study = read(tmp_path, None, label_map={"TABLE": "background"})
    assert study.classes == ("Left Kidney", "cyst")
    assert study.label is not None
    assert (study.label == np.where(other, 2, box())).all()
    joined = read(tmp_path, None, label_map={"table": "background", "left-kidney": "organ", "cyst": "organ"})
    assert joined.classes == ("organ",)


def test_segment_goes_by_its_code_whatever_its_label(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    masks = {"S1 (checked)": box(), "lesion": np.roll(box(), 3, axis=1)}
    save(tmp_path, [*slices, coded(segmentation(slices, masks), "10200004", "4147007")])
    label = label_of(tmp_path, TWO, label_map={"SCT:10200004": "organ"})
    assert (label == np.where(masks["lesion"], 2, box())).all()
    dropped = label_of(tmp_path, TWO, label_map={"SCT:10200004": "organ", "sct:4147007": "background"})
    assert (dropped == box()).all()
    assert_refused(tmp_path, ErrorCode.LABEL_UNKNOWN, "segment 1 ")


@pytest.mark.parametrize("meaning", ["PROBABILITY", "OCCUPANCY"])
@pytest.mark.parametrize(("threshold", "expected"), [(0.01, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1]), (1.0, [0, 0, 0, 1])])
def test_share_from_which_a_fractional_voxel_counts_is_the_sites(
    tmp_path: Path, meaning: str, threshold: float, expected: list[int]
) -> None:
    slices = ct_slices(stored((1, 1, 4)))
    seg = segmentation(slices, {"lesion": np.array([[[0, 0.3, 0.6, 1.0]]])}, "FRACTIONAL")
    seg.SegmentationFractionalType = meaning
    save(tmp_path, [*slices, seg])
    assert label_of(tmp_path, fractional_threshold=threshold).tolist() == [[expected]]


def test_threshold_holds_for_the_value_that_is_exactly_on_it(tmp_path: Path) -> None:
    slices = ct_slices(stored((1, 1, 3)))
    seg = segmentation(slices, {"lesion": np.array([[[0, 0.5, 1.0]]])}, "FRACTIONAL")
    seg.MaximumFractionalValue = 100
    seg.PixelData = bytes([54, 55, 56, 0])
    save(tmp_path, [*slices, seg])
    assert label_of(tmp_path, fractional_threshold=0.55).tolist() == [[[0, 1, 1]]]


@pytest.mark.parametrize("colour", ["MONOCHROME2", "PALETTE COLOR"])
def test_padding_of_a_labelmap_is_background_though_a_segment_describes_it(tmp_path: Path, colour: str) -> None:
    slices = ct_slices(stored())
    masks = {"lesion": box(), "outside": ~np.logical_or(box(), np.roll(box(), 4, axis=1))}
    seg = segmentation(slices, masks, "LABELMAP")
    seg.PhotometricInterpretation, seg.PixelPaddingValue = colour, 2
    save(tmp_path, [*slices, seg])
    assert (label_of(tmp_path) == box()).all()


def test_number_that_no_segment_describes_is_refused(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    for kind in ("LABELMAP", "BINARY"):
        seg = segmentation(slices, {"lesion": box(), "organ": ~box()}, kind)
        seg.SegmentSequence = [one for one in seg.SegmentSequence if one.SegmentNumber != 2]
        save(tmp_path / kind, [*slices, seg])
        assert_refused(tmp_path / kind, ErrorCode.LABEL_UNKNOWN, "does not describe")


def test_several_segmentations_of_a_series_are_drawn_together(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    masks = {"lesion": box(), "organ": np.roll(box(), 3, axis=1)}
    for name, mask in masks.items():
        save(tmp_path, [segmentation(slices, {name: mask})], f"{name}{{}}.dcm")
    save(tmp_path, slices)
    assert (label_of(tmp_path, TWO) == np.where(box(), 2, masks["organ"])).all()


def test_segmentation_on_its_images_is_read_whatever_frame_of_reference_the_writer_invented(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    seg = segmentation(slices, {"lesion": box()})
    seg.FrameOfReferenceUID = highdicom.UID()
    save(tmp_path / "named", [*slices, seg])
    assert (label_of(tmp_path / "named") == box()).all()
    first, second, *_ = seg.PerFrameFunctionalGroupsSequence
    first.DerivationImageSequence, second.DerivationImageSequence = (
        second.DerivationImageSequence,
        first.DerivationImageSequence,
    )
    save(tmp_path / "swapped", [*slices, seg])
    assert_refused(tmp_path / "swapped", ErrorCode.GEOMETRY_MISMATCH, "another frame of reference")
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    save(tmp_path / "unnamed", [*slices, seg])
    assert_refused(tmp_path / "unnamed", ErrorCode.GEOMETRY_MISMATCH, "another frame of reference")


def test_one_broken_label_beside_a_good_one_sets_the_study_aside_and_says_which(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    broken = segmentation(slices, {"lesion": box()})
    broken.PixelData = broken.PixelData[:-2]
    save(tmp_path, [segmentation(slices, {"lesion": box()}), broken], "seg{}.dcm")
    save(tmp_path, slices)
    assert_refused(tmp_path, ErrorCode.UNREADABLE, "of the 2 labels of this series, number 2:")


def test_label_without_any_frame_is_passed_over_beside_one_with_frames(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    hollow = segmentation(slices, {"lesion": box()})
    del hollow.PixelData
    save(tmp_path, slices)
    save(tmp_path, [hollow], "seg{}.dcm")
    assert_refused(tmp_path, ErrorCode.NO_LABEL)
    save(tmp_path, [segmentation(slices, {"lesion": box()})], "tumour{}.dcm")
    assert (label_of(tmp_path) == box()).all()


def test_two_frames_further_apart_than_any_scan_is_long_do_not_fill_the_memory(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    seg = segmentation(slices, {"lesion": box()})
    first, *_, last = (group.PlanePositionSequence[0] for group in seg.PerFrameFunctionalGroupsSequence)
    last.ImagePositionPatient[2] = first.ImagePositionPatient[2] + 3e9  # a thousand million slices
    save(tmp_path, [*slices, seg])
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH, "no even stack")


def frame(segment: int, *sources: tuple[str, Any]) -> Dataset:
    """Functional groups of a frame that says which images, and frames of them, it was drawn on."""
    group, identification, derivation = Dataset(), Dataset(), Dataset()
    identification.ReferencedSegmentNumber = segment
    derivation.SourceImageSequence = []
    for instance, number in sources:
        item = Dataset()
        item.ReferencedSOPInstanceUID = instance
        if number is not None:
            item.ReferencedFrameNumber = number
        derivation.SourceImageSequence.append(item)
    group.SegmentIdentificationSequence, group.DerivationImageSequence = [identification], [derivation]
    return group


@pytest.fixture
def on_frames(tmp_path: Path) -> Any:
    """Write a segmentation of three pixels per frame, without positions, and read it onto frames 1 to 3 of "1.2"."""

    def read_onto(*groups: Dataset) -> list[list[int]]:
        seg = segmentation(ct_slices(stored((3, 1, 3))), {"lesion": np.ones((3, 1, 3), bool)}, "FRACTIONAL")
        seg.SharedFunctionalGroupsSequence = [Dataset()]
        seg.PerFrameFunctionalGroupsSequence = list(groups)
        seg.NumberOfFrames, seg.PixelData = len(groups), bytes([255, 0, 255, 0, 0, 255])[: 3 * len(groups)]
        save(tmp_path, [seg])
        grid = Grid((3, 1, 3), None, ("1.2",) * 3, "", frames=(3, 1, 2))
        rows: list[list[int]] = read_labels(tmp_path / "000.dcm", grid, Vocabulary().naming())[:, 0].tolist()
        return rows

    return read_onto


def test_frame_of_a_multi_frame_image_is_found_by_its_number(on_frames: Any) -> None:
    drawn = on_frames(frame(1, ("1.2", 3)), frame(1, ("9.9", 1), ("1.2", [2])))
    assert drawn == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("sources", [[("1.2", None)], [("1.2", [1, 2])], [("9.9", 1)], [("1.2", 4)], []])
def test_frame_that_names_no_image_or_several_is_refused(on_frames: Any, sources: list[tuple[str, Any]]) -> None:
    with pytest.raises(DataError, match="which one image") as error:
        on_frames(frame(1, *sources))
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH
