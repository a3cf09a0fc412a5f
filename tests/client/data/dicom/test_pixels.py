"""Streams of known content: written here by encoders, or by hand where there is none, and decoded by the code."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import jpeg_ls
import numpy as np
import openjpeg
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from client.data.dicom.pixels import decoded, palette_colours
from client.data.study.study import MOST_VALUES, parsing, quiet
from common.errors import DataError, ErrorCode

DATA = Path(os.environ["WARDROUND_DATA"]) / "dicom_conformance" if "WARDROUND_DATA" in os.environ else None
needs_data = pytest.mark.skipif(DATA is None, reason="WARDROUND_DATA is not set")

# Files that hold the same image. The first of each is not compressed.
LOSSLESS = [
    ("693_UNCR", "693_J2KR"),
    ("US1_UNCR", "US1_J2KR"),
    ("US1_UNCI", "US1_J2KI"),  # the lossy image, as it was before and after being stored
    ("SC_rgb", "SC_rgb_expb", "SC_rgb_gdcm2k_uncompressed"),
    ("SC_rgb_16bit", "SC_rgb_expb_16bit"),
    ("SC_rgb_16bit_2frame", "SC_rgb_expb_16bit_2frame"),
    ("SC_rgb_32bit", "SC_rgb_expb_32bit"),
    ("SC_rgb_32bit_2frame", "SC_rgb_expb_32bit_2frame"),
    ("SC_rgb_2frame", "SC_rgb_expb_2frame"),
    ("SC_rgb_dcmtk_ebcys4_dcmd", "SC_ybr_full_uncompressed"),
    ("JLSL_RGB_ILV0", "JLSL_RGB_ILV1", "JLSL_RGB_ILV2"),
    ("OBXXXX1A", "OBXXXX1A_expb", "OBXXXX1A_rle"),
    ("OBXXXX1A_2frame", "OBXXXX1A_expb_2frame", "OBXXXX1A_rle_2frame"),
    ("gdcm-US-ALOKA-16", "gdcm-US-ALOKA-16_big"),
    ("color-px", "color-pl"),
    (
        "emri_small",
        "emri_small_big_endian",
        "emri_small_RLE",
        "emri_small_jpeg_2k_lossless",
        "emri_small_jpeg_ls_lossless",
    ),
    ("liver", "liver_expb", "liver_deflate", "liver_rle", "liver_j2k"),
    (
        "liver_nonbyte_aligned",
        "liver_nonbyte_aligned_deflate",
        "liver_nonbyte_aligned_rle",
        "liver_nonbyte_aligned_j2k",
    ),
]


def dataset(
    syntax: str,
    values: np.ndarray,
    frames: list[bytes] | bytes,
    *,
    stored: int = 0,
    colours: str = "",
    **changes: Any,
) -> Dataset:
    """An object that says it holds `values`, (Y, X) or (Y, X, 3), encoded as `frames`."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.Rows, ds.Columns = values.shape[:2]
    ds.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    ds.PhotometricInterpretation = colours or ("RGB" if values.ndim == 3 else "MONOCHROME2")
    ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * values.dtype.itemsize
    ds.BitsStored = stored or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    ds.add_new("PixelData", "OB", frames if isinstance(frames, bytes) else encapsulate(frames))
    if not isinstance(frames, bytes) and len(frames) > 1:
        ds.NumberOfFrames = len(frames)
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def noise(bits: int, *, signed: bool = False, shape: tuple[int, ...] = (33, 47)) -> np.ndarray:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    width = 8 if bits <= 8 else 16 if bits <= 16 else 32
    return np.random.default_rng(bits).integers(low, high, shape).astype(f"{'int' if signed else 'uint'}{width}")


def values_of(ds: Dataset) -> np.ndarray:
    with quiet():
        return decoded(ds)


def assert_refused(ds: Dataset, code: ErrorCode) -> str:
    with pytest.raises(DataError) as error, parsing("image"), quiet():
        decoded(ds)
    assert error.value.code is code
    return str(error.value)


def jpeg_2000(values: np.ndarray, bits: int) -> bytes:
    colour = 1 if values.ndim == 3 else 2
    return bytes(openjpeg.utils.encode_array(values, bits_stored=bits, photometric_interpretation=colour, use_mct=True))


