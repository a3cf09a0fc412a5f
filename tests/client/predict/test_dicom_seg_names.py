"""The patient's name in a written DICOM SEG, from files whose character set is stated as archives really state it."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from client.data.dicom.text import decode
from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.predict.files import encode
from common.errors import DataError, ErrorCode
from tests.client.data.studies import ct_slices, read_image, run_config, save, segmentation, source
from tests.client.predict.test_dicom_seg import errors, needs_dciodvfy, raw

SHAPE = (3, 12, 17)
MUELLER = "Müller^Änne"
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
# 0x3D and 0x5E are also second bytes of kanji: they part no name there.
SPRING = "Haru^Ichiro=春^一郎"
KOREAN = "Hong^Gildong=洪^吉洞=홍^길동"


def iso_2022(text: str, codec: str, escape: bytes = b"") -> bytes:
    """Bytes as PS3.5 6.1.2.5 wants them: each part that is not ASCII begins with its escape sequence."""
    parts = []
    for group in text.split("="):
        names = [name.encode("ascii") if name.isascii() else escape + name.encode(codec) for name in group.split("^")]
        parts.append(b"^".join(names))
    return b"=".join(parts)


STATED = [
    (b"\\ISO 2022 IR 87", iso_2022(JAPANESE, "iso2022_jp"), JAPANESE),
    (b"\\ISO 2022 IR 87", iso_2022(SPRING, "iso2022_jp"), SPRING),
    (b"\\ISO 2022 IR 149", iso_2022(KOREAN, "euc_kr", b"\x1b$)C"), KOREAN),
    (b"ISO_IR 6", b"Mueller^Anne", "Mueller^Anne"),
    (b"ISO_IR 100", MUELLER.encode("latin-1"), MUELLER),
    (b"ISO IR 100", MUELLER.encode("latin-1"), MUELLER),
    (b"iso-ir-100", MUELLER.encode("latin-1"), MUELLER),
    (b"ISO_IR 100\\ISO_IR 100", MUELLER.encode("latin-1"), MUELLER),
    (b"ISO 2022 IR 100", MUELLER.encode("latin-1"), MUELLER),
    (b"ISO-IR 192", MUELLER.encode("utf-8"), MUELLER),
    (b"UTF-8", MUELLER.encode("utf-8"), MUELLER),
    (None, MUELLER.encode("utf-8"), MUELLER),
    (b"ISO_IR 6", MUELLER.encode("utf-8"), MUELLER),
    (b"ISO_IR 144", "Иванов^Иван".encode("iso8859_5"), "Иванов^Иван"),
    (b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
]
UNKNOWN = [
    (None, MUELLER.encode("latin-1")),  # Latin-1, -2 or -9: nobody can tell
    (b"ISO_IR 6", MUELLER.encode("cp437")),
    (b"ISO_IR 192", MUELLER.encode("latin-1")),
    (b"KOI8-R", "Иванов^Иван".encode("koi8_r")),
    (b"\\ISO 2022 IR 87", "山田^太郎".encode("shift_jis")),
]


def series(folder: Path, character_set: bytes | None, name: bytes, *, implicit: bool = False) -> Path:
    slices = ct_slices(np.random.default_rng(5).integers(0, 3000, SHAPE))
    for ds in slices:
        if character_set is not None:
            raw(ds, "SpecificCharacterSet", "CS", character_set + b" " * (len(character_set) % 2))
        for keyword, vr in (("PatientName", "PN"), ("ReferringPhysicianName", "PN"), ("PatientID", "LO")):
            raw(ds, keyword, vr, name + b" " * (len(name) % 2))
        if implicit:
            ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    save(folder, slices)
    return folder


def predicted(folder: Path) -> bytes:
    """The DICOM SEG of `predict`, as bytes."""
    (reference,) = sources.find_images(folder)
    study = read_image(reference)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 2:6, 3:9] = 1
    return encode(reference, "", study, labels, run=run_config(), model_sha256="ab" * 32)["segmentation.dcm"]


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(("character_set", "name", "expected"), STATED)
def test_segmentation_keeps_the_name_however_its_characters_are_stated(
    tmp_path: Path, character_set: bytes | None, name: bytes, expected: str, implicit: bool
) -> None:
    (tmp_path / "seg").write_bytes(predicted(series(tmp_path / "ct", character_set, name, implicit=implicit)))
    seg = highdicom.seg.segread(tmp_path / "seg")
    assert str(seg.PatientName) == str(seg.ReferringPhysicianName) == expected
    assert seg.PatientID == expected
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    written = pydicom.dcmread(tmp_path / "seg").get_item("PatientName")
    assert written.value.strip() == expected.encode("utf-8")


@needs_dciodvfy
def test_validator_finds_no_error_in_it(tmp_path: Path) -> None:
    (tmp_path / "seg").write_bytes(predicted(series(tmp_path / "ct", *STATED[0][:2])))
    assert errors(tmp_path / "again", pydicom.dcmread(tmp_path / "seg")) == []


@pytest.mark.parametrize(("character_set", "name"), UNKNOWN)
def test_name_whose_characters_nobody_can_tell_is_refused_and_never_another_name(
    tmp_path: Path, character_set: bytes | None, name: bytes
) -> None:
    series(tmp_path, character_set, name)
    with pytest.raises(DataError, match=r"\(0010,00.0\).*Specific Character Set \(0008,0005\)") as error:
        predicted(tmp_path)
    assert error.value.code is ErrorCode.UNSUPPORTED
    assert "ller" not in str(error.value)


def test_text_of_others_that_nobody_can_read_is_left_out(tmp_path: Path) -> None:
    slices: list[Dataset] = ct_slices(np.random.default_rng(5).integers(0, 3000, SHAPE))
    for ds in slices:
        raw(ds, "ReferringPhysicianName", "PN", "Dr^Ärmel ".encode("latin-1"))
    save(tmp_path / "ct", slices)
    (tmp_path / "seg").write_bytes(predicted(tmp_path / "ct"))
    seg = pydicom.dcmread(tmp_path / "seg")
    assert (str(seg.PatientName), str(seg.ReferringPhysicianName)) == ("NAME^P1", "")


@pytest.mark.parametrize("character_set", [b"ISO IR 100", b"ISO_IR 100\\ISO_IR 100", b"ISO 2022 IR 100"])
def test_segment_goes_by_its_name_however_its_characters_are_stated(tmp_path: Path, character_set: bytes) -> None:
    slices = ct_slices(np.random.default_rng(5).integers(0, 3000, SHAPE))
    seg = segmentation(slices, {"lesion": np.ones(SHAPE, bool)})
    raw(seg, "SpecificCharacterSet", "CS", character_set)
    raw(seg.SegmentSequence[0], "SegmentLabel", "LO", "Läsion".encode("latin-1"))
    save(tmp_path, [*slices, seg])
    (reference,) = sources.find(source(path=".", label_map={"läsion": "lesion"}), tmp_path).references
    assert sources.read(reference, Vocabulary.as_found(reference.label_map)).classes == ("lesion",)


def test_text_without_an_escape_sequence_of_the_stated_sets_is_none() -> None:
    assert decode(b"\x1b$Bxx", ["ascii"]) is None
    assert decode(b"plain", [""]) == "plain"
    assert decode("é".encode("latin-1"), [""]) is None


def test_image_without_instance_uid_is_named_by_its_file_meta_in_the_segmentation(tmp_path: Path) -> None:
    slices = ct_slices(np.random.default_rng(5).integers(0, 3000, SHAPE))
    for number, ds in enumerate(slices):
        ds.SOPInstanceUID = ds.SOPClassUID = ""
        ds.save_as(tmp_path / f"{number}.dcm", enforce_file_format=False, implicit_vr=False)
    (tmp_path / "seg").write_bytes(predicted(tmp_path))
    seg = highdicom.seg.segread(tmp_path / "seg")
    named = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert named == {ds.file_meta.MediaStorageSOPInstanceUID for ds in slices}


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_segmentation_of_an_emptied_series_is_refused_with_the_tag_that_is_empty(tmp_path: Path, keyword: str) -> None:
    slices = ct_slices(np.random.default_rng(5).integers(0, 3000, SHAPE))
    for ds in slices:
        setattr(ds, keyword, "")
    save(tmp_path, slices)
    with pytest.raises(DataError, match=r"Instance UID \(0020,000[DE]\) is empty or missing") as error:
        predicted(tmp_path)
    assert error.value.code is ErrorCode.UNSUPPORTED
