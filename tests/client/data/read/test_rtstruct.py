import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from client.data.read import sources
from client.data.read.dicom_seg import Grid
from client.data.read.rtstruct import fill, read_labels, united
from client.data.study.geometry import stack_slices
from client.data.study.labels import Vocabulary
from client.data.study.study import Study
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.studies import AXIAL, ct_slices, save, segmentation, source

LESION = DataConfig(modality="CT", classes=("lesion",))
TWO = DataConfig(modality="CT", classes=("organ", "lesion"))
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
SHAPE = (5, 24, 31)
SPACING_MM = (4.0, 0.9, 0.5)
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
DATA = os.environ.get("WARDROUND_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA is not set")

Corners = list[tuple[float, float]]  # (y, x) in pixels
Contours = list[tuple[int, Corners]]  # slice and corners


def inside(polygons: list[Any], shape: tuple[int, int]) -> np.ndarray:
    """The oracle: matplotlib's point-in-polygon test at every pixel centre, odd numbers of polygons inside."""
    centres = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), axis=-1).reshape(-1, 2)
    found = np.zeros(shape, bool)
    for corners in polygons:
        found ^= Polygon(corners).contains_points(centres).reshape(shape)
    return found


def distance_to(corners: np.ndarray, point: tuple[float, float]) -> float:
    """Distance of a point to the outline of a polygon, in pixels."""
    edges = np.roll(corners, -1, axis=0) - corners
    along = ((np.array(point) - corners) * edges).sum(1) / np.maximum((edges**2).sum(1), 1e-12)
    nearest = corners + np.clip(along, 0, 1)[:, None] * edges
    return float(np.linalg.norm(nearest - point, axis=1).min())


