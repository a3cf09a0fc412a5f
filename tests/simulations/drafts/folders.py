"""Folders as researchers have them, each with the same discs or balls, written by Pillow, nibabel and pydicom."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulations.generators.phantoms import SCANNERS, write_hospital
from tests.client.data.studies import write_picture, write_volume

AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])
Pixels = npt.NDArray[np.uint8]


def discs(count: int, edge: int = 48, seed: int = 0) -> Iterator[tuple[Pixels, Pixels]]:
    """Grey pictures (edge, edge) with bright discs on noise, and masks of 0 and 255."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:edge, :edge]
    for _ in range(count):
        inside = np.zeros((edge, edge), bool)
        for _ in range(rng.integers(1, 4)):
            centre = rng.uniform(0.2 * edge, 0.8 * edge, 2)
            inside |= np.hypot(rows - centre[0], columns - centre[1]) < rng.uniform(0.1, 0.2) * edge
        image = 80 + 60 * inside + rng.normal(0, 15, inside.shape)
        yield image.clip(0, 255).astype(np.uint8), (inside * 255).astype(np.uint8)


def pictures(folder: Path, count: int = 12, edge: int = 48) -> Path:
    """images/im000.png and masks/im000.png, and so on."""
    for number, (image, mask) in enumerate(discs(count, edge)):
        write_picture(folder / "images" / f"im{number:03}.png", image)
        write_picture(folder / "masks" / f"im{number:03}.png", mask)
    return folder


def with_table(folder: Path, count: int = 12) -> Path:
    """Pictures in one folder, two of each patient, of two hospitals, and a table of semicolons that says so."""
    rows = []
    for number, (image, mask) in enumerate(discs(count)):
        write_picture(folder / "pictures" / f"{number}.png", image)
        write_picture(folder / "drawn" / f"{number}.png", mask)
        hospital = "St. Anna" if number < count // 2 else "Nord"
        rows.append((f"pictures/{number}.png", f"drawn/{number}.png", f"p{number // 2}", hospital))
    with (folder / "list.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("File name", "Ground truth", "Patient ID", "Hospital"), *rows])
    return folder


def of_classes(folder: Path, count: int = 12) -> Path:
    """Pictures and a table with a word for each; half show a disc."""
    rows = []
    for number, (image, _) in enumerate(discs(count)):
        write_picture(folder / f"{number}.png", image if number % 2 else np.flipud(image) // 3)
        rows.append((f"{number}.png", f"p{number}", "tumour" if number % 2 else "normal"))
    with (folder / "diagnoses.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "patient", "diagnosis"), *rows])
    return folder


def volumes(count: int, slices: int = 18, seed: int = 0) -> Iterator[tuple[npt.NDArray[np.float32], Pixels]]:
    """(i, j, k) volumes with a ball of value 1 and, in its middle, one of value 2."""
    rng = np.random.default_rng(seed)
    i, j, k = np.mgrid[:20, :24, :slices]
    for _ in range(count):
        centre = rng.uniform([7, 7, slices * 0.4], [13, 17, slices * 0.6])
        far = np.sqrt((i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2)
        label = (far < 6).astype(np.uint8) + (far < 3)
        yield (100 + 40 * label + rng.normal(0, 8, label.shape)).astype(np.float32), label.astype(np.uint8)


def nifti(folder: Path, count: int = 6, names: Sequence[str] = ("images", "labels")) -> Path:
    """Volumes and label maps of one name in two folders."""
    for number, (image, label) in enumerate(volumes(count)):
        write_volume(folder / names[0] / f"v{number:02}.nii.gz", image, AFFINE)
        write_volume(folder / names[1] / f"v{number:02}.nii.gz", label, AFFINE)
    return folder


def nnunet(folder: Path, count: int = 6) -> Path:
    """nnU-Net, version 2: two channels a case, names of labels and channels, and a test set without labels."""
    for number, (image, label) in enumerate(volumes(count)):
        write_volume(folder / "imagesTr" / f"case_{number:03}_0000.nii.gz", image, AFFINE)
        write_volume(folder / "imagesTr" / f"case_{number:03}_0001.nii.gz", 200 - image, AFFINE)
        write_volume(folder / "labelsTr" / f"case_{number:03}.nii.gz", label, AFFINE)
    write_volume(folder / "imagesTs" / "case_900_0000.nii.gz", image, AFFINE)
    told = {"channel_names": {"0": "T2", "1": "FLAIR"}, "labels": {"background": 0, "Whole gland": 1, "Lesion": 2}}
    (folder / "dataset.json").write_text(json.dumps(told | {"numTraining": count, "file_ending": ".nii.gz"}))
    return folder


def decathlon(folder: Path, count: int = 6) -> Path:
    """The Medical Segmentation Decathlon: values are the keys, and names the values."""
    nifti(folder, count, ("imagesTr", "labelsTr"))
    told = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "Liver", "2": "Tumour"}}
    (folder / "dataset.json").write_text(json.dumps(told))
    return folder


def bids(folder: Path, count: int = 6) -> Path:
    """Two sessions of each subject, and lesions in derivatives."""
    for number, (image, label) in enumerate(volumes(2 * count)):
        subject, session = f"sub-{number // 2:02}", f"ses-{number % 2}"
        name = f"{subject}_{session}_T1w"
        write_volume(folder / subject / session / "anat" / f"{name}.nii.gz", image, AFFINE)
        drawn = folder / "derivatives" / "lesions" / subject / session / "anat"
        write_volume(drawn / f"{name}_dseg.nii.gz", label, AFFINE)
    return folder


def dicom(folder: Path, patients: int = 4) -> Path:
    """CT series with DICOM SEG, of two hospitals in a folder each."""
    for name in ("a", "b"):
        write_hospital(
            folder / f"Hospital {name}",
            scanner=SCANNERS[name],
            patients=patients,
            seed=1,
            slices=5,
            rows=64,
            healthy=0.0,
        )
    return folder
