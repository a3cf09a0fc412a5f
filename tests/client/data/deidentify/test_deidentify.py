"""No canary survives: one planted for every row of PS3.15 Table E.1-1, in six places, is looked for in written bytes.

The rows are read from the standard's table, not from ours. A canary is a value of the row's own VR that occurs nowhere
else; of numbers in binary it is long enough not to occur by chance.
"""

import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, FileDataset, config
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from client.data.deidentify import ps315
from client.data.deidentify.deidentify import (
    Options,
    PrivateAttribute,
    basic_profile,
    check_pixels,
    export,
    minimal_copy,
)
from client.data.deidentify.pseudonym import pseudonym
from client.data.deidentify.surrogates import surrogate_uid
from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.data.study.study import Reference, Study
from common.errors import ConfigError, DataError, ErrorCode
from deploy.ps315 import convert
from tests.client.data.studies import KEY, ct_slices, read_image, save, segmentation, source, write_ct

OTHER_KEY = bytes(reversed(KEY))
ROWS = 621
PLACES = ("top level", "one sequence", "three sequences", "private block", "file meta", "preamble")
Deidentify = Callable[[Dataset, bytes], Dataset]


@dataclass(frozen=True)
class Row:
    """A row of the table as planted: where, its VR, its value, and the bytes that must not come out."""

    tag: int
    vr: str
    action: str
    value: object
    canary: bytes

    def element(self, tag: int | None = None) -> DataElement:
        return DataElement(self.tag if tag is None else tag, self.vr, self.value)


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Row]:
    text = (data / "dicom_standard" / "confidentiality_profile_attributes.json").read_text()
    return [_row(number, row["id"], row["basicProfile"]) for number, row in enumerate(json.loads(text))]


def _row(number: int, name: str, action: str) -> Row:
    tag = 0x00991001 if "gggg" in name else int(name.replace("50xxxxxx", "50003000").replace("xx", "02"), 16)
    vr = dictionary_VR(tag).split(" or ")[0] if dictionary_has_tag(tag) else "LO"
    word = f"CANARY{number:04}"
    values: dict[str, object] = {
        "AS": f"{900 - number % 800:03}Y",
        "DA": f"{1000 + number:04}1231",
        "DT": f"{1000 + number:04}1230235959.{number:06}",
        "TM": f"{number % 24:02}5959.{900000 + number}",
        "DS": f"-{number}.7654321",
        "IS": str(-1234567000 - number),
        "UI": f"1.2.3.4.5.{number}.777",
        "UR": f"urn:{word}",
        "US": [60000 + number, 1, 2, 3],
    }
    inner = Dataset()
    inner.CodeMeaning = word
    values |= {"SQ": Sequence([inner]), **dict.fromkeys(("OB", "OW", "UN"), word.encode())}
    value = values.get(vr, word)
    match value:
        case str():
            canary = value.encode()
        case list():
            canary = struct.pack("<4H", *value)
        case _:
            canary = word.encode()
    return Row(tag, vr, action, value, canary)


def blank(sop_class: str = CTImageStorage) -> FileDataset:
    """A small image without anything identifying."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID("1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, "1.2.3", "CT"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 2, 3, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = np.arange(6, dtype=np.uint16).tobytes()
    return ds


def by_profile(ds: Dataset) -> Dataset:
    return basic_profile(ds, KEY)


def plant(rows: list[Row], place: str, sop_class: str = CTImageStorage) -> Iterator[tuple[Dataset, list[Row]]]:
    """Datasets that together hold every row's canary in one place."""
    if place == "preamble":
        per_file = 5
        for start in range(0, len(rows), per_file):
            part = rows[start : start + per_file]
            ds = blank(sop_class)
            ds.preamble = b"|".join(row.canary for row in part).ljust(128, b"\0")
            assert len(ds.preamble) == 128
            yield ds, part
        return
    ds = blank(sop_class)
    if place == "file meta":
        ds.file_meta.PrivateInformationCreatorUID = UID("1.2.3")
        ds.file_meta.PrivateInformation = b"|".join(row.canary for row in rows)
        ds.file_meta.SourceApplicationEntityTitle = "CANARY"
    elif place == "private block":
        for number, row in enumerate(rows):
            block, element = 0x10 + number // 200, number % 200
            ds.add_new(Tag(0x0099, block), "LO", f"CANARY MAKER {block}")
            ds.add(row.element((0x0099 << 16) + (block << 8) + element))
    else:
        host: Dataset = ds
        paths = {
            "top level": [],
            "one sequence": ["SharedFunctionalGroupsSequence"],
            "three sequences": [
                "ReferencedFrameOfReferenceSequence",
                "RTReferencedStudySequence",
                "RTReferencedSeriesSequence",
            ],
        }
        for keyword in paths[place]:
            inner = Dataset()
            setattr(host, keyword, Sequence([inner]))
            host = inner
        for row in rows:
            if row.tag == 0x00991001:
                host.add_new(0x00990010, "LO", "CANARY MAKER")
            host.add(row.element())
    yield ds, rows