def star(rng: np.random.Generator, middle: tuple[float, float], radius: float, count: int = 17) -> Corners:
    """A simple polygon with dents."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    lengths = radius * rng.uniform(0.4, 1, count)
    return [(middle[0] + r * np.sin(a), middle[1] + r * np.cos(a)) for a, r in zip(angles, lengths, strict=True)]


def ct(orientation: tuple[float, ...] = AXIAL) -> list[Dataset]:
    return ct_slices(np.random.default_rng(1).integers(0, 3000, SHAPE), orientation=orientation, spacing_mm=SPACING_MM)


def structure_set(slices: list[Dataset], rois: dict[str, Contours], *, images: bool = True) -> Dataset:
    """An RTSTRUCT drawn on slices; images: whether contours name the image they were drawn on."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(STRUCTURE_SET), generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = STRUCTURE_SET, meta.MediaStorageSOPInstanceUID, "RTSTRUCT"
    ds.PatientID, ds.SeriesInstanceUID = slices[0].PatientID, generate_uid()
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = slices[0].SeriesInstanceUID
    series.ContourImageSequence = [instance(one) for one in slices]
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = slices[0].FrameOfReferenceUID, [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame.FrameOfReferenceUID
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = [contour(slices[z], corners, images) for z, corners in contours]
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    return ds


def instance(ds: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return item


def contour(image: Dataset, corners: Corners, named: bool) -> Dataset:
    """PS3.3 C.7.6.2.1.1, written out: origin + x * column spacing * row direction + y * row spacing * column."""
    origin = np.array(image.ImagePositionPatient, float)
    along, down = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    points = [origin + x * image.PixelSpacing[1] * along + y * image.PixelSpacing[0] * down for y, x in corners]
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(corners)
    item.ContourData = [f"{number:.6f}" for point in points for number in point]
    if named:
        item.ContourImageSequence = [instance(image)]
    return item


def contours_of(ds: Dataset) -> Iterator[Dataset]:
    return (item for roi in ds.ROIContourSequence for item in roi.get("ContourSequence") or [])


def read(folder: Path, data: DataConfig = LESION, **options: object) -> Study:
    (reference,) = sources.find(source(path=".", **options), folder).references
    return sources.read(reference, Vocabulary.of_run(data, reference.label_map))


def as_found(folder: Path) -> Study:
    (reference,) = sources.find(source(path="."), folder).references
    return sources.read(reference, Vocabulary.as_found({}))


def label_of(folder: Path, data: DataConfig = LESION, **options: object) -> np.ndarray:
    label = read(folder, data, **options).label
    assert label is not None
    return label


def assert_refused(folder: Path, code: ErrorCode, match: str | None = None, **options: object) -> None:
    with pytest.raises(DataError, match=match) as error:
        read(folder, LESION, **options)
    assert error.value.code is code


SQUARE: Corners = [(3.5, 4.5), (3.5, 12.5), (14.5, 12.5), (14.5, 4.5)]  # rows 4-14, columns 5-12


def test_filled_polygons_equal_those_of_matplotlib() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        shape = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
        # Also larger than the picture and beside it.
        polygons = [star(rng, (rng.uniform(-5, 45), rng.uniform(-5, 45)), rng.uniform(1, 30)) for _ in range(3)]
        for count in (1, 3):
            found = fill([np.array(corners) for corners in polygons[:count]], shape)
            assert (found == inside(polygons[:count], shape)).all()


def test_centres_on_an_edge_belong_to_the_left_and_upper_side_only() -> None:
    found = fill([np.array([(2.0, 3.0), (2.0, 6.0), (4.0, 6.0), (4.0, 3.0)])], (6, 8))
    assert np.argwhere(found).tolist() == [[y, x] for y in (2, 3) for x in (3, 4, 5)]


def test_polygons_that_share_an_edge_neither_overlap_nor_leave_a_gap() -> None:
    left, right = [(1.0, 1.0), (1.0, 4.0), (7.0, 5.0), (7.0, 1.0)], [(1.0, 4.0), (1.0, 9.0), (7.0, 9.0), (7.0, 5.0)]
    halves = [fill([np.array(corners)], (9, 11)) for corners in (left, right)]
    assert not (halves[0] & halves[1]).any()
    assert (halves[0] | halves[1]).sum() == 6 * 8


@pytest.mark.parametrize("corners", [[(2.0, 2.0)], [(2.0, 2.0), (6.0, 7.0)], [(2.0, 2.0), (4.0, 4.0), (6.0, 6.0)]])
def test_contour_without_area_draws_nothing(corners: Corners) -> None:
    assert not fill([np.array(corners)], (9, 9)).any()


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
@pytest.mark.parametrize("images", [True, False])
def test_label_equals_matplotlibs_on_axial_and_oblique_series(
    tmp_path: Path, orientation: tuple[float, ...], images: bool
) -> None:
    rng = np.random.default_rng(11)
    slices = ct(orientation)
    stars = {z: star(rng, (12.0, 15.0), 11.0) for z in (1, 2, 4)}
    save(tmp_path, [*slices, structure_set(slices, {"Lesion": list(stars.items())}, images=images)])
    label = label_of(tmp_path)
    for z in range(SHAPE[0]):
        expected = inside([stars[z]] if z in stars else [], SHAPE[1:])
        assert (label[z] == expected).all()


def test_contour_within_a_contour_is_a_hole_and_one_within_that_an_island(tmp_path: Path) -> None:
    slices = ct()
    hole, island = (
        [(5.5, 6.5), (5.5, 10.5), (12.5, 10.5), (12.5, 6.5)],
        [(7.5, 7.5), (7.5, 9.5), (9.5, 9.5), (9.5, 7.5)],
    )
    save(tmp_path, [*slices, structure_set(slices, {"lesion": [(2, SQUARE), (2, hole), (2, island)]})])
    expected = np.zeros(SHAPE[1:], bool)
    expected[4:15, 5:13], expected[6:13, 7:11], expected[8:10, 8:10] = True, False, True
    assert (label_of(tmp_path)[2] == expected).all()


def square_at(y: float, x: float, size: float = 8) -> Corners:
    return [(y, x), (y, x + size), (y + size, x + size), (y + size, x)]


def test_contours_of_one_roi_that_cross_each_other_are_united(tmp_path: Path) -> None:
    slices, first, second = ct(), square_at(3.5, 4.5), square_at(7.5, 8.5)
    # And a hole in what both make.
    save(tmp_path, [*slices, structure_set(slices, {"lesion": [(2, first), (2, second), (2, square_at(8.5, 9.5, 2))]})])
    expected = np.zeros(SHAPE[1:], bool)
    expected[4:12, 5:13] = expected[8:16, 9:17] = True
    expected[9:11, 10:12] = False
    assert (label_of(tmp_path)[2] == expected).all()
    assert (inside([first], SHAPE[1:]) | inside([second], SHAPE[1:])).sum() - 4 == expected.sum()


def test_as_found_an_roi_that_mixes_areas_and_points_is_refused_like_in_a_run(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(2, SQUARE), (3, SQUARE)]})
    ds.ROIContourSequence[0].ContourSequence[1].ContourGeometricType = "POINT"
    save(tmp_path, [*slices, ds])
    with pytest.raises(DataError, match="points or open lines"):
        as_found(tmp_path)


