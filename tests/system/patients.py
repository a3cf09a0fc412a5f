"""A hospital whose files are full of what identifies patients, see `disguises.IDENTIFIERS`."""

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import Dataset

from tests.client.data.read.test_rtstruct import structure_set
from tests.client.data.studies import ct_slices, save, segmentation
from tests.system.disguises import IDENTIFIERS, PATTERN, SIDE

PATIENTS = 6
SHAPE = (3, 24, 28)
# Names of tags are DICOM's (PS3.6).
_TAGS = {
    "PatientName": "patient's name",
    "PatientID": "patient's id",
    "OtherPatientIDs": "other ids",
    "PatientBirthDate": "birth date",
    "PatientAddress": "address",
    "PatientTelephoneNumbers": "phone",
    "PatientComments": "comments",
    "AccessionNumber": "accession number",
    "StudyInstanceUID": "study uid",
    "SeriesInstanceUID": "series uid",
    "FrameOfReferenceUID": "frame uid",
    "StudyDate": "study date",
    "StudyTime": "study time",
    "StudyDescription": "study description",
    "SeriesDescription": "series description",
    "InstitutionName": "institution",
    "ReferringPhysicianName": "physician",
    "StationName": "station",
}


def write_patients(folder: Path) -> None:
    """Six CT series with labels (the first as a structure set), two pairs of NIfTI, a table of two pictures."""
    rng = np.random.default_rng(3)
    for number in range(PATIENTS):
        _write_series(folder / "pacs" / f"{IDENTIFIERS['folder']}-{number}", number, rng)
    _write_nifti(folder / "nifti", rng)
    _write_pictures(folder / "photos", rng)


def first_file(folder: Path) -> Path:
    """The first slice of the first patient."""
    return min(path for path in (folder / "pacs").rglob(f"{IDENTIFIERS['file']}*.dcm"))


def _write_series(folder: Path, number: int, rng: np.random.Generator) -> None:
    stored = rng.integers(930, 1270, SHAPE)
    stored[:, 4 : 4 + SIDE, 6 : 6 + SIDE] = PATTERN + 1024
    slices = ct_slices(stored, spacing_mm=(3.0, 6.0, 6.0))
    mask = np.zeros(SHAPE, bool)
    mask[:, 5:15, 8:20] = True
    for ds in slices:
        _identify(ds, number)
    label: Dataset = segmentation(slices, {IDENTIFIERS["segment label"]: mask})
    if number == 0:
        square = [(5.0, 8.0), (5.0, 20.0), (15.0, 20.0), (15.0, 8.0)]  # (y, x)
        drawn = [(z, square) for z in range(SHAPE[0])]
        label = structure_set(slices, {IDENTIFIERS["structure name"]: drawn})
    save(folder, slices, IDENTIFIERS["file"] + "-{:03}.dcm")
    save(folder, [label], "label-" + IDENTIFIERS["file"] + "-{}.dcm")


def _identify(ds: Dataset, number: int) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword, name in _TAGS.items():
        value = IDENTIFIERS[name]
        varies = keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
        setattr(ds, keyword, f"{value}{'.' if 'UID' in keyword else '-'}{number + 1}" if varies else value)


def _write_nifti(folder: Path, rng: np.random.Generator) -> None:
    for name in (IDENTIFIERS["file"], IDENTIFIERS["patient's id"]):
        for kind in ("images", "labels"):
            voxels = rng.integers(0, 2, (20, 22, 3)) * 9 if kind == "labels" else rng.integers(0, 200, (20, 22, 3))
            image = nib.Nifti1Image(voxels.astype(np.int16), np.diag([6.0, 6.0, 3.0, 1.0]))
            image.header["descrip"] = IDENTIFIERS["nifti description"].encode()
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(image, folder / kind / f"{name}.nii")


def _write_pictures(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    rows = ["id,image,mask,note"]
    text = PngInfo()
    text.add_text("Comment", IDENTIFIERS["picture text"])
    for number in range(2):
        name = f"{IDENTIFIERS['file']}-{number}"
        picture = rng.integers(0, 255, (30, 32), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{name}.png", pnginfo=text)
        Image.fromarray((picture > 99).astype(np.uint8) * 7).save(folder / f"{name}-mask.png", pnginfo=text)
        rows.append(f"{IDENTIFIERS['csv cell']}-{number},{name}.png,{name}-mask.png,{IDENTIFIERS['csv cell']}")
    (folder / "table.csv").write_text("\n".join(rows))