def written(ds: Dataset) -> bytes:
    """The file's bytes; also of datasets that the library would refuse to write for their command group."""
    file, body = io.BytesIO(), DicomBytesIO()
    header = Dataset()
    header.file_meta, header.preamble = ds.file_meta, ds.preamble
    pydicom.dcmwrite(file, header, enforce_file_format=False, overwrite=True)
    body.is_little_endian, body.is_implicit_VR = True, False
    write_dataset(body, ds)
    return file.getvalue() + body.getvalue()


def reread(ds: Dataset) -> Dataset:
    """As it comes from a disk, values not yet decoded; a command group cannot stand in a file."""
    commands = list(ds.group_dataset(0))
    for element in commands:
        del ds[element.tag]
    result = pydicom.dcmread(io.BytesIO(written(ds)))
    result.update({element.tag: element for element in commands})
    return result


def survivors(rows: list[Row], place: str, deidentify: Deidentify, sop_class: str = CTImageStorage) -> list[str]:
    """Rows whose canary is in the output; every row was in the input."""
    found, checked = [], 0
    for ds, planted in plant(rows, place, sop_class):
        before, after = written(ds), written(deidentify(reread(ds), KEY))
        for row in planted:
            assert row.canary in before, f"{row.tag:08x} was not planted"
            checked += 1
            if row.canary in after:
                found.append(f"{row.tag:08x} {row.vr} {row.action}")
        assert b"CANARY" not in after
        assert b"REMOVED" in after or deidentify is minimal_copy
    assert checked == ROWS
    return found


@pytest.fixture(autouse=True)
def _any_value_may_be_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)


@pytest.mark.parametrize("place", PLACES)
def test_no_row_of_the_table_survives_in_the_minimal_copy(rows: list[Row], place: str) -> None:
    assert survivors(rows, place, minimal_copy) == []


@pytest.mark.parametrize("place", PLACES)
def test_no_row_of_the_table_survives_the_basic_profile(rows: list[Row], place: str) -> None:
    assert survivors(rows, place, basic_profile) == []


@pytest.mark.parametrize("sop_class", [EnhancedMRImageStorage, SegmentationStorage, RTStructureSetStorage])
@pytest.mark.parametrize("place", PLACES[:3])
def test_no_row_survives_where_the_iod_needs_the_attribute(rows: list[Row], place: str, sop_class: str) -> None:
    assert survivors(rows, place, basic_profile, sop_class) == []


def test_cleaned_text_and_dates_keep_no_canary_but_times_of_day(rows: list[Row]) -> None:
    options = Options(
        retain_long_modified_dates=True, clean_descriptors=True, clean_graphics=True, clean_structured_content=True
    )
    found = survivors(rows, "top level", lambda ds, key: basic_profile(ds, key, options))
    assert {name.split()[1] for name in found} == {"TM"}


def test_our_table_is_the_standards_table(data: Path) -> None:
    source = data / "dicom_standard" / "confidentiality_profile_attributes.json"
    theirs, ours = json.loads(source.read_text()), json.loads(ps315.TABLE.read_text())
    assert ps315.TABLE.read_text() == convert(source)
    assert ours["edition"] == "2024e"
    assert len(theirs) == ROWS
    for row in theirs:
        mine = ours["attributes"]["private" if "gggg" in row["id"] else row["id"]]
        actions = {value for name, value in row.items() if name.endswith(("Opt", "Profile"))}
        assert set(mine.values()) == actions, row["name"]
        assert (mine["basic"], mine.get("retain-uids")) == (row["basicProfile"], row.get("rtnUIDsOpt"))
        assert mine.get("clean-descriptors") == row.get("cleanDescOpt")
    assert len(ours["attributes"]) == ROWS