def test_contour_that_comes_twice_is_one_region(tmp_path: Path) -> None:
    slices, one = ct(), square_at(3.5, 4.5)
    save(tmp_path, [*slices, structure_set(slices, {"lesion": [(2, one), (2, one[::-1])]})])
    assert label_of(tmp_path)[2].sum() == 64


def test_contours_of_the_exclusive_kind_cut_each_other_out(tmp_path: Path) -> None:
    slices, first, second = ct(), square_at(3.5, 4.5), square_at(7.5, 8.5)
    ds = structure_set(slices, {"lesion": [(2, first), (2, second)]})
    for item in contours_of(ds):
        item.ContourGeometricType = "CLOSEDPLANAR_XOR"
    save(tmp_path, [*slices, ds])
    assert (label_of(tmp_path)[2].astype(bool) == inside([first], SHAPE[1:]) ^ inside([second], SHAPE[1:])).all()


@pytest.mark.parametrize("seed", range(5))
def test_crossing_and_lying_apart_polygons_are_the_union_of_matplotlibs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    polygons = [star(rng, (20 + 6 * step, 20 + 9 * step), 9) for step in range(3)] + [star(rng, (50, 12), 6)]
    masks = [inside([one], (64, 64)) for one in polygons]
    assert (united([np.array(one) for one in polygons], (64, 64)) == np.logical_or.reduce(masks)).all()


def test_keyhole_is_a_hole_and_its_channel_leaves_no_trace(tmp_path: Path) -> None:
    slices = ct()
    # In from the left edge of the square, round the hole, and out along the same line.
    keyhole = [(8.3, 4.5), (8.3, 6.5), (12.5, 6.5), (12.5, 10.5), (5.5, 10.5), (5.5, 6.5), (8.3, 6.5), (8.3, 4.5)]
    corners = [SQUARE[0], SQUARE[1], SQUARE[2], SQUARE[3], *keyhole]
    save(tmp_path, [*slices, structure_set(slices, {"lesion": [(2, corners)]})])
    expected = np.zeros(SHAPE[1:], bool)
    expected[4:15, 5:13], expected[6:13, 7:11] = True, False
    assert (label_of(tmp_path)[2] == expected).all()


