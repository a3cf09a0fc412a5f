"""Which files belong together: what says so, what does not, and what cannot be seen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import UID, generate_uid

from client.data.check.checkup import Checkup, check_site
from client.data.check.tables import document, tables
from client.data.isolate.answering import Job, check_study
from client.data.read import sources
from client.data.read.dicom_series import BY_FOLDER, FROM_META
from client.data.study.labels import Vocabulary
from client.data.study.listing import LINK_TO_NOTHING
from client.data.study.study import (
    AMBIGUOUS_LABEL,
    DISC_CONTENTS,
    OTHER_PATIENTS_LABEL,
    SECOND_COPY,
    Found,
    Reference,
    Study,
)
from common.errors import DataError, ErrorCode
from tests.client.data.studies import KEY, ct_slices, read_image, save, segmentation, site, source

SHAPE = (6, 16, 18)
EMPTIED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def ct(patient: str = "P1", seed: int = 1) -> list[Dataset]:
    return ct_slices(np.random.default_rng(seed).integers(0, 3000, SHAPE), patient=patient)


def lesion(shift: int = 0) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 3 + shift : 8 + shift, 5:11] = True
    return mask


def find(folder: Path, **options: object) -> Found:
    return sources.find(source(path=".", **options), folder)


def read(reference: Reference) -> Study:
    return sources.read(reference, Vocabulary.as_found({}))


def label_of(reference: Reference) -> np.ndarray:
    label = read(reference).label
    assert label is not None
    return label


def refusal(reference: Reference) -> DataError:
    with pytest.raises(DataError) as error:
        read(reference)
    return error.value


def check(home: Path, folder: str) -> Checkup:
    return check_site(home, site(source(path=folder, patient_pattern="(case-.)")), KEY, None, readers=0)


# Second copies, and files that only say they are


def test_files_with_one_instance_uid_and_other_pixels_are_no_copies(tmp_path: Path) -> None:
    slices = ct()
    for ds in slices:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = slices[0].SOPInstanceUID
    save(tmp_path, [*slices, segmentation(ct(), {"lesion": lesion()})])
    (reference,) = find(tmp_path).references
    error = refusal(reference)
    assert error.code is ErrorCode.UID_REPEATED
    assert "6 files" in str(error)
    assert slices[0].SOPInstanceUID not in str(error)
    with pytest.raises(DataError) as predicted:
        read_image(tmp_path)
    assert predicted.value.code is ErrorCode.UID_REPEATED


def test_copy_that_came_another_way_is_a_copy(tmp_path: Path) -> None:
    slices = ct()
    save(tmp_path, [*slices, segmentation(slices, {"lesion": lesion()})])
    again = slices[2]
    again.file_meta.SourceApplicationEntityTitle = "OTHERPACS"
    save(tmp_path / "sent-again", [again])
    found = find(tmp_path)
    assert found.left_out == {SECOND_COPY: 1}
    assert (label_of(found.references[0]) == lesion()).all()


def test_two_labels_with_one_instance_uid_set_their_series_aside(tmp_path: Path) -> None:
    slices, uid = ct(), generate_uid()
    labels = [segmentation(slices, {name: lesion(shift)}) for shift, name in enumerate(("liver", "lesion"))]
    for seg in labels:
        seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = uid
    save(tmp_path, [*slices, *labels])
    (reference,) = find(tmp_path).references
    assert refusal(reference).code is ErrorCode.UID_REPEATED
    # A prediction needs no label.
    assert read_image(tmp_path).image.shape == (1, *SHAPE)


# Whose label


def same_frame_of_reference(*patients: str) -> list[list[Dataset]]:
    """Series of patients whom an anonymiser gave one frame of reference."""
    groups, frame = [ct(patient, seed) for seed, patient in enumerate(patients)], generate_uid()
    for ds in (ds for group in groups for ds in group):
        ds.FrameOfReferenceUID = frame
    return groups


@pytest.mark.parametrize("lost", ["references", "meaning"])
def test_label_is_drawn_on_its_own_patient_alone(tmp_path: Path, lost: str) -> None:
    first, second = same_frame_of_reference("A", "B")
    own, other = segmentation(first, {"lesion": lesion()}), segmentation(second, {"lesion": lesion(4)})
    if lost == "references":
        del own.ReferencedSeriesSequence
    else:  # the anonymiser changed the UIDs of the images, and not here
        own.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
        for item in own.ReferencedSeriesSequence[0].ReferencedInstanceSequence:
            item.ReferencedSOPInstanceUID = generate_uid()
    save(tmp_path / "a", [*first, own])
    save(tmp_path / "b", [*second, other])
    a, b = find(tmp_path).references
    assert [len(one.labels) for one in (a, b)] == [1, 1]
    assert (label_of(a) == lesion()).all()
    assert (label_of(b) == lesion(4)).all()
    labelling = [study.labelling for study in (read(a), read(b))]
    assert [one.by_place for one in labelling if one is not None] == [1, 0]


def test_label_that_names_the_images_of_another_patient_is_left_out_and_counted(tmp_path: Path) -> None:
    slices = ct("A")
    seg = segmentation(slices, {"lesion": lesion()})
    del seg.PatientID  # highdicom shares the element with the image
    seg.PatientID = "B"
    save(tmp_path, [*slices, seg])
    found = find(tmp_path)
    assert found.left_out == {OTHER_PATIENTS_LABEL: 1}
    assert refusal(found.references[0]).code is ErrorCode.NO_LABEL


def test_label_of_another_folder_is_not_drawn_where_the_path_names_the_patient(tmp_path: Path) -> None:
    first, second = same_frame_of_reference("ANON", "ANON")
    seg = segmentation(first, {"lesion": lesion()})
    del seg.ReferencedSeriesSequence
    save(tmp_path / "case-a", [*first, seg])
    save(tmp_path / "case-b", second)
    a, b = find(tmp_path, patient_pattern="(case-.)").references
    assert (len(a.labels), len(b.labels)) == (1, 0)


@pytest.mark.parametrize("patient", ["A", ""])
def test_label_that_names_nothing_and_may_belong_to_several_series_is_left_out_and_counted(
    tmp_path: Path, patient: str
) -> None:
    first, second = same_frame_of_reference("A", "A" if patient else "B")
    seg = segmentation(first, {"lesion": lesion()})
    del seg.ReferencedSeriesSequence, seg.PatientID
    seg.PatientID = patient
    save(tmp_path / "1", [*first, seg])
    save(tmp_path / "2", second)
    found = find(tmp_path)
    assert found.left_out == {AMBIGUOUS_LABEL: 1}
    assert not any(one.labels for one in found.references)


# Identifiers that an anonymiser made alike, or emptied


def test_patients_with_one_series_uid_are_studies_of_their_own(tmp_path: Path) -> None:
    first, second = ct("A", 1), ct("B", 2)
    for ds in second:
        ds.SeriesInstanceUID = first[0].SeriesInstanceUID
    save(tmp_path, [*first, *second])
    a, b = find(tmp_path).references
    assert (len(a.images), len(b.images)) == (6, 6)
    assert a.key != b.key


def test_series_whose_files_lie_under_two_patients_is_refused(tmp_path: Path) -> None:
    first, second = ct("ANON", 1), ct("ANON", 2)
    for ds in second:
        ds.SeriesInstanceUID = first[0].SeriesInstanceUID
    save(tmp_path / "case-a", first[:3])
    save(tmp_path / "case-b", second[3:])
    (reference,) = find(tmp_path, patient_pattern="(case-.)").references
    assert reference.problem is not None
    assert "2 patients" in str(reference.problem)


def emptied(folder: Path, seed: int, *, patient: str = "", label: bool = True) -> list[Dataset]:
    """A study whose de-identifier emptied what names it; the file meta information it left alone."""
    slices = ct(patient, seed)
    objects: list[Dataset] = [*slices, *([segmentation(slices, {"lesion": lesion()})] if label else [])]
    for ds in objects:
        for keyword in EMPTIED:
            setattr(ds, keyword, "")
        folder.mkdir(parents=True, exist_ok=True)
        ds.save_as(folder / f"{len(list(folder.iterdir())):03}.dcm", enforce_file_format=False, implicit_vr=False)
    return slices


def test_emptied_study_is_read_by_what_the_file_meta_has_and_told(tmp_path: Path) -> None:
    slices = emptied(tmp_path / "data" / "case-a", 1)
    found = find(tmp_path / "data", patient_pattern="(case-.)")
    (reference,) = found.references
    assert found.assumed == {FROM_META: 7, BY_FOLDER: 6}
    study = read(reference)
    assert (study.image[0, 0] == slices[0].pixel_array - 1024.0).all()
    assert study.label is not None
    assert (study.label == lesion()).all()
    told = check(tmp_path, "data")
    assert document(told)["sources"][0]["assumed"] == {FROM_META: 7, BY_FOLDER: 6}
    assert [row[1:] for table in tables(told) if table.title == "Assumed" for row in table.rows] == [
        (7, FROM_META),
        (6, BY_FOLDER),
    ]


def test_emptied_studies_of_two_folders_are_never_one(tmp_path: Path) -> None:
    for number, name in enumerate(("case-a", "case-b")):
        slices = emptied(tmp_path / name, number, label=False)
        for ds in slices:  # and alike in what is left
            ds.FrameOfReferenceUID = ""
            ds.save_as(tmp_path / name / f"{slices.index(ds):03}.dcm", enforce_file_format=False, implicit_vr=False)
    for references in (find(tmp_path, patient_pattern="(case-.)").references, sources.find_images(tmp_path)):
        assert [len(one.images) for one in references] == [6, 6]
        assert len({one.key for one in references}) == 2
        assert [len({path.parent for path in one.images}) for one in references] == [1, 1]


def test_emptied_studies_of_two_patients_in_one_folder_are_never_one(tmp_path: Path) -> None:
    for seed, patient in enumerate("AB"):
        emptied(tmp_path, seed, patient=patient, label=False)
    assert [(one.patient, len(one.images)) for one in find(tmp_path).references] == [("A", 6), ("B", 6)]
    assert [len(one.images) for one in sources.find_images(tmp_path)] == [6, 6]


def test_emptied_series_that_do_not_fit_into_one_stack_are_refused_with_the_tag_that_is_empty(tmp_path: Path) -> None:
    for seed in (1, 2):
        for ds in (slices := ct("A", seed)):
            ds.SeriesInstanceUID = ds.StudyInstanceUID = ds.FrameOfReferenceUID = ""
        save(tmp_path, slices, f"{seed}-{{}}.dcm")
    with pytest.raises(DataError, match=r"Series Instance UID \(0020,000E\) is empty.*folder of its own") as error:
        read_image(tmp_path)
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH


def test_file_that_says_nowhere_what_it_is_names_the_empty_tags(tmp_path: Path) -> None:
    (ds, *_) = ct()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("")
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=False, implicit_vr=False)
    (reference,) = find(tmp_path).references
    assert "(0008,0016) is empty" in str(reference.problem)
    assert "(0002,0002)" in str(reference.problem)


def test_screenshot_whose_class_was_emptied_still_waits_for_a_persons_look(tmp_path: Path) -> None:
    (ds, *_) = ct()
    ds.SOPClassUID, ds.file_meta.MediaStorageSOPClassUID = "", UID("1.2.840.10008.5.1.4.1.1.7")
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=False, implicit_vr=False)
    (reference,) = find(tmp_path).references
    assert reference.problem is not None
    assert reference.problem.code is ErrorCode.BURNED_IN


# Files that are no study


def test_disc_of_a_patient_is_its_study_and_a_dicomdir_that_is_ignored(tmp_path: Path) -> None:
    slices, disc = ct(), FileSet()
    save(tmp_path / "source", slices)
    for path in sorted((tmp_path / "source").iterdir()):
        disc.add(path)
    disc.write(tmp_path / "disc")
    assert (tmp_path / "disc" / "DICOMDIR").is_file()
    (tmp_path / "disc" / "AUTORUN.INF").write_text("[autorun]")
    found = find(tmp_path / "disc")
    assert (len(found.references), found.left_out[DISC_CONTENTS], found.ignored) == (1, 1, 2)
    assert read_image(tmp_path / "disc").image.shape == (1, *SHAPE)


def test_mosaic_is_no_slice_of_a_patient(tmp_path: Path) -> None:
    (ds, *_) = ct()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    save(tmp_path, [ds])
    for read_one in (lambda: read(find(tmp_path).references[0]), lambda: read_image(tmp_path)):
        with pytest.raises(DataError, match="mosaic") as error:
            read_one()
        assert error.value.code is ErrorCode.UNSUPPORTED


# What cannot be seen


def write_study(folder: Path, patient: str = "A") -> None:
    slices = ct(patient)
    save(folder, [*slices, segmentation(slices, {"lesion": lesion()})])


def test_series_beside_a_file_that_cannot_be_read_is_not_a_shorter_volume(tmp_path: Path) -> None:
    """Reading /proc/self/mem from its start is an input/output error of the kernel, for root too."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs Linux's /proc for a file that opens and cannot be read")
    write_study(tmp_path / "whole", "A")
    write_study(tmp_path / "cut", "B")
    (tmp_path / "cut" / "005.dcm").unlink()
    (tmp_path / "cut" / "005.dcm").symlink_to("/proc/self/mem")
    references = find(tmp_path).references
    problems = {one.patient: one.problem for one in references}
    assert problems["A"] is None
    assert problems["B"] is not None
    assert problems["B"].code is ErrorCode.NOT_OPENED
    assert "Input/output error" in str(problems["B"])
    file = problems[""]
    assert file is not None
    assert file.code is ErrorCode.NOT_OPENED
    predicted = {len(one.images): one.problem for one in sources.find_images(tmp_path / "cut")}
    assert {count: problem is not None for count, problem in predicted.items()} == {5: True, 1: True}


