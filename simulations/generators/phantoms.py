"""Phantom patients: real DICOM CT series with a DICOM SEG of the truth, for demos, tests and scenarios.

Every attribute that could name a patient holds an invented value that is easy to search for (`PHANTOM^A0001`). What the
images show is said in `simulations.generators.anatomy`. The same seed gives the same bytes.

Convention: patient coordinates are DICOM's LPS; intensities are Hounsfield units. Source: DICOM PS3.3 A.3 (CT Image),
A.51 (Segmentation).
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.predict.dicom.segmentation import Author, write_segmentation
from simulations.generators.anatomy import SCANNERS, Mask, Scanner, Vector, Volume, draw_anatomy, scan

_HEALTH = 2**31  # a stream of its own, as no series has
AXIAL: tuple[Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True, eq=False)
class WrittenSeries:
    """One series on disk, with its truth."""

    images: tuple[Path, ...]  # in order of instance number
    segmentation: Path | None
    truth: Mask  # (S, R, C), slice s lies on images[s]


def write_hospital(
    folder: Path,
    *,
    scanner: Scanner,
    patients: int,
    seed: int,
    slices: int = 12,
    rows: int = 128,
    healthy: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[WrittenSeries, ...]:
    """Write the labelled archive of one hospital; every fifth patient has a second series.

    Patient n is the same whatever the number of patients.

    Args:
        folder: receives one folder per patient, and in it one per series.
        scanner: the hospital's machine.
        patients: how many.
        seed: all images, labels and UIDs follow from it.
        slices: per series.
        rows: rows and columns of an image.
        healthy: share of the patients who have no lesion, on average.
        progress: called with (patients done, patients).
    """
    written: list[WrittenSeries] = []
    for number in range(1, patients + 1):
        patient = folder / _patient_id(scanner, number)
        is_healthy = _generator(seed, scanner, number, _HEALTH).random() < healthy
        for series in (1, 2) if number % 5 == 0 else (1,):
            written.append(
                write_study(
                    patient,
                    scanner=scanner,
                    seed=seed,
                    patient=number,
                    series=series,
                    slices=slices,
                    rows=rows,
                    healthy=is_healthy,
                )
            )
        if progress is not None:
            progress(number, patients)
    return tuple(written)


def write_study(
    folder: Path,
    *,
    scanner: Scanner,
    seed: int,
    patient: int = 1,
    series: int = 1,
    slices: int = 12,
    rows: int = 128,
    labelled: bool = True,
    healthy: bool = False,
    truth: Path | None = None,
    axes: tuple[Vector, Vector] = AXIAL,
) -> WrittenSeries:
    """Write one series: `series-1/0001.dcm` and so on, and its truth as `series-1-seg/lesion.dcm`.

    Args:
        folder: of the patient.
        scanner: the machine.
        seed: all follows from it, together with scanner, patient and series.
        patient: number of the patient, from 1.
        series: number of the series of this patient, from 1; another look at the same anatomy.
        slices: how many.
        rows: rows and columns of an image.
        healthy: without lesions; the truth is then empty.
        labelled: False leaves the truth out, as in a study that waits for a prediction.
        truth: where to write the truth instead, such as outside the study.
        axes: directions of a row and of a column in patient space, unit vectors; other than axial for a tilted series.
    """
    anatomy = draw_anatomy(_generator(seed, scanner, patient, 0))
    if healthy:
        anatomy = replace(anatomy, lesions=())
    volume, mask = scan(anatomy, scanner, _generator(seed, scanner, patient, series), slices, rows)
    if scanner.head_first_slice:
        volume, mask = volume[::-1], mask[::-1]
    headers = _headers(scanner, seed=seed, patient=patient, series=series, slices=slices, rows=rows, axes=axes)
    images = folder / f"series-{series}"
    images.mkdir(parents=True, exist_ok=True)
    paths = tuple(images / f"{number:04}.dcm" for number in range(1, slices + 1))
    for path, header, plane in zip(paths, headers, volume, strict=True):
        _add_pixels(header, plane, scanner)
        header.save_as(path, enforce_file_format=True)
    target = truth or (folder / f"series-{series}-seg" / "lesion.dcm" if labelled else None)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        _segmentation(headers, mask, series).save_as(target, enforce_file_format=True)
    return WrittenSeries(paths, target, np.ascontiguousarray(mask))


def _generator(seed: int, scanner: Scanner, patient: int, series: int) -> np.random.Generator:
    return np.random.default_rng([seed, *scanner.name.encode(), patient, series])


def _patient_id(scanner: Scanner, number: int) -> str:
    return f"{scanner.name.upper()}{number:04}"


def _headers(
    scanner: Scanner,
    *,
    seed: int,
    patient: int,
    series: int,
    slices: int,
    rows: int,
    axes: tuple[Vector, Vector],
) -> list[Dataset]:
    """All attributes of the CT image IOD but the pixels, one dataset per slice, in order of instance number."""
    row, column = (np.asarray(axis) for axis in axes)
    normal = np.cross(row, column)
    pixel_mm = scanner.field_of_view_mm / rows
    corner = -(rows - 1) / 2 * pixel_mm * (row + column)
    steps = (np.arange(slices) - (slices - 1) / 2) * scanner.slice_thickness_mm
    if scanner.head_first_slice:
        steps = steps[::-1]
    headers = []
    for number, step in enumerate(steps, start=1):
        header = _header(scanner, seed=seed, patient=patient, series=series, number=number)
        header.Rows = header.Columns = rows
        header.PixelSpacing = [pixel_mm, pixel_mm]
        header.ImageOrientationPatient = [round(float(value), 8) for value in (*row, *column)]
        header.ImagePositionPatient = [round(float(value), 6) for value in corner + step * normal]
        header.SliceLocation = round(float(step), 6)
        headers.append(header)
    return headers


def _header(scanner: Scanner, *, seed: int, patient: int, series: int, number: int) -> Dataset:
    """The attributes that do not depend on the image plane, module by module."""
    identity = _patient_id(scanner, patient)
    source = ["wardround-phantom", scanner.name, str(seed), str(patient)]
    day = datetime.date(2024, 1, 1) + datetime.timedelta(days=patient)
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"

    header.PatientName = f"PHANTOM^{identity}"
    header.PatientID = f"PID-{identity}"
    header.PatientBirthDate = f"19{50 + patient % 40}0{1 + patient % 9}15"
    header.PatientSex = "FM"[patient % 2]

    header.StudyInstanceUID = generate_uid(entropy_srcs=[*source, "study"])
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = day.strftime("%Y%m%d")
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = header.ContentTime = "101500"
    header.ReferringPhysicianName = f"REFERRER^{identity}"
    header.StudyID = f"STUDY-{identity}"
    header.AccessionNumber = f"ACC-{identity}"
    header.StudyDescription = "Abdomen phantom"

    header.Modality = "CT"
    header.SeriesInstanceUID = generate_uid(entropy_srcs=[*source, "series", str(series)])
    header.SeriesNumber = series
    header.SeriesDescription = f"Axial {scanner.kernel}"
    header.PatientPosition = "HFS"
    header.BodyPartExamined = "ABDOMEN"
    header.FrameOfReferenceUID = generate_uid(entropy_srcs=[*source, "frame of reference"])
    header.PositionReferenceIndicator = None
    header.Manufacturer = "Wardround"
    header.ManufacturerModelName = scanner.model
    header.InstitutionName = f"HOSPITAL {scanner.name.upper()}"

    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.InstanceNumber = number
    header.AcquisitionNumber = 1
    header.KVP = 120
    header.ConvolutionKernel = scanner.kernel
    header.SliceThickness = scanner.slice_thickness_mm

    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 0 if scanner.intercept else 1
    header.RescaleIntercept = scanner.intercept
    header.RescaleSlope = scanner.slope
    header.RescaleType = "HU"
    header.WindowCenter = 60
    header.WindowWidth = 360

    header.SOPClassUID = CTImageStorage
    header.SOPInstanceUID = generate_uid(entropy_srcs=[*source, "series", str(series), "image", str(number)])
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return header


def _add_pixels(header: Dataset, plane: Volume, scanner: Scanner) -> None:
    stored = np.rint((plane - scanner.intercept) / scanner.slope)
    kind = "<i2" if header.PixelRepresentation else "<u2"
    header.PixelData = stored.astype(kind).tobytes()


def _segmentation(headers: list[Dataset], mask: Mask, series: int) -> Dataset:
    first = headers[0]
    return write_segmentation(
        headers,
        mask,
        ["lesion"],
        Author("Wardround phantom", kind="MANUAL"),
        created=datetime.datetime.strptime(first.StudyDate + first.StudyTime, "%Y%m%d%H%M%S"),
        series_number=100 + series,
        description="Phantom truth",
        entropy=[first.SeriesInstanceUID],
    )


__all__ = ["AXIAL", "SCANNERS", "Scanner", "WrittenSeries", "write_hospital", "write_study"]