def jpeg(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", **options)
    return file.getvalue()


def lossless_jpeg(values: np.ndarray, bits: int) -> bytes:
    """ITU-T T.81 annex H by hand: each value less its left neighbour, in categories of 5 bits each."""
    rows, columns = values.shape
    wide = values.astype(np.int64) & (2**bits - 1)
    before = np.empty_like(wide)
    before[:, 1:], before[1:, 0], before[0, 0] = wide[:, :-1], wide[:-1, 0], 2 ** (bits - 1)
    code = ""
    for difference in ((wide - before + 2**15) % 2**16 - 2**15).ravel().tolist():
        size = abs(difference).bit_length()
        code += f"{size:05b}"
        if 0 < size < 16:
            code += f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}"
    code += "1" * (-len(code) % 8)
    stream = int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\x00")
    sizes = bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    return b"".join(
        [
            b"\xff\xd8",
            b"\xff\xc3" + struct.pack(">HBHHB3B", 11, bits, rows, columns, 1, 1, 0x11, 0),
            b"\xff\xc4" + struct.pack(">HB", 3 + len(sizes), 0) + sizes,
            b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0),
            stream,
            b"\xff\xd9",
        ]
    )


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [5, 7, 8, 12, 13, 16])
def test_jpeg_2000_gives_the_values_that_were_encoded(bits: int, signed: bool) -> None:
    values = noise(bits, signed=signed)
    ds = dataset(uid.JPEG2000Lossless, values, [jpeg_2000(values, bits)], stored=bits)
    assert (values_of(ds)[0] == values).all()


@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_2000_with_24_bits_gives_the_values_that_were_encoded(signed: bool) -> None:
    values = noise(24, signed=signed)
    ds = dataset(uid.JPEG2000Lossless, values, [jpeg_2000(values, 24)], stored=24)
    assert (values_of(ds)[0] == values).all()


def test_jpeg_2000_whose_sign_is_not_the_headers_gives_the_values_that_were_meant() -> None:
    negative = noise(12, signed=True)
    unsigned_stream = jpeg_2000((negative & 0xFFF).astype(np.uint16), 12)
    assert (values_of(dataset(uid.JPEG2000Lossless, negative, [unsigned_stream], stored=12))[0] == negative).all()
    positive = noise(12)
    signed_stream = jpeg_2000(positive.astype(np.int16), 13)
    assert (values_of(dataset(uid.JPEG2000Lossless, positive, [signed_stream], stored=12))[0] == positive).all()


def test_jpeg_2000_in_colour_gives_red_green_and_blue() -> None:
    for bits, said in ((8, "YBR_RCT"), (8, "RGB"), (16, "YBR_RCT")):
        values = noise(bits, shape=(33, 47, 3))
        ds = dataset(uid.JPEG2000Lossless, values, [jpeg_2000(values, bits)], colours=said)
        assert (values_of(ds)[0] == values).all()


@pytest.mark.parametrize(("bits", "signed"), [(6, False), (7, True), (8, False), (12, True), (12, False), (16, True)])
def test_jpeg_ls_gives_the_values_that_were_encoded(bits: int, signed: bool) -> None:
    values = noise(bits, signed=signed)
    plain = (values.astype(np.int64) & (2**bits - 1)).astype(f"uint{8 * values.dtype.itemsize}")
    stream = jpeg_ls.encode_pixel_data(
        plain.tobytes(), rows=33, columns=47, samples_per_pixel=1, bits_stored=bits, planar_configuration=0
    )
    assert (values_of(dataset(uid.JPEGLSLossless, values, [bytes(stream)], stored=bits))[0] == values).all()


@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (16, True)])
def test_lossless_jpeg_gives_the_values_that_were_encoded(syntax: str, bits: int, signed: bool) -> None:
    values = noise(bits, signed=signed)
    assert (values_of(dataset(syntax, values, [lossless_jpeg(values, bits)], stored=bits))[0] == values).all()


@pytest.mark.parametrize("said", ["RGB", "YBR_FULL_422", "YBR_FULL"])
def test_jpeg_in_colour_is_what_other_programs_show(said: str) -> None:
    ramp = np.indices((40, 64, 3)).sum(0).astype(np.uint8) * 2
    stream = jpeg(ramp, quality=95)
    shown = np.asarray(Image.open(io.BytesIO(stream)))
    assert (values_of(dataset(uid.JPEGBaseline8Bit, ramp, [stream], colours=said))[0] == shown).all()


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit])
def test_grey_jpeg_is_what_other_programs_show(syntax: str) -> None:
    ramp = np.indices((40, 64)).sum(0).astype(np.uint8) * 2
    stream = jpeg(ramp, quality=90)
    shown = np.asarray(Image.open(io.BytesIO(stream)))
    assert (values_of(dataset(syntax, ramp, [stream]))[0] == shown).all()


