"""Pixel data of a DICOM object as numbers, from every transfer syntax that an installed decoder reads.

One decoder for each transfer syntax, chosen by comparing pydicom's plug-ins on streams of known content (signed and
unsigned, 5 to 24 bits, colour, cut short). No second one tries what the first refused: they differ in what they
forgive.

    pylibjpeg (OpenJPEG)  JPEG 2000 and HTJ2K. Right for all; Pillow misreads a stream whose sign is not the header's,
                          and knows neither more than 16 bits nor colour of more than 8
    pyjpegls (CharLS)     JPEG-LS. GDCM does not read 6 and 7 bits
    Pillow (libjpeg)      JPEG with 8 bits, baseline or extended: the same values as GDCM
    GDCM                  lossless JPEG: the only one
    pydicom itself        RLE, and all that is not compressed

A header can promise more than any memory holds, and a compressed frame more than its header; both are asked before
anything is decoded.
Source: DICOM PS3.5 chapter 8 and annexes A and G; PS3.3 C.7.6.3 (image pixel), C.7.9 (palette).
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut

from client.data.dicom.stream_header import stream_header
from client.data.dicom.values import check_present, number_of
from client.data.study.study import MOST_VALUES
from common.errors import DataError, ErrorCode

_COLOURS = ("Red", "Green", "Blue")

# What `decoded` and `palette_colours` look at; for `dcmread(specific_tags=...)`.
PIXEL_TAGS = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
]

# What the pixels cannot be understood without; `_announced` asks for them by name.
NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
_DEFLATED_FRAMES = uid.UID("1.2.840.10008.1.2.8.1")  # newer than pydicom 3.0
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
_PLUGINS: dict[str, str] = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pydicom",
}
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")


def decoded(ds: Dataset) -> NDArray[Any]:
    """The stored values of an image or a segmentation; colour becomes red, green, blue, but palettes stay numbers.

    Returns:
        (F, Y, X) or (F, Y, X, 3) integers; F is 1 for a single frame. Unused bits, where overlays once were, are
        cleared. One-bit values are 0 and 1.

    Raises:
        DataError: UNSUPPORTED, no decoder reads it; OUT_OF_MEMORY, it holds more than any study needs; UNREADABLE, the
            pixels are not what the header says. What a decoder raises on a corrupt stream is left to `parsing`.
    """
    shape = _announced(ds)
    syntax = _readable_syntax(ds)
    options: Any = {"allow_excess_frames": False}
    if syntax == _DEFLATED_FRAMES:
        values = _inflated(ds, shape)
    elif syntax == uid.RLELossless and ds.BitsAllocated == 1:
        options |= {"rows": 1, "columns": (shape[1] * shape[2] + 7) // 8, "bits_allocated": 8, "bits_stored": 8}
        packed, _ = get_decoder(syntax).as_array(ds, raw=True, **options)
        values = _unpacked(packed, shape)
    else:
        if syntax in _PLUGINS and syntax != uid.RLELossless:
            _check_streams(ds, shape)
        elif syntax in _NATIVE:
            _check_length(ds, shape)
        values, made = get_decoder(syntax).as_array(ds, raw=False, decoding_plugin=_PLUGINS.get(syntax, ""), **options)
        if made["photometric_interpretation"] not in (_GREY if shape[3] == 1 else ("RGB",)):
            raise _unsupported("its colours have no rule that turns them into red, green and blue")
    return values.reshape(shape[: 3 if shape[3] == 1 else 4])


def palette_colours(values: NDArray[Any], ds: Dataset) -> NDArray[np.uint8]:
    """The colours of a palette image.

    Args:
        values: (F, Y, X) as decoded.
        ds: the object with its palette.

    Returns:
        (F, Y, X, 3), 0 to 255; of 16-bit palettes the upper 8 bits.
    """
    described, first, _ = ds.RedPaletteColorLookupTableDescriptor
    entries = int(described) or 2**16
    if "RedPaletteColorLookupTableData" in ds:
        table = np.stack([_palette(ds, colour, entries) for colour in _COLOURS], axis=-1)
    else:
        table = apply_color_lut(np.arange(first, first + entries), ds)[:, :3]
    # Some writers say 16 bits and put 8 in.
    table = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
    colours: NDArray[np.uint8] = table[np.clip(values.astype(np.int64) - first, 0, entries - 1)]
    return colours


def too_large(values: int) -> DataError:
    """The refusal of an image, or of a whole study, that would fill the memory."""
    return DataError(
        f"the study says that it has {values:,} values; expected at most {MOST_VALUES:,}. "
        "Export it again, or split it.",
        ErrorCode.OUT_OF_MEMORY,
    )


def _announced(ds: Dataset) -> tuple[int, int, int, int]:
    """Frames, rows, columns and samples, as the header says."""
    if "PixelData" not in ds:
        raise DataError("this DICOM object holds no pixels. Export it again.")
    check_present(ds, NEEDED)
    shape = (
        int(number_of(ds, "NumberOfFrames") or 1),
        int(ds.Rows),
        int(ds.Columns),
        int(ds.get("SamplesPerPixel") or 1),
    )
    if min(shape) < 1:
        raise DataError("the header says that the image has no pixels. Export it again.")
    values = shape[0] * shape[1] * shape[2] * shape[3]
    if values > MOST_VALUES:
        raise too_large(values)
    return shape


def _readable_syntax(ds: Dataset) -> uid.UID:
    """The transfer syntax, of an object whose pixels can be decoded."""
    if not ds.file_meta.get("TransferSyntaxUID"):
        raise DataError(
            "Transfer Syntax UID (0002,0010) is missing in the file meta information, so how the pixels are stored is "
            "not known. Export it again.",
            ErrorCode.UNREADABLE,
        )
    syntax = uid.UID(ds.file_meta.TransferSyntaxUID)
    name = syntax.name if syntax.name != syntax else "unknown to this program"
    allocated, stored, samples = int(ds.BitsAllocated), int(ds.BitsStored), int(ds.get("SamplesPerPixel") or 1)
    if syntax not in (*_NATIVE, *_PLUGINS, _DEFLATED_FRAMES):
        raise _unsupported(f"no decoder reads its transfer syntax ({name})")
    if syntax == uid.JPEGExtended12Bit and stored != 8:
        raise _unsupported(f"no decoder reads its transfer syntax ({name}) with {stored} bits")
    if allocated not in (1, 8, 16, 32) or int(ds.get("HighBit", stored - 1)) != stored - 1:
        raise _unsupported(f"its bits are laid out in a way that is not known ({stored} of {allocated})")
    if samples not in (1, 3):
        raise _unsupported(f"it has {samples} samples per pixel; expected 1 or 3")
    if str(ds.PhotometricInterpretation).startswith("YBR_FULL") and allocated != 8:
        raise _unsupported(f"it has colours of {allocated} bits in YBR; expected 8")
    return syntax


def _inflated(ds: Dataset, shape: tuple[int, int, int, int]) -> NDArray[Any]:
    """The values of Deflated Image Frame Compression: every frame is deflated on its own."""
    frames, rows, columns, samples = shape
    size = (rows * columns * samples * int(ds.BitsAllocated) + 7) // 8
    planes = []
    for stream in _streams(ds, frames):
        plane = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream, size + 1)
        if len(plane) != size:
            raise _contradiction()
        planes.append(plane)
    if ds.BitsAllocated == 1:
        return _unpacked(np.frombuffer(b"".join(planes), np.uint8).reshape(frames, size), shape)
    native = Dataset()
    native.update(ds)
    native.file_meta = type(ds.file_meta)(ds.file_meta)
    native.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    native.PixelData = b"".join(planes)
    return decoded(native)


def _unpacked(packed: NDArray[np.uint8], shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """One-bit frames (F, bytes), each padded to whole bytes, to 0 and 1 (F, Y * X)."""
    bits = np.unpackbits(packed.reshape(shape[0], -1), axis=1, bitorder="little")
    return np.ascontiguousarray(bits[:, : shape[1] * shape[2]])


def _check_streams(ds: Dataset, shape: tuple[int, int, int, int]) -> None:
    """Refuse a stream that announces another size than the header: decoders fill memory, or mix up rows, by it."""
    for stream in _streams(ds, shape[0]):
        if stream_header(stream) != shape[1:]:
            raise _contradiction()


def _check_length(ds: Dataset, shape: tuple[int, int, int, int]) -> None:
    """Refuse pixels that are fewer than the header says: the file was cut off, and its last rows are not there."""
    bits = shape[0] * shape[1] * shape[2] * shape[3] * int(ds.BitsAllocated)
    if ds.PhotometricInterpretation == "YBR_FULL_422":
        bits = bits * 2 // 3
    if len(ds.PixelData) < (bits + 7) // 8:
        raise DataError(
            f"the file ends before its pixels do: {len(ds.PixelData):,} of {(bits + 7) // 8:,} bytes are there. Copy "
            "or export it again.",
            ErrorCode.UNREADABLE,
        )


def _streams(ds: Dataset, frames: int) -> Iterator[bytes]:
    """The compressed frames, as many as there must be."""
    offsets = None
    if ds.get("ExtendedOffsetTable") and ds.get("ExtendedOffsetTableLengths"):
        offsets = ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths
    found = generate_frames(ds.PixelData, number_of_frames=frames, extended_offsets=offsets)
    for _ in range(frames):
        stream = next(found, None)
        if stream is None:
            raise _contradiction()
        yield stream


def _palette(ds: Dataset, colour: str, entries: int) -> NDArray[np.uint16]:
    """(entries,) of one colour."""
    # pydicom leaves these words in the order of the file, and takes them for this computer's own.
    little = ds.file_meta.TransferSyntaxUID != uid.ExplicitVRBigEndian
    words = np.frombuffer(ds[f"{colour}PaletteColorLookupTableData"].value, "<u2" if little else ">u2")
    table = words if len(words) >= entries else words.astype("<u2").view(np.uint8)
    if len(table) < entries:
        raise DataError("the palette has fewer colours than it says. Export the image again.")
    return table[:entries].astype(np.uint16)


def _contradiction() -> DataError:
    return DataError("the compressed pixels have another size than the header says. Export the image again.")


def _unsupported(why: str) -> DataError:
    return DataError(
        f"the image cannot be decoded: {why}. Export it as Explicit VR Little Endian.", ErrorCode.UNSUPPORTED
    )