def test_rois_are_mapped_by_name_and_the_later_class_wins(tmp_path: Path) -> None:
    slices = ct()
    body: Corners = [(0.5, 0.5), (0.5, 29.5), (22.5, 29.5), (22.5, 0.5)]
    rois: dict[str, Contours] = {"Herd 1": [(2, SQUARE)], "Leber": [(2, body)], "couch": [(3, SQUARE)], "unused": []}
    save(tmp_path, [*slices, structure_set(slices, rois)])
    assert_refused(tmp_path, ErrorCode.LABEL_UNKNOWN, "ROI 1")
    label = label_of(tmp_path, TWO, label_map={"herd 1": "lesion", "leber": "organ", "Couch": "background"})
    expected = np.zeros(SHAPE, np.uint8)
    expected[2, 1:23, 1:30] = 1
    expected[2, 4:15, 5:13] = 2
    assert (label == expected).all()


def test_structure_set_and_segmentation_of_one_series_are_drawn_together(tmp_path: Path) -> None:
    slices = ct()
    organ = np.zeros(SHAPE, bool)
    organ[:, 2:20, 2:20] = True
    save(tmp_path, [*slices, segmentation(slices, {"organ": organ}), structure_set(slices, {"lesion": [(2, SQUARE)]})])
    label = label_of(tmp_path, TWO)
    assert (label[2, 4:15, 5:13] == 2).all()
    assert (label == 1).sum() == organ.sum() - 11 * 8


def test_structure_set_finds_its_series_among_two_in_one_frame_of_reference(tmp_path: Path) -> None:
    first, second = ct(), ct()
    for ds in second:
        ds.FrameOfReferenceUID = first[0].FrameOfReferenceUID
    save(tmp_path / "x", [*first, structure_set(first, {"lesion": [(2, SQUARE)]})])
    save(tmp_path / "y", second)
    references = sources.find(source(path="."), tmp_path).references
    assert {reference.images[0].parent.name: len(reference.labels) for reference in references} == {"x": 1, "y": 0}


def test_contour_on_its_image_is_read_whatever_frame_of_reference_the_writer_invented(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(2, SQUARE)]})
    ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = generate_uid()
    save(tmp_path, [*slices, ds])
    assert label_of(tmp_path)[2].sum() == 11 * 8


def test_contour_naming_no_image_in_another_frame_of_reference_does_not_fit(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(2, SQUARE)]}, images=False)
    ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = generate_uid()
    save(tmp_path, [*slices, ds])
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH, "frame of reference")


def test_contour_on_an_image_that_is_not_there_does_not_fit(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(1, SQUARE), (2, SQUARE)]})
    ds.ROIContourSequence[0].ContourSequence[1].ContourImageSequence[0].ReferencedSOPInstanceUID = generate_uid()
    save(tmp_path, [*slices, ds])
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH, "not in the series")


@pytest.mark.parametrize(("shift_mm", "match"), [(2.0, "between"), (4.0, "on the image"), (-40.0, "outside")])
def test_contour_off_its_slice_does_not_fit(tmp_path: Path, shift_mm: float, match: str) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(2, SQUARE)]})
    for item in contours_of(ds):
        item.ContourData = [float(n) + (shift_mm if i % 3 == 2 else 0) for i, n in enumerate(item.ContourData)]
    save(tmp_path, [*slices, ds])
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH, match)


def test_contour_across_the_slices_does_not_fit(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(2, SQUARE)]})
    next(contours_of(ds)).ContourData[2] += 4.0
    save(tmp_path, [*slices, ds])
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH, "across")


def test_points_and_open_lines_are_no_regions_unless_unwanted(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(2, SQUARE)], "isocentre": [(2, SQUARE[:1])]})
    ds.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = "POINT"
    save(tmp_path, [*slices, ds])
    assert_refused(tmp_path, ErrorCode.UNSUPPORTED, label_map={"isocentre": "lesion"})
    assert label_of(tmp_path, label_map={"isocentre": "background"}).sum() == 11 * 8