@pytest.mark.parametrize("shape", [(16, 16), (5, 7)])
@pytest.mark.parametrize("coded", ["rle", "deflated"])
def test_one_bit_frames_that_are_compressed_one_by_one_are_unpacked(coded: str, shape: tuple[int, int]) -> None:
    masks = np.random.default_rng(3).random((3, *shape)) < 0.4
    packed = [np.packbits(mask.ravel(), bitorder="little").tobytes() for mask in masks]
    if coded == "rle":
        # One segment each: a single run of up to 128 literal bytes.
        streams = [struct.pack("<16L", 1, 64, *[0] * 14) + bytes([len(plane) - 1]) + plane for plane in packed]
        syntax = uid.RLELossless
    else:
        streams, syntax = [zlib.compress(plane, wbits=-15) for plane in packed], uid.UID("1.2.840.10008.1.2.8.1")
    streams = [stream + b"\0" * (len(stream) % 2) for stream in streams]
    ds = dataset(syntax, masks[0].astype(np.uint8), streams, BitsAllocated=1, BitsStored=1, HighBit=0)
    assert (values_of(ds) == masks).all()


def test_deflated_frames_of_more_bits_are_read() -> None:
    values = noise(12)
    streams = [zlib.compress(plane.tobytes(), wbits=-15) for plane in (values, values[::-1])]
    ds = dataset("1.2.840.10008.1.2.8.1", values, streams, stored=12)
    assert (values_of(ds) == [values, values[::-1]]).all()


def test_a_deflated_frame_is_not_inflated_beyond_its_size() -> None:
    values = noise(8)
    bomb = zlib.compress(bytes(10**7), wbits=-15)
    assert_refused(dataset("1.2.840.10008.1.2.8.1", values, [bomb]), ErrorCode.UNREADABLE)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_frames_beyond_their_number_are_left_out(syntax: uid.UID) -> None:
    values = noise(16).astype("<u2" if syntax.is_little_endian else ">u2")
    ds = dataset(syntax, values, values.tobytes() * 2)
    assert values_of(ds).shape == (1, 33, 47)
    assert (values_of(ds)[0] == values).all()


def test_fewer_pixels_than_the_header_says_are_unreadable() -> None:
    values = noise(16)
    assert_refused(dataset(uid.ExplicitVRLittleEndian, values, values.tobytes()[:-2]), ErrorCode.UNREADABLE)
    stream = jpeg_2000(values, 16)
    assert_refused(dataset(uid.JPEG2000Lossless, values, [stream], NumberOfFrames=2), ErrorCode.UNREADABLE)


def test_more_than_any_study_needs_is_refused_before_anything_is_decoded() -> None:
    ds = dataset(uid.JPEG2000Lossless, noise(16), [b"no stream at all"], Rows=65535, Columns=65535)
    assert f"{MOST_VALUES:,}" in assert_refused(ds, ErrorCode.OUT_OF_MEMORY)


@pytest.mark.parametrize("encode", [jpeg_2000, lossless_jpeg, lambda values, _: jpeg(values)])
def test_a_stream_of_another_size_than_the_header_is_unreadable(encode: Any) -> None:
    # As many pixels in other rows: nothing but the stream's own size gives it away.
    values = noise(8)
    syntax = {jpeg_2000: uid.JPEG2000Lossless, lossless_jpeg: uid.JPEGLossless}.get(encode, uid.JPEGBaseline8Bit)
    ds = dataset(syntax, values, [encode(values, 8)])
    assert values_of(ds).shape == (1, 33, 47)
    ds.Rows, ds.Columns = 47, 33
    assert_refused(ds, ErrorCode.UNREADABLE)


