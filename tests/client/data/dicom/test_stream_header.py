"""Headers as encoders write them, and as damage leaves them; each kind of damage here once ended the process."""

import io
import struct

import jpeg_ls
import numpy as np
import openjpeg
import pytest
from PIL import Image

from client.data.dicom.stream_header import stream_header
from tests.client.data.dicom.test_pixels import lossless_jpeg

VALUES = np.random.default_rng(1).integers(0, 256, (33, 47), np.uint8)
LOSSLESS = lossless_jpeg(VALUES, 8)
FRAME, TABLE, SCAN = (LOSSLESS.index(marker) for marker in (b"\xff\xc3", b"\xff\xc4", b"\xff\xda"))


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.stack([VALUES] * 3, axis=-1)).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"subsampling": 0}, {"comment": "c"}]
)
def test_size_of_jpeg(options: dict[str, object]) -> None:
    assert stream_header(jpeg(**options)) == (33, 47, 3)


def test_size_of_lossless_jpeg_and_jpeg_ls_and_jpeg_2000() -> None:
    assert stream_header(LOSSLESS) == (33, 47, 1)
    shape = {"rows": 33, "columns": 47, "samples_per_pixel": 1, "bits_stored": 8, "planar_configuration": 0}
    assert stream_header(bytes(jpeg_ls.encode_pixel_data(VALUES.tobytes(), **shape))) == (33, 47, 1)
    stream = openjpeg.utils.encode_array(VALUES, bits_stored=8, photometric_interpretation=2)
    assert stream_header(bytes(stream)) == (33, 47, 1)


def test_bytes_that_fill_up_before_a_marker_do_no_harm() -> None:
    assert stream_header(LOSSLESS[:TABLE] + b"\xff\xff" + LOSSLESS[TABLE:]) == (33, 47, 1)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (TABLE, 0xA6),  # a marker that is none
        (TABLE + 1, 0x01),  # a marker that has no place here
        (TABLE + 4, 0x07),  # a table that cannot be
        (TABLE + 4, 0x01),  # a table that is not the one used
        (TABLE + 5, 0x03),  # more codes than values
        (TABLE + 21, 0x40),  # a value of 64 bits
        (FRAME + 4, 0xEF),  # values of 239 bits
        (FRAME + 9, 0x02),  # two components, one described
        (FRAME + 11, 0x00),  # a component that is never sampled
        (SCAN + 4, 0x02),  # two components, one named
        (SCAN + 5, 0x09),  # a component that there is not
        (SCAN + 7, 0x3C),  # no such predictor
    ],
)
def test_one_byte_out_of_place_is_a_corrupt_header(at: int, value: int) -> None:
    damaged = bytearray(LOSSLESS)
    damaged[at] = value
    with pytest.raises(ValueError, match="stream"):
        stream_header(bytes(damaged))


def test_more_codes_of_a_length_than_there_can_be_are_a_corrupt_header() -> None:
    damaged = bytearray(LOSSLESS)
    damaged[TABLE + 5], damaged[TABLE + 9] = damaged[TABLE + 9], 0  # 17 codes of one bit
    with pytest.raises(ValueError, match="stream"):
        stream_header(bytes(damaged))


def test_jfif_of_a_version_that_there_is_not_is_a_corrupt_header() -> None:
    damaged = bytearray(jpeg())
    damaged[damaged.index(b"JFIF\0") + 5] = 211
    with pytest.raises(ValueError, match="stream"):
        stream_header(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, FRAME + 8, TABLE + 10, SCAN + 5])
def test_a_header_cut_short_is_corrupt(length: int) -> None:
    with pytest.raises(ValueError, match="stream"):
        stream_header(LOSSLESS[:length])


@pytest.mark.parametrize("stream", [b"GIF89a" + bytes(50), b"\xff\x4f\xff\x51" + struct.pack(">2H", 41, 0)])
def test_what_is_no_such_stream_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match="stream"):
        stream_header(stream)