def test_as_found_only_rois_of_closed_contours_make_classes(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"Isocentre": [(0, SQUARE)], "GTV 1": [(1, SQUARE)], "Needle": [(2, SQUARE)]})
    ds.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"
    ds.ROIContourSequence[2].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    save(tmp_path, [*slices, ds])
    study = as_found(tmp_path)
    assert study.classes == ("GTV 1",)
    assert study.label is not None
    assert np.flatnonzero(study.label.any(axis=(1, 2))).tolist() == [1]
    ds.ROIContourSequence = ds.ROIContourSequence[:1]
    save(tmp_path, [ds], "005.dcm")
    with pytest.raises(DataError) as error:
        as_found(tmp_path)
    assert error.value.code is ErrorCode.NO_LABEL


def test_broken_structure_set_beside_a_good_segmentation_sets_the_study_aside_until_its_rois_are_dropped(
    tmp_path: Path,
) -> None:
    slices, mask = ct(), np.zeros(SHAPE, bool)
    mask[2, 5:9, 5:9] = True
    broken = structure_set(slices, {"Heart": [(1, SQUARE)]})
    next(contours_of(broken)).ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    save(tmp_path, [*slices, segmentation(slices, {"lesion": mask}), broken])
    assert_refused(
        tmp_path, ErrorCode.GEOMETRY_MISMATCH, "of the 2 labels .* not in the series", label_map={"Heart": "lesion"}
    )
    assert (label_of(tmp_path, label_map={"Heart": "background"}) == mask).all()


def test_structure_set_without_contours_is_passed_over_beside_a_segmentation(tmp_path: Path) -> None:
    slices, mask = ct(), np.zeros(SHAPE, bool)
    mask[2, 5:9, 5:9] = True
    save(tmp_path, [*slices, structure_set(slices, {}), segmentation(slices, {"lesion": mask})])
    assert (label_of(tmp_path) == mask).all()


def test_contour_on_a_frame_of_a_multi_frame_image_must_lie_on_that_frame(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(1, SQUARE)]})
    image = next(contours_of(ds)).ContourImageSequence[0]
    image.ReferencedSOPInstanceUID = "1.2"
    stack = stack_slices(
        np.array([one.ImagePositionPatient for one in slices], float),
        np.tile(np.array(AXIAL), (5, 1)),
        np.tile(np.array(SPACING_MM[1:]), (5, 1)),
        1.0,
    )
    grid = Grid(SHAPE, stack, ("1.2",) * 5, slices[0].FrameOfReferenceUID, frames=(5, 4, 3, 2, 1))
    for number, fits in ((4, True), (2, False)):
        image.ReferencedFrameNumber = number
        save(tmp_path, [ds])
        if fits:
            label = read_labels(tmp_path / "000.dcm", grid, Vocabulary().naming())
            assert np.flatnonzero(label.any(axis=(1, 2))).tolist() == [1]
        else:
            with pytest.raises(DataError, match="does not lie on the image"):
                read_labels(tmp_path / "000.dcm", grid, Vocabulary().naming())


def test_structure_set_without_contours_is_no_label(tmp_path: Path) -> None:
    slices = ct()
    save(tmp_path, [*slices, structure_set(slices, {"lesion": []})])
    assert_refused(tmp_path, ErrorCode.NO_LABEL)


def test_contours_of_an_roi_that_is_not_described_are_unknown(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(2, SQUARE)]})
    ds.StructureSetROISequence = []
    save(tmp_path, [*slices, ds])
    assert_refused(tmp_path, ErrorCode.LABEL_UNKNOWN)


def test_half_a_point_is_unreadable(tmp_path: Path) -> None:
    slices = ct()
    ds = structure_set(slices, {"lesion": [(2, SQUARE)]})
    next(contours_of(ds)).ContourData = [1.0, 2.0, 3.0, 4.0]
    save(tmp_path, [*slices, ds])
    assert_refused(tmp_path, ErrorCode.UNREADABLE)


