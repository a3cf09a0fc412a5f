from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import RLELossless, generate_uid

from client.data.prepare.preprocess import preprocess
from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.data.study.study import Found, Study
from common.config import DataConfig
from common.errors import DataError, ErrorCode
from tests.client.data.studies import AXIAL, ct_slices, read_image, run_config, save, segmentation, source, write_ct

LESION = DataConfig(modality="CT", classes=("lesion",))
TWO = DataConfig(modality="CT", classes=("organ", "lesion"))
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
SHAPE = (5, 12, 17)


def stored(shape: tuple[int, int, int] = SHAPE, low: int = 0, high: int = 3000) -> np.ndarray:
    return np.random.default_rng(5).integers(low, high, shape)


def box(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[1:3, 2:9, 4:11] = True
    return mask


def find(folder: Path, **options: object) -> Found:
    return sources.find(source(path=".", **options), folder)


def read(folder: Path, data: DataConfig = LESION, **options: object) -> Study:
    (reference,) = find(folder, **options).references
    return sources.read(reference, Vocabulary.of_run(data, reference.label_map))


def assert_refused(folder: Path, code: ErrorCode, data: DataConfig = LESION) -> str:
    with pytest.raises(DataError) as error:
        read(folder, data)
    assert error.value.code is code
    return str(error.value)


def labelled(folder: Path, slices: list[Dataset], masks: dict[str, np.ndarray], kind: str = "BINARY") -> None:
    save(folder, [segmentation(slices, masks, kind)], "seg{}.dcm")
    save(folder, slices)


def test_series_is_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    values = stored()
    slices = ct_slices(values, slope=0.5, intercept=-500.0)
    save(tmp_path, [slices[z] for z in (3, 0, 4, 2, 1)])
    study = read_image(tmp_path)
    assert study.image[0] == pytest.approx(values * 0.5 - 500.0)
    assert study.spacing_mm == pytest.approx((3.0, 0.8, 0.7))
    assert [pydicom.dcmread(path).SOPInstanceUID for path in study.files] == [ds.SOPInstanceUID for ds in slices]


def test_signed_pixels_and_unused_high_bits(tmp_path: Path) -> None:
    values = stored(low=-1000, high=1000)
    save(tmp_path / "signed", ct_slices(values, signed=True, intercept=0))
    assert (read_image(tmp_path / "signed").image[0] == values).all()
    twelve = ct_slices(stored() | 0x4000, intercept=0)  # an old overlay in bit 14
    for ds in twelve:
        ds.BitsStored, ds.HighBit = 12, 11
    save(tmp_path / "overlay", twelve)
    assert (read_image(tmp_path / "overlay").image[0] == stored()).all()


def test_windows_change_nothing(tmp_path: Path) -> None:
    slices = ct_slices(stored(), intercept=0)
    for ds in slices:
        ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = 40, 80, "SIGMOID"
    save(tmp_path, slices)
    assert (read_image(tmp_path).image[0] == stored()).all()


def test_modality_lut_takes_the_place_of_rescaling(tmp_path: Path) -> None:
    values, table = stored(high=50), np.random.default_rng(8).integers(0, 60000, 40)
    slices = ct_slices(values)
    for ds in slices:
        lut = Dataset()
        lut.LUTDescriptor, lut.ModalityLUTType = [40, 5, 16], "US"
        lut.add_new("LUTData", "OW", table.astype("<u2").tobytes())
        ds.ModalityLUTSequence = [lut]
    save(tmp_path, slices)
    assert (read_image(tmp_path).image[0] == table[np.clip(values - 5, 0, 39)]).all()


def coloured(palette: bool = False) -> tuple[Dataset, np.ndarray]:
    """An ultrasound picture and its colours (Y, X, 3)."""
    (ds,) = ct_slices(stored()[:1])
    ds.SOPClassUID, ds.Modality, ds.BitsAllocated, ds.BitsStored, ds.HighBit = (
        "1.2.840.10008.5.1.4.1.1.6.1",
        "US",
        8,
        8,
        7,
    )
    del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept
    colours = np.random.default_rng(3).integers(0, 256, (*SHAPE[1:], 3), dtype=np.uint8)
    if not palette:
        ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, 1, "RGB"
        ds.PixelData = np.moveaxis(colours, -1, 0).tobytes()
        return ds, colours
    ds.PhotometricInterpretation, numbers = "PALETTE COLOR", colours[..., 0]
    tables = np.random.default_rng(4).integers(0, 256, (3, 256), dtype=np.uint8)
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        ds.add_new(f"{name}PaletteColorLookupTableData", "OW", table.tobytes())
    ds.PixelData = numbers.tobytes()
    return ds, tables[:, numbers].transpose(1, 2, 0)


@pytest.mark.parametrize("palette", [False, True])
def test_colour_is_three_channels_of_one_slice(tmp_path: Path, palette: bool) -> None:
    ds, colours = coloured(palette)
    save(tmp_path, [ds])
    study = read_image(tmp_path)
    assert study.image.shape == (3, 1, *SHAPE[1:])
    assert (np.moveaxis(study.image[:, 0], 0, -1) == colours).all()
    assert (study.affine, study.spacing_mm, study.modality) == (None, None, "US")


def test_a_run_on_grey_images_sees_the_brightness_of_colour(tmp_path: Path) -> None:
    ds, colours = coloured()
    save(tmp_path, [ds])
    run = run_config(data={"modality": "US", "classes": ["lesion"]}, preprocessing={"intensity": "zscore"})
    image, *_ = preprocess(read_image(tmp_path), run)
    # ITU-R BT.601
    brightness = colours @ np.array([0.299, 0.587, 0.114])
    expected = (brightness - brightness.mean()) / brightness.std()
    assert image.numpy()[0, 0] == pytest.approx(expected, abs=1e-4)


def test_a_colour_picture_among_grey_slices_does_not_fit(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    slices[2].SamplesPerPixel, slices[2].PlanarConfiguration, slices[2].PhotometricInterpretation = 3, 0, "RGB"
    slices[2].PixelData = slices[2].PixelData * 3
    save(tmp_path, slices)
    with pytest.raises(DataError) as error:
        read_image(tmp_path)
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH


def test_a_study_that_says_it_is_too_large_is_refused(tmp_path: Path) -> None:
    slices = ct_slices(stored()[:3])
    for ds in slices:
        ds.Rows = ds.Columns = 20_000  # each of them is allowed, all of them are not
    save(tmp_path, slices)
    with pytest.raises(DataError) as error:
        read_image(tmp_path)
    assert error.value.code is ErrorCode.OUT_OF_MEMORY


def test_rescale_slope_0_is_implausible(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    slices[1].RescaleSlope = 0
    save(tmp_path, slices)
    with pytest.raises(DataError) as error:
        read_image(tmp_path)
    assert error.value.code is ErrorCode.IMPLAUSIBLE


def test_compressed_series_equals_the_plain_one(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    save(tmp_path / "plain", slices)
    for ds in slices:
        ds.compress(RLELossless, generate_instance_uid=False)
    save(tmp_path / "rle", slices)
    plain, packed = (read_image(tmp_path / name).image for name in ("plain", "rle"))
    assert (plain == packed).all()


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1.0, 0), OBLIQUE])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segmentation_is_exact_for_oblique_and_anisotropic_series(
    tmp_path: Path, kind: str, orientation: tuple[float, ...]
) -> None:
    slices = ct_slices(stored(), orientation=orientation, spacing_mm=(4.0, 0.9, 0.5))
    labelled(tmp_path, slices, {"Lesion": box()}, kind)
    study = read(tmp_path)
    assert study.label is not None
    assert (study.label == box()).all()


def test_fraction_below_half_is_background(tmp_path: Path) -> None:
    fractions = box() * 0.4
    fractions[2] *= 2
    labelled(tmp_path, ct_slices(stored()), {"lesion": fractions}, "FRACTIONAL")
    label = read(tmp_path).label
    assert label is not None
    assert (label == (fractions > 0.5)).all()


def test_overlap_goes_to_the_class_named_later_in_the_run(tmp_path: Path) -> None:
    organ = np.zeros(SHAPE, bool)
    organ[:, 1:11, 2:15] = True
    labelled(tmp_path, ct_slices(stored()), {"Lesion": box(), "Organ": organ})  # in the other order
    label = read(tmp_path, TWO).label
    assert label is not None
    assert (label == np.where(box(), 2, organ)).all()


def test_label_map_renames_and_drops_segments(tmp_path: Path) -> None:
    labelled(tmp_path, ct_slices(stored()), {"Herd 1": box(), "table": ~box()})
    assert_refused(tmp_path, ErrorCode.LABEL_UNKNOWN)
    label = read(tmp_path, label_map={"herd 1": "lesion", "Table": "background"}).label
    assert label is not None
    assert (label == box()).all()


def test_segmentation_finds_its_series_among_two_in_one_frame_of_reference(tmp_path: Path) -> None:
    first, second = ct_slices(stored()), ct_slices(stored() + 1)
    for ds in second:
        ds.FrameOfReferenceUID, ds.StudyInstanceUID = first[0].FrameOfReferenceUID, first[0].StudyInstanceUID
    labelled(tmp_path / "x", first, {"lesion": box()})
    save(tmp_path / "y", second)
    found = {reference.images[0].parent.name: len(reference.labels) for reference in find(tmp_path).references}
    assert found == {"x": 1, "y": 0}


def test_empty_segmentation_is_a_negative_study(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    save(tmp_path, [*slices, segmentation(slices, {"lesion": np.zeros(SHAPE, bool)})])
    label = read(tmp_path).label
    assert label is not None
    assert not label.any()


def test_segmentation_without_frames_is_no_label(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    seg = segmentation(slices, {"lesion": box()})
    del seg.PerFrameFunctionalGroupsSequence
    save(tmp_path, [*slices, seg])
    assert_refused(tmp_path, ErrorCode.NO_LABEL)


def test_series_without_segmentation_has_no_label(tmp_path: Path) -> None:
    save(tmp_path, ct_slices(stored()))
    assert_refused(tmp_path, ErrorCode.NO_LABEL)


def nearest(label: np.ndarray, own: np.ndarray, onto: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The oracle for resampling: for each voxel of the image the label of the nearest voxel in mm, by trying all."""
    places = [affine[:3, :3] @ np.indices(size).reshape(3, -1) for affine, size in ((own, label.shape), (onto, shape))]
    sources, targets = (place + affine[:3, 3:] for place, affine in zip(places, (own, onto), strict=True))
    return np.array(
        [label.ravel()[((sources - target[:, None]) ** 2).sum(0).argmin()] for target in targets.T]
    ).reshape(shape)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize(
    "other_grid",  # orientation, spacing, shape, shift in mm
    [
        (AXIAL, (1.7, 0.43, 0.31), (9, 25, 40), (0.12, -0.21, 0.31)),  # finer
        (AXIAL, (5.9, 1.7, 1.9), (3, 7, 8), (0.12, -0.21, 0.31)),  # coarser
        ((0.0, -1.0, 0.0, 1.0, 0.0, 0.0), (2.1, 0.57, 0.61), (6, 20, 20), (0.12, 9.43, 0.31)),  # rows for columns
        ((0.96, 0.28, 0.0, -0.28, 0.96, 0.0), (2.3, 0.57, 0.61), (6, 24, 30), (0.12, -0.21, 0.31)),  # turned
    ],
)
def test_segmentation_on_another_grid_in_the_same_frame_of_reference_is_resampled(
    tmp_path: Path, kind: str, other_grid: tuple[Any, ...]
) -> None:
    orientation, spacing_mm, shape, shift_mm = other_grid
    slices, others = ct_slices(stored()), ct_slices(stored(shape), orientation=orientation, spacing_mm=spacing_mm)
    for ds in others:
        ds.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
        ds.ImagePositionPatient = [float(x) for x in np.array(ds.ImagePositionPatient, float) + shift_mm]
    mask = np.zeros(shape, np.uint8)
    mask[1:-1, 1:-1, 1:-1] = np.random.default_rng(4).random(np.array(shape) - 2) < 0.5
    seg = segmentation(others, {"lesion": mask}, kind)
    del seg.ReferencedSeriesSequence
    save(tmp_path / "other", others)
    other = read_image(tmp_path / "other")
    assert other.affine is not None
    save(tmp_path / "ct", [*slices, seg])
    study = read(tmp_path / "ct")
    assert study.label is not None
    assert study.affine is not None
    expected = nearest(mask, other.affine, study.affine, SHAPE)
    assert expected.any()
    assert (study.label == expected).all()


def test_segmentation_of_a_part_of_the_image_keeps_its_place(tmp_path: Path) -> None:
    slices = ct_slices(stored(), orientation=OBLIQUE)
    seg = segmentation(slices, {"lesion": box()})
    planes = seg.pixel_array.reshape(-1, *SHAPE[1:])[:, 2:10, 3:13]
    for group, _ in zip(seg.PerFrameFunctionalGroupsSequence, planes, strict=True):
        place = group.PlanePositionSequence[0]
        corner = np.array(place.ImagePositionPatient, float)
        corner += 2 * 0.8 * np.array(OBLIQUE[3:]) + 3 * 0.7 * np.array(OBLIQUE[:3])
        place.ImagePositionPatient = [round(float(x), 6) for x in corner]
    seg.Rows, seg.Columns = planes.shape[1:]
    seg.PixelData = pack_bits(planes.astype(np.uint8))
    save(tmp_path, [*slices, seg])
    label = read(tmp_path).label
    assert label is not None
    assert (label == box()).all()


@pytest.mark.parametrize("change", ["beside", "frame of reference", "no frame of reference", "no place"])
def test_segmentation_on_another_grid_without_a_common_space_does_not_fit(tmp_path: Path, change: str) -> None:
    slices = ct_slices(stored())
    seg = segmentation(slices, {"lesion": box()})
    for group in seg.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[2] += 500 if change == "beside" else 1.2
        if change == "no place":
            del group.PlanePositionSequence
            del group.DerivationImageSequence
    if change == "frame of reference":
        seg.FrameOfReferenceUID = generate_uid()
    elif change == "no frame of reference":
        del seg.FrameOfReferenceUID
    save(tmp_path, [*slices, seg])
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


def test_lost_slice_is_missing(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    labelled(tmp_path, slices, {"lesion": box()})
    (tmp_path / "002.dcm").unlink()
    assert_refused(tmp_path, ErrorCode.MISSING_SLICES)


def test_slices_of_mixed_sizes_do_not_fit(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    labelled(tmp_path, slices, {"lesion": box()})
    slices[1].Rows, slices[1].PixelData = SHAPE[1] - 1, slices[1].PixelData[: -2 * SHAPE[2]]
    save(tmp_path, slices)
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


def test_slices_without_position_do_not_fit(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    seg = segmentation(slices, {"lesion": box()})
    del slices[2].ImagePositionPatient
    save(tmp_path, [*slices, seg])
    assert_refused(tmp_path, ErrorCode.GEOMETRY_MISMATCH)


def test_other_modality_is_not_supported(tmp_path: Path) -> None:
    write_ct(tmp_path)
    assert_refused(tmp_path, ErrorCode.UNSUPPORTED, DataConfig(modality="MR", classes=("lesion",)))


def test_cut_pixels_are_unreadable_and_say_nothing_about_the_patient(tmp_path: Path) -> None:
    write_ct(tmp_path, patient="SECRET")
    cut = tmp_path / "001.dcm"
    cut.write_bytes(cut.read_bytes()[:-300])
    message = assert_refused(tmp_path, ErrorCode.UNREADABLE)
    assert "SECRET" not in message
    assert tmp_path.name not in message


def test_broken_header_is_found_and_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    assert_refused(tmp_path, ErrorCode.UNREADABLE)


def test_foreign_files_and_second_copies_are_ignored_and_counted(tmp_path: Path) -> None:
    write_ct(tmp_path)
    (tmp_path / "report.pdf").write_bytes(b"%PDF")
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "003.dcm").read_bytes())
    plan = pydicom.dcmread(tmp_path / "000.dcm")
    plan.SOPClassUID, plan.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.5", generate_uid()
    plan.save_as(tmp_path / "plan.dcm")
    assert find(tmp_path).ignored == 3
    assert read(tmp_path).image.shape == (1, 5, 24, 31)


def test_series_without_patient_id_is_refused_unless_the_path_names_the_patient(tmp_path: Path) -> None:
    write_ct(tmp_path / "case-7", patient="")
    assert_refused(tmp_path, ErrorCode.UNSUPPORTED)
    assert read(tmp_path, patient_pattern=r"^(case-\d+)/").patient == "case-7"


def test_projection_is_a_study_of_its_own_with_one_slice(tmp_path: Path) -> None:
    views = ct_slices(stored()[:2], intercept=0)
    for ds in views:
        ds.SOPClassUID, ds.Modality, ds.ImagerPixelSpacing = "1.2.840.10008.5.1.4.1.1.1.1", "DX", ds.PixelSpacing
        del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing, ds.FrameOfReferenceUID
    save(tmp_path, views)
    studies = [read_image(reference) for reference in sources.find_images(tmp_path)]
    assert [study.image.shape for study in studies] == [(1, 1, 12, 17)] * 2
    assert studies[0].affine is None
    assert studies[0].spacing_mm == pytest.approx((1.0, 0.8, 0.7))


def test_repr_names_neither_patient_nor_file(tmp_path: Path) -> None:
    write_ct(tmp_path, patient="SECRET")
    (reference,) = find(tmp_path).references
    for text in (repr(reference), repr(sources.read(reference, Vocabulary.of_run(LESION, reference.label_map)))):
        assert "SECRET" not in text
        assert tmp_path.name not in text


def test_label_of_a_series_that_is_not_there_is_ignored_and_counted(tmp_path: Path) -> None:
    write_ct(tmp_path)
    save(tmp_path, [segmentation(ct_slices(stored()), {"lesion": box()})], "lonely{}.dcm")
    assert find(tmp_path).ignored == 1


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("BurnedInAnnotation", "YES"), ("ConversionType", "WSD"), ("ImageType", ["DERIVED", "SECONDARY", "SCREEN SAVE"])],
)
def test_series_whose_pixels_may_name_the_patient_is_set_aside_until_a_person_looked(
    tmp_path: Path, keyword: str, value: Any
) -> None:
    slices = ct_slices(stored())
    setattr(slices[2], keyword, value)  # one slice is enough
    labelled(tmp_path, slices, {"lesion": box()})
    assert "pixel-text-checked" in assert_refused(tmp_path, ErrorCode.BURNED_IN)
    assert read(tmp_path, pixel_text_checked=True).label is not None


def test_series_that_says_it_carries_no_text_is_used(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    for one in slices:
        one.BurnedInAnnotation = "NO"
    labelled(tmp_path, slices, {"lesion": box()})
    assert read(tmp_path).label is not None