@pytest.mark.parametrize("deidentify", [minimal_copy, basic_profile])
def test_pixels_and_geometry_are_bit_equal(deidentify: Deidentify) -> None:
    (ct,) = ct_slices(np.random.default_rng(0).integers(0, 4096, (1, 17, 23)), signed=True)
    result = deidentify(ct, KEY)
    assert result.PixelData == ct.PixelData
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept", "Rows"):
        assert result[keyword].value == ct[keyword].value


@pytest.mark.parametrize("deidentify", [minimal_copy, basic_profile])
def test_references_of_a_segmentation_still_meet_their_images(deidentify: Deidentify) -> None:
    slices = ct_slices(np.zeros((3, 16, 17), np.int64))
    mask = np.ones((3, 16, 17), bool)
    seg = segmentation(slices, {"Lesion": mask})
    ids = {deidentify(one, KEY).SOPInstanceUID for one in slices}
    safe = deidentify(seg, KEY)
    referred = {one.ReferencedSOPInstanceUID for one in safe.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == ids
    assert safe.ReferencedSeriesSequence[0].SeriesInstanceUID == deidentify(slices[0], KEY).SeriesInstanceUID
    assert safe.FrameOfReferenceUID == deidentify(slices[0], KEY).FrameOfReferenceUID
    assert safe.PixelData == seg.PixelData
    other = deidentify(slices[0], OTHER_KEY)
    assert other.SOPInstanceUID not in ids
    assert other.PatientID != deidentify(slices[0], KEY).PatientID
    assert all(uid.startswith("2.25.") and UID(uid).is_valid and int(uid[5:]) < 2**128 for uid in ids)


def test_standard_uids_stay_and_the_patient_is_the_cohorts_pseudonym() -> None:
    (ct,) = ct_slices(np.zeros((1, 4, 5), np.int64), patient="P7")
    for result in (minimal_copy(ct, KEY), basic_profile(ct, KEY)):
        assert result.SOPClassUID == CTImageStorage
        assert result.PatientID == pseudonym(KEY, "P7")
        assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID


def test_dates_move_by_whole_days_alike_for_one_patient() -> None:
    moved = {}
    for patient in ("P1", "P2"):
        for day in ("20200228", "20200301"):
            (ct,) = ct_slices(np.zeros((1, 4, 5), np.int64), patient=patient)
            ct.StudyDate = day
            moved[patient, day] = minimal_copy(ct, KEY).StudyDate
            options = Options(retain_long_modified_dates=True)
            assert basic_profile(ct, KEY, options).StudyDate == moved[patient, day]
    days = {name: np.datetime64(f"{value[:4]}-{value[4:6]}-{value[6:]}") for name, value in moved.items()}
    for patient in ("P1", "P2"):
        assert days[patient, "20200301"] - days[patient, "20200228"] == np.timedelta64(2, "D")
        assert days[patient, "20200228"] < np.datetime64("2020-02-28")
    assert days["P1", "20200301"] != days["P2", "20200301"]


def test_names_of_segments_stay_only_where_the_site_gave_them() -> None:
    slices = ct_slices(np.zeros((1, 16, 17), np.int64))
    seg = segmentation(slices, {"Lesion": np.ones((1, 16, 17), bool)})
    assert not minimal_copy(seg, KEY).SegmentSequence[0].SegmentLabel
    for name in ("Lesion", "lesion"):  # label maps do not mind the case either
        assert minimal_copy(seg, KEY, names={name}).SegmentSequence[0].SegmentLabel == "Lesion"


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_text_does_not_ride_on_an_allowed_attribute() -> None:
    ds = blank()
    ds[0x00280030] = DataElement(0x00280030, "LO", "CANARY")  # Pixel Spacing is a DS
    ds.Modality = "Canary John"
    ds.SegmentedPropertyTypeCodeSequence = [Dataset()]
    ds.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator = "CANARY"
    assert b"canary" in written(ds).lower()
    assert b"canary" not in written(minimal_copy(ds, KEY)).lower()


def test_profile_says_what_it_did_in_the_standards_codes() -> None:
    ds = blank()
    result = basic_profile(ds, KEY)
    assert (result.PatientIdentityRemoved, result.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
    assert "2024e" in result.DeidentificationMethod
    options = Options(
        **{name: True for name in ps315._CODES if name not in ("basic", "safe_private", "retain_long_full_dates")},
        safe_private=frozenset([PrivateAttribute(0x7053, "Philips PET Private Group", 0)]),
    )
    result = basic_profile(ds, KEY, options)
    assert result.LongitudinalTemporalInformationModified == "MODIFIED"
    items = [(one.CodeValue, one.CodeMeaning) for one in result.DeidentificationMethodCodeSequence]
    known = [getattr(codes.DCM, name) for word in ("Option", "Confidentiality") for name in codes.DCM.dir(word)]
    assert set(items) <= {(code.value, code.meaning) for code in known}
    assert sorted(value for value, _ in items) == ["113100", *(str(code) for code in (113103, 113104, 113105))] + [
        str(code) for code in range(113107, 113113)
    ]


def test_each_option_keeps_what_it_names_and_no_more() -> None:
    ds = blank()
    ds.StationName, ds.InstitutionName, ds.PatientSex, ds.StudyDate = "ROOM9", "St Anna", "F", "20200101"
    ds.SeriesDescription, ds.PatientName, ds.PatientID = "CT Thorax 5 mm Smith 1970mm T1x Brain1", "Smith^Jane", "P1"
    kept = [
        (Options(retain_device_identity=True), "StationName", "ROOM9"),
        (Options(retain_institution_identity=True), "InstitutionName", "St Anna"),
        (Options(retain_patient_characteristics=True), "PatientSex", "F"),
        (Options(retain_long_full_dates=True), "StudyDate", "20200101"),
        (Options(clean_descriptors=True), "SeriesDescription", "CT Thorax 5 mm"),
        (Options(retain_uids=True), "SOPInstanceUID", "1.2.3"),
    ]
    for options, keyword, value in kept:
        result = basic_profile(ds, KEY, options)
        assert result[keyword].value == value
        assert not any(result.get(other) == kept_value for _, other, kept_value in kept if other != keyword)
        assert b"mith" not in written(result)


def test_safe_private_attribute_of_the_named_maker_stays_alone() -> None:
    ds = blank()
    block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.5")
    block.add_new(0x01, "LO", "CANARY")
    ds.private_block(0x7053, "OTHER", create=True).add_new(0x00, "LO", "CANARY")
    options = Options(safe_private=frozenset([PrivateAttribute(0x7053, "Philips PET Private Group", 0x00)]))
    result = basic_profile(ds, KEY, options)
    assert result.private_block(0x7053, "Philips PET Private Group")[0x00].value == 0.5
    assert not any(word in written(result) for word in (b"CANARY", b"OTHER"))
    assert not any(element.tag.is_private for element in basic_profile(ds, KEY))


def test_names_dates_and_references_that_the_table_does_not_list_go_too() -> None:
    ds = blank()
    ds.EvaluatorName, ds.ExpiryDate, ds.SOPInstanceUIDOfConcatenationSource = "Smith^J", "20300101", "1.2.3"
    result = basic_profile(ds, KEY)
    assert "EvaluatorName" not in result
    assert "ExpiryDate" not in result
    assert result.SOPInstanceUIDOfConcatenationSource == result.SOPInstanceUID


def test_dates_cannot_be_kept_and_moved_at_once() -> None:
    with pytest.raises(ConfigError):
        Options(retain_long_full_dates=True, retain_long_modified_dates=True)


def test_overlay_hidden_in_unused_bits_is_cleared_and_the_picture_is_not() -> None:
    ds = blank()
    ds.BitsStored, ds.HighBit = 12, 11
    ds.PixelData = (np.arange(6, dtype=np.uint16) | 0x8000).tobytes()
    ds.add_new(0x60000102, "US", 15)
    ds.add_new(0x60000040, "CS", "G")
    for deidentify in (minimal_copy, basic_profile):
        result = deidentify(ds, KEY)
        assert np.frombuffer(result.PixelData, np.uint16).tolist() == list(range(6))
        assert not any(element.tag.group == 0x6000 for element in result)


@pytest.mark.parametrize(
    ("attributes", "allowance"),
    [
        ({"BurnedInAnnotation": "YES"}, "allow_burned_in"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "allow_captures"),
        ({"ConversionType": "WSD"}, "allow_captures"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "allow_captures"),
    ],
)
def test_pixels_that_may_carry_text_are_refused_unless_allowed(attributes: dict[str, object], allowance: str) -> None:
    ds = blank()
    check_pixels(ds)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    with pytest.raises(DataError) as caught:
        check_pixels(ds)
    assert caught.value.code == ErrorCode.BURNED_IN
    check_pixels(ds, **{allowance: True})


def test_exported_segmentation_still_opens_over_its_series(tmp_path: Path) -> None:
    mask = write_ct(tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out", by_profile, KEY)
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in (tmp_path / "out").rglob("*.dcm")}
    (seg,) = (hd.seg.segread(path) for path, header in headers.items() if header.SOPClassUID == SegmentationStorage)
    images = [header for header in headers.values() if header.SOPClassUID == CTImageStorage]
    images.sort(key=lambda header: header.ImagePositionPatient[2])
    pixels = seg.get_pixels_by_source_instance([one.SOPInstanceUID for one in images], combine_segments=True)
    assert np.array_equal(pixels.astype(bool), mask)
    (purpose,) = {
        source.PurposeOfReferenceCodeSequence[0].CodeMeaning
        for frame in seg.PerFrameFunctionalGroupsSequence
        for source in frame.DerivationImageSequence[0].SourceImageSequence
    }
    assert purpose == "Source image for image processing operation"
    assert seg.ContentDate == "19000101"  # type 1 in a segmentation: a dummy, not nothing


def assert_copies_read_alike(folder: Path, out: Path, label_map: dict[str, str], least: int) -> None:
    """Our readers find the same series in minimal copies: the same voxels, spacing, grid and labels."""
    done = export(folder, out, partial(minimal_copy, key=KEY, names=label_map), KEY, allow_captures=True)
    assert done.files > 0
    wanted, given = Vocabulary.as_found(label_map), source(path=".", label_map=label_map)
    copies = {one.key: one for one in sources.find(given, out).references}
    read = 0
    for reference in sources.find(given, folder).references:
        if reference.problem is not None:
            continue
        copy = copies[surrogate_uid(KEY, reference.key)]
        assert copy.patient == pseudonym(KEY, reference.patient)
        if (len(copy.images), len(copy.labels)) != (len(reference.images), len(reference.labels)):
            assert ErrorCode.DUPLICATE in done.skipped  # two files with one SOP Instance UID: the second is not written
            continue
        original, again = (_read(one, wanted if reference.labels else None) for one in (reference, copy))
        if isinstance(original, ErrorCode) or isinstance(again, ErrorCode):
            assert again == original
            continue
        assert np.array_equal(again.image, original.image)
        assert (again.spacing_mm, again.modality) == (original.spacing_mm, original.modality)
        assert (again.affine is None) == (original.affine is None)
        assert again.affine is None or original.affine is None or np.array_equal(again.affine, original.affine)
        assert (again.label is None) == (original.label is None)
        assert again.label is None or original.label is None or np.array_equal(again.label, original.label)
        read += 1
    assert read >= least


def _read(reference: Reference, wanted: Vocabulary | None) -> Study | ErrorCode:
    try:
        return sources.read(reference, wanted)
    except DataError as error:
        return error.code


def test_minimal_copies_of_a_series_and_its_segmentation_read_alike(tmp_path: Path) -> None:
    write_ct(tmp_path / "in", signed=True)
    assert_copies_read_alike(tmp_path / "in", tmp_path / "out", {"Lesion": "lesion"}, least=1)


@pytest.mark.filterwarnings("ignore:End of file reached")
def test_minimal_copies_of_real_series_with_segmentations_and_structure_sets_read_alike(
    data: Path, tmp_path: Path
) -> None:
    names: dict[str, str] = {}
    for path in (data / "dicom_labelled").rglob("*"):
        if path.is_file() and pydicom.misc.is_dicom(path):
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            for one in ds.get("SegmentSequence", []):
                names[one.SegmentLabel] = f"class-{len(names)}"
            for one in ds.get("StructureSetROISequence", []):
                names[one.get("ROIName") or "ROI"] = f"class-{len(names)}"
    folders = sorted({path.parent for path in (data / "dicom_labelled").rglob("*") if path.is_file()})
    assert len(names) > 5
    for number, folder in enumerate(folders):
        if any(pydicom.misc.is_dicom(path) for path in folder.iterdir() if path.is_file()):
            assert_copies_read_alike(folder, tmp_path / str(number), names, least=0)


def test_export_writes_by_pseudonym_and_counts_what_it_skips(tmp_path: Path) -> None:
    write_ct(tmp_path / "in", patient="Smith")
    burned = blank()
    burned.BurnedInAnnotation = "YES"
    save(tmp_path / "in" / "burned", [burned])
    (tmp_path / "in" / "broken.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(200)))
    (tmp_path / "in" / "letter.pdf").write_bytes(b"%PDF")
    done = export(tmp_path / "in", tmp_path / "out", by_profile, KEY)
    assert (done.files, done.patients, done.ignored) == (6, 1, 1)
    assert done.skipped == {ErrorCode.BURNED_IN: 1, ErrorCode.UNSUPPORTED: 1}
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.parent.name for path in files} == {pseudonym(KEY, "Smith")}
    assert not any(b"mith" in path.read_bytes() for path in files)
    with pytest.raises(ConfigError):
        export(tmp_path / "in", tmp_path / "out", by_profile, KEY)


def test_export_keeps_every_slice_of_a_series_whose_instance_uids_were_emptied(tmp_path: Path) -> None:
    slices = ct_slices(np.random.default_rng(1).integers(0, 3000, (4, 12, 14)), patient="Smith")
    (tmp_path / "in").mkdir()
    for number, ds in enumerate(slices):
        ds.SOPInstanceUID = ds.SOPClassUID = ""
        ds.save_as(tmp_path / "in" / f"{number}.dcm", enforce_file_format=False, implicit_vr=False)
    done = export(tmp_path / "in", tmp_path / "out", partial(minimal_copy, key=KEY), KEY)
    assert (done.files, done.skipped) == (4, {})
    assert read_image(tmp_path / "out").image.shape == (1, 4, 12, 14)


def test_export_does_not_put_people_into_one_folder_because_nobody_says_whose_their_images_are(tmp_path: Path) -> None:
    slices = ct_slices(np.random.default_rng(1).integers(0, 3000, (2, 12, 14)), patient="")
    for ds in slices:
        ds.StudyInstanceUID = ""
    save(tmp_path / "in", slices)
    done = export(tmp_path / "in", tmp_path / "out", partial(minimal_copy, key=KEY), KEY)
    assert (done.files, done.skipped) == (0, {ErrorCode.UNSUPPORTED: 2})


def test_minimal_copy_of_a_mosaic_is_still_known_as_one(tmp_path: Path) -> None:
    (ds,) = ct_slices(np.random.default_rng(1).integers(0, 3000, (1, 12, 14)))
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    save(tmp_path / "in", [ds])
    export(tmp_path / "in", tmp_path / "out", partial(minimal_copy, key=KEY), KEY)
    with pytest.raises(DataError, match="mosaic"):
        read_image(tmp_path / "out")


@pytest.mark.filterwarnings("ignore:End of file reached")
def test_every_real_file_is_deidentified_with_its_pixels_or_refused_with_a_code(data: Path) -> None:
    done, refusals = 0, set()
    for path in sorted(path for name in ("dicom_conformance", "dicom_labelled") for path in (data / name).rglob("*")):
        if not path.is_file() or not pydicom.misc.is_dicom(path):
            continue
        for deidentify in (minimal_copy, basic_profile):
            try:
                ds = pydicom.dcmread(path)
                result = deidentify(ds, KEY)
                again = io.BytesIO()
                result.save_as(again, enforce_file_format=True)
            except DataError as error:
                refusals.add(error.code)
                continue
            assert result.get("PixelData") == ds.get("PixelData"), path.name
            done += 1
    assert done > 200
    assert refusals <= {ErrorCode.UNREADABLE, ErrorCode.UNSUPPORTED}