@needs_data
def test_mask_of_an_rt_utils_file_equals_matplotlibs(tmp_path: Path) -> None:
    mock = Path(str(DATA)) / "dicom_labelled" / "rt_utils" / "mock_data"
    for name in ("ct_1.dcm", "ct_2.dcm", "rt.dcm"):
        shutil.copy(mock / name, tmp_path)
    label = label_of(tmp_path, label_map={"ROI-1": "lesion"})
    polygons = [
        (np.array(item.ContourData, float).reshape(-1, 3)[:, 1::-1] + 125.0) / 0.488281
        for item in contours_of(pydicom.dcmread(mock / "rt.dcm"))
    ]
    assert (label[0] == inside(polygons, (512, 512))).all()
    assert label[0].sum() == 1443  # 49 x 49 less the hole
    assert not label[1].any()


@needs_data
@pytest.mark.parametrize("name", ["invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"])
def test_rt_utils_files_with_broken_references_do_not_fit(tmp_path: Path, name: str) -> None:
    mock = Path(str(DATA)) / "dicom_labelled" / "rt_utils" / "mock_data"
    for file in ("ct_1.dcm", "ct_2.dcm", name):
        shutil.copy(mock / file, tmp_path)
    label_map = {f"ROI-{number}": "lesion" for number in range(1, 5)}
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH, "not in the series", label_map=label_map)


@needs_data
def test_organs_of_a_planning_ct_equal_matplotlibs_but_for_centres_on_an_edge() -> None:
    """Tolerance: a voxel may differ where its centre is nearer than 1/1000 pixel to a contour (22 of 705,740 do)."""
    folder = Path(str(DATA)) / "dicom_labelled" / "dicompyler" / "example_data"
    ds, ct_0 = pydicom.dcmread(folder / "rtss.dcm"), pydicom.dcmread(folder / "ct.0.dcm")
    # 97 of the 98 slices are not in the archive; their places are those of the contours that name them.
    heights = {item.ContourImageSequence[0].ReferencedSOPInstanceUID: item.ContourData[2] for item in contours_of(ds)}
    instances = sorted(heights, key=lambda uid: float(heights[uid]))
    count, shape = len(instances), (512, 512)
    origin, pitch = np.array(ct_0.ImagePositionPatient[:2], float), np.array(ct_0.PixelSpacing, float)
    stack = stack_slices(
        np.array([[*origin, heights[uid]] for uid in instances], float),
        np.tile(np.array(ct_0.ImageOrientationPatient, float), (count, 1)),
        np.tile(pitch, (count, 1)),
        3.0,
    )
    grid = Grid((count, *shape), stack, tuple(instances), str(ct_0.FrameOfReferenceUID))
    names = {roi.ROINumber: roi.ROIName for roi in ds.StructureSetROISequence}
    chosen = {"Heart", "Lt Lung", "Scar"}
    label_map = {name: "lesion" if name in chosen else "background" for name in names.values()}
    label = read_labels(folder / "rtss.dcm", grid, Vocabulary.of_run(LESION, label_map).naming())
    expected = np.zeros(grid.shape, bool)
    polygons: dict[int, list[np.ndarray]] = {}
    for roi in ds.ROIContourSequence:
        if names[roi.ReferencedROINumber] in chosen:
            region = np.zeros(grid.shape, bool)
            for item in roi.ContourSequence:
                z = instances.index(item.ContourImageSequence[0].ReferencedSOPInstanceUID)
                corners = ((np.array(item.ContourData, float).reshape(-1, 3)[:, :2] - origin) / pitch)[:, ::-1]
                low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int) + 1
                box = (z, slice(low[0], high[0]), slice(low[1], high[1]))
                region[box] ^= inside([corners - low], (high[0] - low[0], high[1] - low[1]))
                polygons.setdefault(z, []).append(corners)
            expected |= region
    different = np.argwhere(label.astype(bool) != expected)
    assert len(different) < 1e-4 * expected.sum()
    for z, y, x in different:
        assert min(distance_to(corners, (y, x)) for corners in polygons[z]) < 1e-3
