"""What the stored values and the header's numbers mean: units, polarity, padding, and what is wrong in a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import UID

from client.data.prepare.preprocess import preprocess
from client.data.read import sources
from common.errors import DataError, ErrorCode
from tests.client.data.read.test_rtstruct import structure_set
from tests.client.data.studies import ct_slices, read_image, run_config, save

SHAPE = (4, 20, 24)
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def stored(low: int = 0, high: int = 3000) -> np.ndarray:
    return np.random.default_rng(3).integers(low, high, SHAPE)


def projections(values: np.ndarray, **options: Any) -> list[Dataset]:
    views = ct_slices(values, **options)
    for ds in views:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID(DX)
        ds.Modality, ds.PhotometricInterpretation = "DX", "MONOCHROME1"
        del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.FrameOfReferenceUID
    return views


def with_lut(slices: list[Dataset], table: np.ndarray, first: int) -> list[Dataset]:
    for ds in slices:
        lut = Dataset()
        lut.LUTDescriptor, lut.ModalityLUTType = [len(table), first, 16], "US"
        lut.add_new("LUTData", "OW", table.astype("<u2").tobytes())
        ds.ModalityLUTSequence = [lut]
        del ds.RescaleSlope, ds.RescaleIntercept
    return slices


def image_of(folder: Path, slices: list[Dataset]) -> np.ndarray:
    """(Z, Y, X), or of a projection (1, Y, X)."""
    save(folder, slices)
    image: np.ndarray = read_image(folder / "000.dcm" if slices[0].Modality == "DX" else folder).image[0]
    return image


def oracle(slices: list[Dataset]) -> np.ndarray:
    """As pydicom turns stored values into units."""
    return np.stack([apply_modality_lut(ds.pixel_array, ds) for ds in slices])


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as error:
        read_image(folder)
    return error.value


@pytest.mark.parametrize(("signed", "low"), [(False, 0), (True, -1024)])
def test_monochrome1_changes_no_hounsfield_unit(tmp_path: Path, signed: bool, low: int) -> None:
    slices = ct_slices(stored(low), signed=signed, intercept=0 if signed else -1024)
    for ds in slices:
        ds.PhotometricInterpretation = "MONOCHROME1"
    assert (image_of(tmp_path, slices) == oracle(slices)).all()


def test_monochrome1_of_an_mr_is_not_turned(tmp_path: Path) -> None:
    slices = ct_slices(stored(), intercept=0)
    for ds in slices:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4")
        ds.Modality, ds.PhotometricInterpretation = "MR", "MONOCHROME1"
    assert (image_of(tmp_path, slices) == stored()).all()


def test_modality_lut_of_a_monochrome1_ct_sees_the_stored_values(tmp_path: Path) -> None:
    table = np.sort(np.random.default_rng(8).integers(0, 60000, 60))
    slices = with_lut(ct_slices(stored(high=50)), table, 5)
    for ds in slices:
        ds.PhotometricInterpretation = "MONOCHROME1"
    assert (image_of(tmp_path, slices) == oracle(slices)).all()


@pytest.mark.parametrize(("signed", "low", "bits"), [(False, 0, 12), (True, -1000, 16)])
def test_monochrome1_projection_is_turned_after_rescaling(tmp_path: Path, signed: bool, low: int, bits: int) -> None:
    views = projections(stored(low), signed=signed, slope=2.0, intercept=7)
    for ds in views:
        ds.BitsStored, ds.HighBit = bits, bits - 1
    ends = np.array([-(2**15), 2**15 - 1]) if signed else np.array([0, 4095])
    assert (image_of(tmp_path, views) == (ends * 2 + 7).sum() - oracle(views)[0]).all()


def test_monochrome1_projection_is_turned_after_its_modality_lut(tmp_path: Path) -> None:
    table = np.random.default_rng(8).integers(0, 60000, 60)
    views = with_lut(projections(stored(high=50)), table, 5)
    assert (image_of(tmp_path, views) == 65535 - oracle(views)[0].astype(np.int64)).all()


# Padding


def padded(values: np.ndarray, padding: int, vr: str = "SS", **options: Any) -> list[Dataset]:
    """The corner of every slice lies outside of the field of view."""
    values = values.copy()
    values[:, :5, :6] = padding
    slices = ct_slices(values, **options)
    for ds in slices:
        ds.add_new("PixelPaddingValue", vr, padding)
    return slices


@pytest.mark.parametrize(
    ("padding", "options"),
    [
        (-2000, {"signed": True, "vr": "SS"}),
        (63536, {"signed": False, "vr": "US"}),
        (0, {"signed": False, "vr": "US"}),
    ],
)
def test_padding_of_a_ct_is_air(tmp_path: Path, padding: int, options: dict[str, Any]) -> None:
    values = stored(low=1)
    expected = values - 1024.0
    expected[:, :5, :6] = -1000
    assert (image_of(tmp_path, padded(values, padding, **options)) == expected).all()


def test_padding_whose_sign_is_not_that_of_the_pixels_is_known_by_its_bits(tmp_path: Path) -> None:
    slices = padded(stored(), -2000, signed=True)
    for ds in slices:
        ds.save_as(tmp_path / f"{slices.index(ds)}.dcm", enforce_file_format=True)
    for path in tmp_path.iterdir():  # written as unsigned: the same two bytes, which explicit VR calls US
        path.write_bytes(path.read_bytes().replace(b"\x28\x00\x20\x01SS", b"\x28\x00\x20\x01US"))
    assert pydicom.dcmread(path).PixelPaddingValue in (63536, -2000)
    assert (read_image(tmp_path).image[0, :, :5, :6] == -1000).all()


def test_padding_may_be_a_range(tmp_path: Path) -> None:
    values = stored(low=100)
    values[:, :5, :6] = np.arange(30).reshape(5, 6) % 7 + 3
    slices = ct_slices(values)
    for ds in slices:
        ds.add_new("PixelPaddingValue", "US", 3)
        ds.add_new("PixelPaddingRangeLimit", "US", 9)
    image = image_of(tmp_path, slices)
    assert (image[:, :5, :6] == -1000).all()
    assert (image[:, 5:] == values[:, 5:] - 1024).all()


def test_padding_of_an_mr_is_the_darkest_that_was_measured(tmp_path: Path) -> None:
    slices = padded(stored(low=40), 0, vr="US", intercept=0)
    for ds in slices:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4")
        ds.Modality = "MR"
    image = image_of(tmp_path, slices)
    assert set(image[:, :5, :6].ravel()) == {image[:, 5:].min()}


def test_image_of_padding_alone_shows_nothing(tmp_path: Path) -> None:
    values = stored()
    values[:] = 77
    slices = ct_slices(values)
    for ds in slices:
        ds.add_new("PixelPaddingValue", "US", 77)
    save(tmp_path, slices)
    assert refusal(tmp_path).code is ErrorCode.IMPLAUSIBLE


@pytest.mark.parametrize("intensity", ["percentile", "zscore"])
def test_tissue_is_alike_whether_a_scanner_pads_or_not(tmp_path: Path, intensity: str) -> None:
    """One body in air at two scanners; one of them writes -2000 outside of its round field of view."""
    y, x = np.mgrid[:64, :64]
    away = np.hypot(y - 31.5, x - 31.5)
    noise = np.random.default_rng(0).integers(-8, 8, (4, 64, 64))
    body = np.where(away < 24, 1064, 24) + noise
    plain, round_view = body, np.where(away < 32, body, -2000)
    tissue = []
    for name, values in (("plain", plain), ("padded", round_view)):
        slices = ct_slices(values, signed=True)
        for ds in slices:
            if name == "padded":
                ds.add_new("PixelPaddingValue", "SS", -2000)
        save(tmp_path / name, slices)
        image, *_ = preprocess(read_image(tmp_path / name), run_config(preprocessing={"intensity": intensity}))
        tissue.append(image[0][:, away < 20])
    spread = float(tissue[0].std())
    assert abs(float(tissue[0].mean() - tissue[1].mean())) < spread / 2
    assert torch.corrcoef(torch.stack([one.flatten() for one in tissue]))[0, 1] > 0.999


# Units


@pytest.mark.parametrize("missing", ["RescaleSlope", "RescaleIntercept"])
def test_half_a_rescaling_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    slices = ct_slices(stored())
    for ds in slices:
        setattr(ds, missing, None)
    save(tmp_path, slices)
    error = refusal(tmp_path)
    assert error.code is ErrorCode.IMPLAUSIBLE
    assert str(error).startswith("Rescale " + missing.removeprefix("Rescale"))


def test_series_of_which_some_slices_are_not_rescaled_is_refused(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    del slices[1].RescaleSlope, slices[1].RescaleIntercept
    save(tmp_path, slices)
    error = refusal(tmp_path)
    assert (error.code, "1 of 4 slices" in str(error)) == (ErrorCode.IMPLAUSIBLE, True)


def test_ct_whose_values_are_no_hounsfield_units_is_refused(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    for ds in slices:
        ds.RescaleType = "Z_EFF"
    save(tmp_path, slices)
    error = refusal(tmp_path)
    assert (error.code, "Z_EFF, not HU" in str(error)) == (ErrorCode.UNSUPPORTED, True)
    for ds in slices:
        ds.RescaleType = "HU"
    assert (image_of(tmp_path, slices) == stored() - 1024.0).all()


# What is wrong in a file


def test_decimal_commas_are_named_with_their_attribute(tmp_path: Path) -> None:
    save(tmp_path, ct_slices(stored()))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"-10.0\\5.0\\", b"-10,0\\5,0\\"))
    assert "Image Position (Patient) (0020,0032)" in str(refusal(tmp_path))
    assert "decimal commas" in str(refusal(tmp_path))


def test_decimal_commas_in_contours_are_named_with_their_attribute(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    ds = structure_set(slices, {"lesion": [(1, [(2, 2), (2, 9), (9, 9)])]})
    save(tmp_path, [*slices, ds])
    path = tmp_path / "004.dcm"
    path.write_bytes(path.read_bytes().replace(b".000000\\", b",000000\\"))
    from client.data.study.labels import Vocabulary  # noqa: PLC0415
    from tests.client.data.studies import source  # noqa: PLC0415

    (reference,) = sources.find(source(path="."), tmp_path).references
    with pytest.raises(DataError, match=r"Contour Data \(3006,0050\).*decimal point"):
        sources.read(reference, Vocabulary())


def test_missing_transfer_syntax_is_named(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    for ds in slices:
        ds.save_as(tmp_path / f"{slices.index(ds)}.dcm", enforce_file_format=True)
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        start = raw.index(b"\x02\x00\x10\x00UI")
        size = 8 + int.from_bytes(raw[start + 6 : start + 8], "little")
        length = int.from_bytes(raw[140:144], "little") - size
        path.write_bytes(raw[:140] + length.to_bytes(4, "little") + raw[144:start] + raw[start + size :])
    error = refusal(tmp_path)
    assert error.code is ErrorCode.UNREADABLE
    assert "Transfer Syntax UID (0002,0010) is missing" in str(error)


def test_file_that_was_cut_off_says_how_much_of_it_is_there(tmp_path: Path) -> None:
    save(tmp_path, ct_slices(stored()))
    path = tmp_path / "003.dcm"
    path.write_bytes(path.read_bytes()[:-500])
    assert "460 of 960 bytes are there" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    ("keyword", "told"),
    [
        ("BitsStored", "Bits Stored (0028,0101)"),
        ("PhotometricInterpretation", "Photometric Interpretation (0028,0004)"),
        ("PixelRepresentation", "Pixel Representation (0028,0103)"),
        ("ImagePositionPatient", "Image Position (Patient) (0020,0032) in 1"),
        ("PixelSpacing", "Pixel Spacing (0028,0030) in 1"),
    ],
)
def test_what_is_missing_in_a_header_is_named(tmp_path: Path, keyword: str, told: str) -> None:
    slices = ct_slices(stored())
    delattr(slices[2], keyword)
    save(tmp_path, slices)
    assert told in str(refusal(tmp_path))


def test_too_few_numbers_are_named_with_their_attribute(tmp_path: Path) -> None:
    slices = ct_slices(stored())
    slices[2].ImagePositionPatient = [1.0, 2.0]
    save(tmp_path, slices)
    assert "Image Position (Patient) (0020,0032) has 2 numbers" in str(refusal(tmp_path))