def test_series_beside_a_broken_header_is_not_a_shorter_volume(tmp_path: Path) -> None:
    write_study(tmp_path)
    path = tmp_path / "005.dcm"
    path.write_bytes(path.read_bytes()[:132] + b"\xff" * 300)
    problems = {one.patient: one.problem for one in find(tmp_path).references}
    assert problems["A"] is not None
    assert "may not be whole" in str(problems["A"])


def test_broken_header_among_many_series_is_told_and_stops_none_of_them(tmp_path: Path) -> None:
    for patient in "AB":
        save(tmp_path, ct(patient, ord(patient)), patient + "{}.dcm")
    (tmp_path / "x.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    assert [one.problem is None for one in find(tmp_path).references] == [False, True, True]


def test_lost_file_is_asked_for_again_when_the_disk_is_back(tmp_path: Path) -> None:
    """A header that could not be read is not remembered as one that cannot."""
    from client.data.isolate.isolation import Readers  # noqa: PLC0415
    from client.data.keep.index import Index  # noqa: PLC0415

    write_study(tmp_path)
    path = tmp_path / "000.dcm"
    kept = path.rename(tmp_path.parent / "kept.dcm")
    path.symlink_to("/proc/self/mem")
    with Readers(0) as readers:
        index = Index(tmp_path.parent / "index", KEY)
        assert readers.find(source(path=str(tmp_path)), tmp_path, memory=index).references[0].problem is not None
        index.save()
        assert Index(tmp_path.parent / "index", KEY).recall(str(path), [path.stat().st_size]) is None
        assert not any("not-opened" in str(value) for value in index._now.values())
    path.unlink()
    kept.rename(path)
    assert check_study(Job(find(tmp_path).references[0], Vocabulary())).facts.shape == SHAPE


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_series_whose_last_slice_is_cut_off_is_not_a_shorter_volume(tmp_path: Path, share: float) -> None:
    write_study(tmp_path)
    path = tmp_path / "005.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[: max(140, int(share * len(whole)))])
    study = next(one for one in find(tmp_path).references if one.patient == "A")
    assert refusal(study).code is ErrorCode.UNREADABLE


def test_series_with_a_link_to_nothing_is_not_a_shorter_volume(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "005.dcm").unlink()
    (tmp_path / "005.dcm").symlink_to("../.git/annex/objects/SHA256-s1--x.dcm")
    found = find(tmp_path)
    assert found.left_out == {LINK_TO_NOTHING: 1}
    for references in (found.references, sources.find_images(tmp_path)):
        (reference,) = references
        assert reference.problem is not None
        assert reference.problem.code is ErrorCode.NOT_OPENED
        assert "not on this machine" in str(reference.problem)


WITHOUT_RIGHTS = "-dac_override,-dac_read_search"  # what lets root open everything


def test_what_the_rights_forbid_is_named_and_the_rest_predicted(tmp_path: Path) -> None:
    """A folder that may not be listed and a last slice that may not be opened, by a process that is not almighty."""
    write_study(tmp_path / "a", "A")
    write_study(tmp_path / "b", "B")
    write_study(tmp_path / "c", "C")
    (tmp_path / "b").chmod(0)
    (tmp_path / "c" / "005.dcm").chmod(0)
    drop = ["setpriv", f"--bounding-set={WITHOUT_RIGHTS}", f"--inh-caps={WITHOUT_RIGHTS}"] if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux) to give root's rights away")
    program = (
        "import sys; from pathlib import Path; from client.data.read import sources\n"
        "for one in sources.find_images(Path(sys.argv[1])):\n"
        "    print(len(one.images), one.problem.code if one.problem else 'whole')"
    )
    told = subprocess.run([*drop, sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False)
    (tmp_path / "b").chmod(0o700)
    lines = sorted(told.stdout.decode().splitlines())
    assert lines == ["1 not-opened", "1 not-opened", "5 not-opened", "6 whole"], told.stderr.decode()
