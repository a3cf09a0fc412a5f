"""Canaries: values that occur nowhere else, planted in DICOM studies that our readers can read, and how to find them.

One for every row of PS3.15 Table E.1-1 in each of six places, of the row's own VR; more in file names and in studies
that are broken on purpose, where a parser meets them and may quote them.
"""

import base64
import copy
import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from tests.client.data.studies import ct_slices, save, segmentation

PLACES = ("top level", "one sequence", "three sequences", "private block", "file meta", "preamble")
WORD = "CANARY"
SHAPE = (16, 17)
# A command group cannot stand in a file's own data set (PS3.10); these two rows are planted in the other five places.
COMMANDS = 2

_PREAMBLE = 128
_PRIVATE_ROW = 0x00991001
_IDENTITY = {
    "PatientID": 0x00100020,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "FrameOfReferenceUID": 0x00200052,
}
_INSTANCE = 0x00080018
# What a canary may look like, by VR; looked for at every position.
_FORMS = re.compile(
    rb"(?=(CANARY\d{5}|1\.2\.3\.4\.5\.\d+\.777|-\d{1,4}\.7654321|-12345\d{5}|\d{4}1230235959\.\d{6}|\d{4}1231"
    rb"|\d\d5959\.9\d{5}))"
)
_WORDS = re.compile(rb"(?s)(?=(.[\xea-\xfa]\x01\x00\x02\x00\x03\x00))")  # a US of four values
_ALPHABETS = [base64.b64encode(bytes(skip) + WORD.encode())[-(-skip * 4 // 3) :][1:7] for skip in range(3)]


@dataclass(frozen=True)
class Canary:
    """A row of the table in a place: its VR, its value, and the bytes to look for."""

    place: str
    tag: int
    vr: str
    value: object
    text: bytes

    def element(self, tag: int | None = None) -> DataElement:
        return DataElement(self.tag if tag is None else tag, self.vr, self.value)


def canaries(table: Path) -> list[Canary]:
    """One for each row of the standard's own table, in each place."""
    rows = json.loads(table.read_text())
    return [
        _canary(number * len(rows) + index, place, row["id"])
        for number, place in enumerate(PLACES)
        for index, row in enumerate(rows)
    ]


def found_in(content: bytes) -> set[bytes]:
    """The canaries in these bytes: in any case, a byte a character or UTF-16, in base64, hex or as binary numbers."""
    narrow = content.replace(b"\0", b"")
    found = {*_FORMS.findall(content), *_FORMS.findall(narrow.upper()), *_WORDS.findall(content)}
    encoded = [*_ALPHABETS, WORD.encode().hex().encode()]
    return found | {form for form in encoded if form in narrow}


def plant(planted: Sequence[Canary], folder: Path, rng: np.random.Generator) -> int:
    """Write one usable CT series with its segmentation, which together hold all canaries.

    Returns:
        The number of canaries written.
    """
    by_place = {place: [one for one in planted if one.place == place] for place in PLACES}
    preambles = _preambles(by_place["preamble"])
    slices = ct_slices(rng.integers(0, 3000, (len(preambles), *SHAPE)))
    identity = {one.tag: one for one in by_place["top level"] if one.tag in (*_IDENTITY.values(), _INSTANCE)}
    for ds, preamble in zip(slices, preambles, strict=True):
        ds.preamble = preamble
        for keyword, tag in _IDENTITY.items():
            setattr(ds, keyword, identity[tag].value)
    slices[0].SOPInstanceUID = identity[_INSTANCE].value
    mask = np.zeros((len(slices), *SHAPE), bool)
    mask[2:9, 4:12, 5:13] = True
    save(folder, [segmentation(slices, {"Lesion": mask})], "CANARY90002^seg{}.dcm")
    seg_path = next(folder.glob("*seg0.dcm"))
    seg = pydicom.dcmread(seg_path)
    done = {one.text for one in (*identity.values(), *by_place["preamble"])}
    source = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    for place, hosts in {
        "top level": (slices[0], seg),
        "one sequence": (_nest(slices[3], 1), seg.SegmentSequence[0]),
        "three sequences": (_nest(slices[4], 3), source),
    }.items():
        for one in by_place[place]:
            done |= {one.text for host in hosts if _add(host, one)}
    for index, one in enumerate(by_place["private block"]):
        block, element = 0x10 + index // 200, index % 200
        slices[1].add_new(Tag(0x0099, block), "LO", f"CANARY90001 {block}")
        slices[1].add(one.element((0x0099 << 16) + (block << 8) + element))
        done.add(one.text)
    slices[2].file_meta.PrivateInformationCreatorUID = generate_uid()
    slices[2].file_meta.PrivateInformation = b"|".join(one.text for one in by_place["file meta"]) + b"|"
    slices[2].file_meta.SourceApplicationEntityTitle = "CANARY90003"
    done |= {one.text for one in by_place["file meta"]}
    save(folder, slices, "CANARY90004^{:03}.dcm")
    (meta,) = (one for one in by_place["top level"] if one.tag >> 16 == 2)  # the library would write the true one
    first, instance = folder / "CANARY90004^000.dcm", slices[0].SOPInstanceUID.encode()
    assert len(instance) == len(meta.text)
    first.write_bytes(first.read_bytes().replace(instance, meta.text, 1))
    done.add(meta.text)
    seg.save_as(seg_path, enforce_file_format=True)
    return len(done)


def break_studies(folder: Path, rng: np.random.Generator) -> int:
    """Write studies that are broken in many ways, each with a canary where a parser trips over it.

    Returns:
        The number of ways.
    """

    def set_all(keyword: str, value: object) -> Callable[[list[Dataset], Dataset], None]:
        def change(slices: list[Dataset], _seg: Dataset) -> None:
            for ds in slices:
                setattr(ds, keyword, value)

        return change

    def label(_slices: list[Dataset], seg: Dataset) -> None:
        seg.SegmentSequence[0].SegmentLabel = "CANARY90020^Jane"
        seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "CANARY90020"

    def kind(_slices: list[Dataset], seg: Dataset) -> None:
        seg.SegmentationType = "CANARY90021"

    def gap(slices: list[Dataset], _seg: Dataset) -> None:
        slices[1].ImagePositionPatient = [-10.0, 5.0, 400.0]

    def size(slices: list[Dataset], _seg: Dataset) -> None:
        slices[0].Rows = 99

    changes: list[Callable[[list[Dataset], Dataset], None]] = [
        label,
        kind,
        gap,
        size,
        set_all("BurnedInAnnotation", "CANARY90022"),
        set_all("ConversionType", "CANARY90023"),
        set_all("Modality", "CANARY90024"),
        set_all("PhotometricInterpretation", "CANARY90025"),
        set_all("SpecificCharacterSet", "CANARY90026"),
        set_all("ImageType", ["DERIVED", "CANARY90027"]),
        set_all("RescaleType", "CANARY90028"),
        set_all("PatientID", ""),
    ]
    # Bytes of a readable file, and what is written over them.
    garbled = [
        (b"1.000000001", b"CANARY90030"),  # Rescale Slope
        (b"12345678901", b"CANARY90031"),  # Number of Frames
        (b"2.123456789", b"CANARY90032"),  # Image Position
        (ExplicitVRLittleEndian.encode(), b"1.2.3.4.5.90033.777"),
        (b"DS", b"CA"),  # the first VR of a number
        (b"SQ", b"CA"),
    ]
    ways = [*changes, *garbled, "cut", "noise", "contours"]
    for number, way in enumerate(ways):
        study = folder / f"CANARY{90100 + number}^{number}"
        slices = ct_slices(rng.integers(0, 3000, (3, *SHAPE)), patient=f"CANARY{90200 + number}")
        mask = np.zeros((3, *SHAPE), bool)
        mask[1, 4:9, 4:9] = True
        seg = segmentation(slices, {"Lesion": mask})
        for ds in slices:
            ds.PatientComments = f"CANARY{90300 + number}"
        if callable(way):
            way(slices, seg)
        if isinstance(way, tuple):
            for ds in slices:
                ds.RescaleSlope, ds.NumberOfFrames = "1.000000001", "12345678901" if b"123456789" in way[0] else "1"
                ds.ImagePositionPatient = [2.123456789, 5.0, ds.ImagePositionPatient[2]]
        save(study, slices)
        save(study, [seg if way != "contours" else _structure_set(slices)], "label{}.dcm")
        for path in study.glob("0*.dcm"):
            content = path.read_bytes()
            if isinstance(way, tuple):
                path.write_bytes(content.replace(way[0], way[1], 1))
            elif way == "cut":
                path.write_bytes(content[:-60])
            elif way == "noise":
                path.write_bytes(bytes(_PREAMBLE) + b"DICM" + b"CANARY90040 " * 50)
    return len(ways)


def _canary(number: int, place: str, name: str) -> Canary:
    tag = _PRIVATE_ROW if "gggg" in name else int(name.replace("50xxxxxx", "50003000").replace("xx", "02"), 16)
    vr = dictionary_VR(tag).split(" or ")[0] if dictionary_has_tag(tag) else "LO"
    word = f"{WORD}{number:05}"
    inner = Dataset()
    inner.CodeMeaning = word
    values: dict[str, object] = {
        "DA": f"{1000 + number:04}1231",
        "DT": f"{1000 + number:04}1230235959.{number:06}",
        "TM": f"{number % 24:02}5959.{900000 + number}",
        "DS": f"-{number}.7654321",
        "IS": str(-1234500000 - number),
        "UI": f"1.2.3.4.5.{number}.777",
        "US": [60000 + number, 1, 2, 3],
        "PN": f"{word}^Zoë=Ünal",
        "SQ": Items([inner]),
        **dict.fromkeys(("OB", "OW", "UN"), word.encode() + b" "),
    }
    value = values.get(vr, word)
    text = word.encode()
    if vr in ("DA", "DT", "TM", "DS", "IS", "UI"):
        text = str(value).encode()
    elif isinstance(value, list):
        text = struct.pack("<4H", *value)
    return Canary(place, tag, vr, value, text)


def _preambles(planted: Sequence[Canary]) -> list[bytes]:
    filled = [b""]
    for one in planted:
        if len(filled[-1]) + len(one.text) + 1 > _PREAMBLE:
            filled.append(b"")
        filled[-1] += one.text + b"|"
    return [one.ljust(_PREAMBLE, b"\0") for one in filled]


def _nest(host: Dataset, depth: int) -> Dataset:
    for _ in range(depth):
        inner = Dataset()
        host.ProcedureCodeSequence = Items([inner])
        host = inner
    return host


def _add(host: Dataset, one: Canary) -> bool:
    """Plant in a dataset; what is there already, it needs, unless it is free text."""
    is_file = hasattr(host, "file_meta")
    if is_file and (one.tag >> 16 in (0, 2) or one.tag == _IDENTITY["PatientID"]):
        return False
    if one.tag in host and one.vr in ("UI", "SQ"):
        return False
    if one.tag == _PRIVATE_ROW:
        host.add_new(0x00990010, "LO", "CANARY90005")
    host.add(one.element())
    return True


def _structure_set(slices: list[Dataset]) -> Dataset:
    """One region with a telling name, and contours that are no numbers."""
    ds = copy.deepcopy(slices[0])
    del ds.PixelData
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    roi, contours, contour, frame, study, series = (Dataset() for _ in range(6))
    roi.ROINumber, roi.ROIName = 1, "CANARY90050"
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.add(DataElement(0x30060050, "LO", "CANARY90051\\1\\2"))
    contours.ReferencedROINumber, contours.ContourSequence = 1, Items([contour])
    series.SeriesInstanceUID = slices[0].SeriesInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = slices[0].FrameOfReferenceUID, Items([study])
    ds.ReferencedFrameOfReferenceSequence = Items([frame])
    ds.StructureSetROISequence, ds.ROIContourSequence = Items([roi]), Items([contours])
    return ds
