"""Phantoms are what a hospital's archive is: valid CT series, labels that lie on them, and names that must not leak."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map
from numpy.typing import NDArray
from pydicom import Dataset

from client.predict.dicom.segmentation import Author, write_segmentation
from simulations.generators.phantoms import SCANNERS, WrittenSeries, write_hospital, write_study
from tests.client.data.studies import dice_between

TILT = ((0.8, 0.0, 0.6), (0.0, 1.0, 0.0))


@pytest.fixture(params="abc")
def series(request: pytest.FixtureRequest, tmp_path: Path) -> WrittenSeries:
    return write_study(tmp_path, scanner=SCANNERS[request.param], seed=5, slices=7, rows=64)


def _hounsfield(image: Dataset) -> NDArray[np.float64]:
    return image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)


def _volume(series: WrittenSeries) -> NDArray[np.float64]:
    return np.stack([_hounsfield(pydicom.dcmread(path)) for path in series.images])


def _missing(dataset: Dataset, iod: str) -> Iterator[str]:
    """Keywords of mandatory modules that are absent, or empty though type 1."""
    attributes = get_module_attribute_map()
    for module in get_iod_module_map()[iod]:
        for attribute in attributes[module["key"]] if module["usage"] == "M" else ():
            keyword, kind = attribute["keyword"], attribute["type"]
            if attribute["path"] or kind not in ("1", "2"):
                continue
            if keyword not in dataset or (kind == "1" and dataset[keyword].is_empty):
                yield keyword


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.dcm"))
    }


def test_every_attribute_that_the_standard_requires_is_there(series: WrittenSeries) -> None:
    assert series.segmentation is not None
    assert not list(_missing(pydicom.dcmread(series.images[0]), "ct-image"))
    assert not list(_missing(pydicom.dcmread(series.segmentation), "segmentation"))


def test_slices_lie_evenly_along_the_normal(series: WrittenSeries) -> None:
    images = [pydicom.dcmread(path) for path in series.images]
    orientation = np.array(images[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(orientation[:3], orientation[3:])
    depths = np.array([np.array(image.ImagePositionPatient, dtype=float) @ normal for image in images])
    assert np.allclose(np.abs(np.diff(depths)), float(images[0].SliceThickness))
    assert len(set(np.sign(np.diff(depths)))) == 1
    assert [image.InstanceNumber for image in images] == list(range(1, 8))
    assert len({image.SOPInstanceUID for image in images}) == 7
    assert len({(image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID) for image in images}) == 1


def test_hounsfield_units_are_those_of_an_abdomen(series: WrittenSeries) -> None:
    volume = _volume(series)
    assert np.median(volume[:, :4, :4]) == pytest.approx(-1000, abs=20)
    centre = volume[:, 24:40, 24:40]
    assert 0 < np.median(centre) < 150
    lesion = series.truth.astype(bool)
    # The liver is on the patient's right: the left half of the picture, around the lesions.
    liver = (volume[:, 24:36, 12:30] > 0) & ~lesion[:, 24:36, 12:30]
    assert volume[lesion].mean() < volume[:, 24:36, 12:30][liver].mean() - 20


def test_no_threshold_finds_the_lesions(series: WrittenSeries) -> None:
    volume, lesion = _volume(series), series.truth.astype(bool)
    best = 0.0
    for low in range(-60, 140, 10):
        for high in range(low + 10, 150, 10):
            found = (volume >= low) & (volume < high)
            best = max(best, 2 * (found & lesion).sum() / (found.sum() + lesion.sum()))
    assert best < 0.5


def test_segmentation_read_by_two_libraries_is_the_truth(series: WrittenSeries) -> None:
    assert series.segmentation is not None
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in series.images]

    by_highdicom = highdicom.seg.segread(series.segmentation).get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True, combine_segments=True
    )
    assert np.array_equal(by_highdicom, series.truth)

    dataset = pydicom.dcmread(series.segmentation)
    by_pydicom = np.zeros_like(series.truth)
    frames = dataset.pixel_array.reshape(-1, *series.truth.shape[1:])
    for item, frame in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        by_pydicom[uids.index(source.ReferencedSOPInstanceUID)] = frame
        assert frame.any(), "empty frames are left out"
    assert np.array_equal(by_pydicom, series.truth)


def test_segmentation_refers_to_images_that_exist(series: WrittenSeries) -> None:
    assert series.segmentation is not None
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, series.images)}
    segmentation = pydicom.dcmread(series.segmentation)
    reference = segmentation.ReferencedSeriesSequence[0]
    first = next(iter(images.values()))
    assert {item.ReferencedSOPInstanceUID for item in reference.ReferencedInstanceSequence} == set(images)
    assert reference.SeriesInstanceUID == first.SeriesInstanceUID
    assert segmentation.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert segmentation.StudyInstanceUID == first.StudyInstanceUID
    assert segmentation.SegmentSequence[0].SegmentLabel == "lesion"
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        source = images[item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert item.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        write_hospital(tmp_path / name, scanner=SCANNERS["b"], patients=2, seed=seed, slices=3, rows=32)
    assert _hashes(tmp_path / "first") == _hashes(tmp_path / "second")
    first, other = _hashes(tmp_path / "first"), _hashes(tmp_path / "other")
    assert not set(first.values()) & set(other.values())


def test_scanners_differ_in_spacing_thickness_calibration_and_noise(tmp_path: Path) -> None:
    seen = {}
    for name, scanner in SCANNERS.items():
        image = pydicom.dcmread(write_study(tmp_path / name, scanner=scanner, seed=1, slices=3).images[1])
        # The liver's voxels next to each other: their difference is noise alone.
        noise = np.diff(_hounsfield(image)[50:70, 60:64], axis=0).std()
        seen[name] = (image.PixelSpacing[0], image.SliceThickness, image.RescaleSlope, image.RescaleIntercept, noise)
    first, second, third = (seen[name] for name in "abc")
    assert len({first[0], second[0], third[0]}) == len({first[1], second[1], third[1]}) == 3
    assert len({first[2:4], second[2:4], third[2:4]}) == 3
    assert second[4] > 1.5 * first[4]


def test_lesions_vary_in_number_and_size(tmp_path: Path) -> None:
    written = write_hospital(tmp_path, scanner=SCANNERS["a"], patients=12, seed=2, rows=64)
    sizes = [int(series.truth.sum()) for series in written]
    assert min(sizes) > 0
    assert max(sizes) > 3 * min(sizes)
    assert len({path.parent.parent for series in written for path in series.images}) == 12


def test_every_fifth_patient_has_a_second_series_of_the_same_study(tmp_path: Path) -> None:
    written = write_hospital(tmp_path, scanner=SCANNERS["a"], patients=6, seed=1, slices=2, rows=32)
    assert len(written) == 7
    by_patient: dict[str, list[Dataset]] = {}
    for series in written:
        image = pydicom.dcmread(series.images[0])
        by_patient.setdefault(image.PatientID, []).append(image)
    first, second = next(images for images in by_patient.values() if len(images) == 2)
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.PixelData != second.PixelData


def test_a_patient_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = write_hospital(tmp_path / "few", scanner=SCANNERS["c"], patients=1, seed=9, slices=2, rows=32)
    many = write_hospital(tmp_path / "many", scanner=SCANNERS["c"], patients=3, seed=9, slices=2, rows=32)
    assert few[0].images[0].read_bytes() == many[0].images[0].read_bytes()


def test_every_file_carries_the_names_that_must_not_leak(tmp_path: Path) -> None:
    write_hospital(tmp_path, scanner=SCANNERS["b"], patients=2, seed=1, slices=2, rows=32)
    for path in tmp_path.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert str(dataset.PatientName).startswith("PHANTOM^B000")
        assert dataset.PatientID.startswith("PID-B000")


def test_unseen_study_has_no_label_inside_and_its_truth_outside(tmp_path: Path) -> None:
    truth = tmp_path / "truth.dcm"
    written = write_study(
        tmp_path / "study", scanner=SCANNERS["a"], seed=7, slices=5, rows=48, labelled=False, truth=truth
    )
    assert {pydicom.dcmread(path).Modality for path in (tmp_path / "study").rglob("*.dcm")} == {"CT"}
    assert written.segmentation == truth
    assert write_study(tmp_path / "bare", scanner=SCANNERS["a"], seed=7, slices=2, labelled=False).segmentation is None


@pytest.mark.parametrize(("slices", "rows"), [(1, 33), (2, 31)])
def test_one_slice_and_odd_sizes_are_written(tmp_path: Path, slices: int, rows: int) -> None:
    written = write_study(tmp_path, scanner=SCANNERS["b"], seed=1, slices=slices, rows=rows)
    assert written.truth.shape == (slices, rows, rows)
    assert _volume(written).shape == written.truth.shape


def test_tilted_series_keeps_its_positions_on_the_tilted_normal(tmp_path: Path) -> None:
    written = write_study(tmp_path, scanner=SCANNERS["a"], seed=1, slices=3, rows=32, axes=TILT)
    first, second = (np.array(pydicom.dcmread(path).ImagePositionPatient, dtype=float) for path in written.images[:2])
    assert np.allclose(second - first, 5.0 * np.cross(*np.array(TILT)), atol=1e-5)


def test_dice_between_segmentations_is_that_of_their_masks(tmp_path: Path) -> None:
    written = write_study(tmp_path, scanner=SCANNERS["a"], seed=1, slices=3, rows=16)
    sources = [pydicom.dcmread(path) for path in written.images]
    first, second = np.zeros((2, 3, 16, 16), np.uint8)
    first[0, :2, :2], first[1, 0, 0] = 1, 1  # 5 voxels on slices 0 and 1
    second[0, :2, 0], second[2, 0, 0] = 1, 1  # 3 voxels on slices 0 and 2; 2 in common
    for name, mask in (("first", first), ("second", second), ("empty", np.zeros_like(first))):
        write_segmentation(
            sources,
            mask,
            ["lesion"],
            Author("Test", kind="MANUAL"),
            created=pydicom.valuerep.DT("20240101101500"),
            series_number=2,
            description="Test",
        ).save_as(tmp_path / name)
    assert dice_between(tmp_path / "first", tmp_path / "second") == pytest.approx(2 * 2 / (5 + 3))
    assert dice_between(tmp_path / "first", tmp_path / "first") == 1.0
    assert dice_between(tmp_path / "first", tmp_path / "empty") == 0.0
    assert dice_between(tmp_path / "empty", tmp_path / "empty") == 1.0
