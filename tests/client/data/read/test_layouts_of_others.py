"""Folders as nnU-Net, the Medical Segmentation Decathlon and BIDS lay them out are taken as they are, no case twice."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.data.prepare.channels import Channels
from client.data.read import nifti, sources
from client.data.read.dataset_json import names_in
from client.data.study.study import NO_IMAGE, TEST_SET, Found
from common.config import RunConfig
from common.errors import DataError
from common.preparation import Geometry
from tests.client.data.studies import source

GRID = np.diag([-1.0, -1.0, 2.0, 1.0])


def volumes(folder: Path, *names: str, channels: int = 0) -> None:
    shape = (6, 5, 4, channels) if channels else (6, 5, 4)
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) + number
        nib.save(nib.Nifti1Image(voxels % 3 if "labels" in name else voxels, GRID), folder / name)


def described(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


def find(folder: Path, **options: object) -> Found:
    return sources.find(source(path=".", **options), folder)


def test_nnunet_raw_data_are_one_study_a_case_and_its_test_set_is_left_out(tmp_path: Path) -> None:
    folder = described(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels={"background": 0}, file_ending=".nii.gz")
    volumes(folder, *(f"imagesTr/case_{case:03}_{channel:04}.nii.gz" for case in range(3) for channel in range(2)))
    volumes(folder, *(f"labelsTr/case_{case:03}.nii.gz" for case in range(3)))
    volumes(folder, "imagesTs/case_900_0000.nii.gz", "imagesTs/case_900_0001.nii.gz")
    found = find(folder)
    assert [(one.patient, len(one.images), len(one.labels)) for one in found.references] == [
        (f"case_{case:03}", 2, 1) for case in range(3)
    ]
    assert found.left_out == {TEST_SET: 2}
    (first, *_) = find(folder, channel=1).references
    assert [path.name for path in first.images] == ["case_000_0001.nii.gz"]


def test_the_decathlons_volumes_in_one_file_are_channels(tmp_path: Path) -> None:
    folder = described(tmp_path, tensorImageSize="4D", labels={"0": "background"})
    volumes(folder, "imagesTr/prostate_00.nii.gz", "imagesTr/prostate_01.nii.gz", channels=2)
    volumes(folder, "labelsTr/prostate_00.nii.gz", "labelsTr/prostate_01.nii.gz")
    volumes(folder, "imagesTs/prostate_02.nii.gz", channels=2)
    found = find(folder)
    assert [one.key for one in found.references] == ["prostate_00", "prostate_01"]
    assert found.left_out == {TEST_SET: 1}
    described(folder / "imagesTr")  # one that lies elsewhere is not used
    assert find(folder).left_out == {TEST_SET: 1, NO_IMAGE: 1}
    written = np.asarray(nib.load(folder / "imagesTr" / "prostate_00.nii.gz").dataobj)  # type: ignore[attr-defined]
    study = nifti.read(found.references[0], None)
    np.testing.assert_array_equal(study.image, np.moveaxis(written, -1, 0).transpose(0, 3, 2, 1))
    (one, _) = find(folder, channel=1).references
    np.testing.assert_array_equal(nifti.read(one, None).image[0], written[..., 1].transpose())
    (beyond, _) = find(folder, channel=2).references
    with pytest.raises(DataError, match="asks for channel 2"):
        nifti.read(beyond, None)


def test_a_volume_of_one_channel_has_no_second_one(tmp_path: Path) -> None:
    volumes(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    assert nifti.read(find(tmp_path, kind="nifti", channel=0).references[0], None).image.shape == (1, 4, 5, 6)
    with pytest.raises(DataError, match="asks for channel 1 of each image"):
        nifti.read(find(tmp_path, kind="nifti", channel=1).references[0], None)


def test_a_time_series_is_no_image_of_channels(tmp_path: Path) -> None:
    volumes(tmp_path, "images/bold.nii.gz", channels=20)
    volumes(tmp_path, "labels/bold.nii.gz")
    with pytest.raises(DataError, match="at most 8 as channels"):
        nifti.read(find(tmp_path).references[0], None)


def test_a_label_map_of_several_volumes_is_refused(tmp_path: Path) -> None:
    volumes(tmp_path, "labels/x.nii.gz", channels=2)
    with pytest.raises(DataError, match="expected one volume of plain numbers"):
        nifti._load(tmp_path / "labels" / "x.nii.gz")


@pytest.mark.parametrize(("modality", "fits"), [("CT", False), ("MR", False), ("photo", True), ("US", True)])
def test_three_contrasts_are_no_colours(modality: str, fits: bool) -> None:
    run = RunConfig.model_validate(
        {
            "name": "test",
            "data": {"modality": modality, "classes": ["lesion"]},
            "training": {"patch-size": [16, 16]},
            "federation": {"rounds": 1},
        }
    )
    problem = Channels(run).refuse(Geometry((4, 16, 16), 3, (2.0, 1.0, 1.0)))
    assert (problem is None) == fits
    assert problem is None or "channel in site.toml" in str(problem)


def test_bids_subjects_with_sessions_are_patients(tmp_path: Path) -> None:
    for subject in ("01", "02"):
        for session in ("a", "b"):
            place, name = f"sub-{subject}/ses-{session}/anat", f"sub-{subject}_ses-{session}"
            volumes(tmp_path, f"{place}/{name}_T1w.nii.gz", f"derivatives/labels/{place}/{name}_dseg.nii.gz")
    found = find(tmp_path)
    assert [(one.patient, len(one.labels)) for one in found.references] == [("sub-01", 1)] * 2 + [("sub-02", 1)] * 2


@pytest.mark.parametrize(
    ("labels", "names", "regions"),
    [
        ({"background": 0, "Left Ventricle": 1, "myo_card": 2}, {"1": "left-ventricle", "2": "myo-card"}, ()),
        ({"0": "background", "1": "Anterior", "2": "Posterior"}, {"1": "anterior", "2": "posterior"}, ()),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, {"2": "core"}, ("whole",)),
        (["nothing"], {}, ()),
        ({"liver": "9" * 5000, "9" * 5000: "spleen", "0": "heart", "07": "lung", "٣": "bone"}, {"7": "lung"}, ()),
    ],
)
def test_names_of_labels_are_read_as_either_version_writes_them(
    tmp_path: Path, labels: Any, names: dict[str, str], regions: tuple[str, ...]
) -> None:
    found = names_in(described(tmp_path, labels=labels))
    assert (dict(found.labels), found.regions) == (names, regions)


def test_a_damaged_dataset_json_names_nothing(tmp_path: Path) -> None:
    assert names_in(tmp_path).labels == {}
    (tmp_path / "dataset.json").write_text("[" * 100_000)
    assert names_in(tmp_path).labels == {}


def test_no_more_names_are_taken_than_a_label_has_values_and_none_of_a_file_that_is_too_long(tmp_path: Path) -> None:
    every = {f"class {number}": number for number in range(1, 301)}
    assert list(names_in(described(tmp_path, labels=every)).labels) == [str(number) for number in range(1, 255)]
    described(tmp_path, labels={"liver": 1}, remark="x" * 2**22)
    assert names_in(tmp_path).labels == {}