@pytest.mark.parametrize(
    ("syntax", "changes", "named"),
    [
        (uid.MPEG2MPML, {}, "MPEG2"),
        (uid.JPEGExtended12Bit, {"BitsStored": 12, "HighBit": 11, "BitsAllocated": 16}, "JPEG Extended"),
        ("1.2.3.4", {}, "unknown"),
        (uid.ExplicitVRLittleEndian, {"HighBit": 15, "BitsStored": 12}, "12 of 16"),
        (uid.ExplicitVRLittleEndian, {"BitsAllocated": 64}, "64"),
        (uid.ExplicitVRLittleEndian, {"SamplesPerPixel": 4}, "4 samples"),
        (uid.ExplicitVRLittleEndian, {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL"}, "YBR"),
        (uid.ExplicitVRLittleEndian, {"PhotometricInterpretation": "HSV"}, "colours"),
    ],
)
def test_what_no_decoder_reads_is_refused_by_name(syntax: str, changes: dict[str, Any], named: str) -> None:
    values = noise(16)
    assert named in assert_refused(dataset(syntax, values, values.tobytes(), **changes), ErrorCode.UNSUPPORTED)


def test_an_object_without_pixels_is_unreadable() -> None:
    ds = dataset(uid.ExplicitVRLittleEndian, noise(8), b"")
    del ds.PixelData
    assert_refused(ds, ErrorCode.UNREADABLE)


def with_palette(ds: Dataset, table: np.ndarray, data: bytes, first: int = 0, bits: int = 16) -> Dataset:
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [len(table), first, bits])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", data)
    ds.PhotometricInterpretation = "PALETTE COLOR"
    return ds


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_palette_is_read_in_the_byte_order_of_the_file(order: str, packed: bool) -> None:
    values, table = noise(6), np.random.default_rng(1).integers(0, 256, 40)
    data = table.astype(f"{order}u2").tobytes()
    if packed:  # two entries to a word
        data = table.astype(np.uint8).view("<u2").astype(f"{order}u2").tobytes()
    syntax = uid.ExplicitVRLittleEndian if order == "<" else uid.ExplicitVRBigEndian
    ds = with_palette(dataset(syntax, values, values.tobytes(), stored=8), table, data, first=3, bits=8)
    expected = [[table[min(max(value - 3, 0), 39)] for value in row] for row in values.tolist()]
    assert (palette_colours(values_of(ds), ds)[0] == np.array(expected)[..., None]).all()


def test_palette_of_16_bits_gives_the_upper_8() -> None:
    values, table = noise(8), np.arange(256) * 257
    ds = dataset(uid.ExplicitVRLittleEndian, values, values.tobytes())
    colours = palette_colours(values_of(ds), with_palette(ds, table, table.astype("<u2").tobytes()))
    assert (colours == values[None, ..., None]).all()


def test_palette_shorter_than_it_says_is_unreadable() -> None:
    values = noise(8)
    ds = with_palette(dataset(uid.ExplicitVRLittleEndian, values, values.tobytes()), np.zeros(256), bytes(100))
    with pytest.raises(DataError):
        palette_colours(values_of(ds), ds)


def load(name: str) -> Dataset:
    assert DATA is not None
    return pydicom.dcmread(DATA / f"{name}.dcm", force=True)


def shown(name: str) -> np.ndarray:
    ds = load(name)
    values = values_of(ds)
    return palette_colours(values, ds) if ds.PhotometricInterpretation == "PALETTE COLOR" else values


@needs_data
@pytest.mark.parametrize("names", LOSSLESS, ids=lambda names: names[0])
def test_files_that_hold_one_image_give_one_image(names: tuple[str, ...]) -> None:
    first = shown(names[0])
    assert first.max() > first.min()
    for name in names[1:]:
        assert np.array_equal(first, shown(name)), name


@needs_data
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("693_J2KR", "gdcm"),
        ("explicit_VR-UN", "gdcm"),
        ("MR2_J2KI", "gdcm"),
        ("MR2_J2KR", "pillow"),
        ("RG1_J2KI", "gdcm"),
        ("RG3_J2KI", "pillow"),
        ("RG3_J2KR", "gdcm"),
        ("US1_J2KI", "pillow"),
        ("JLSL_16_15_1_1F", "gdcm"),
        ("JLSL_RGB_ILV1", "gdcm"),
        ("JLSN_RGB_ILV0", "gdcm"),
    ],
)
def test_real_files_decode_as_with_another_decoder(name: str, other: str) -> None:
    ds = load(name)
    with quiet():
        expected, _ = get_decoder(ds.file_meta.TransferSyntaxUID).as_array(ds, raw=False, decoding_plugin=other)
    assert np.array_equal(shown(name)[0], expected)


@needs_data
def test_the_lossy_htj2k_image_is_near_the_lossless_one() -> None:
    lossless, lossy = (shown(name).astype(int) for name in ("HTJ2KLossless_08_RGB", "HTJ2K_08_RGB"))
    assert 0 < np.abs(lossless - lossy).mean() < 2
