"""Phantom patients: real DICOM CT series with a DICOM SEG of the truth, for demos, tests and scenarios.

A phantom is an abdomen of ellipsoids in mm: body, liver, stomach, spine, vessels, and one to four lesions in the liver.
A lesion is darker than the liver but as bright as the muscle around it, so no threshold finds it. Three scanners see the
same anatomy with another spacing, slice thickness, sharpness, noise, contrast phase and calibration. Every attribute
that could name a patient is filled with an invented value that is easy to search for (`PHANTOM^A0001`).

Convention: arrays are (z, y, x); x runs to the patient's left, y to the back, z to the head (DICOM's LPS); intensities are
Hounsfield units. The same seed gives the same bytes. Source: DICOM PS3.3 A.3 (CT Image), A.51 (Segmentation).
"""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.segmentation import Author, write_segmentation

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Scanner:
    """How one machine shows the same anatomy."""

    name: str
    model: str
    kernel: str
    field_of_view_mm: float  # edge of the square image
    slice_thickness_mm: float  # and the distance between slices
    blur_mm: float  # width of an edge
    noise_hu: float  # standard deviation
    grain_mm: float  # correlation length of the noise
    contrast: float  # enhancement of organs and lesions, 1.0 for the reference phase
    offset_hu: float  # error of calibration
    slope: float  # HU per stored unit
    intercept: float  # HU at stored 0
    head_first_slice: bool = False  # instance 1 is the topmost slice


SCANNERS: Mapping[str, Scanner] = MappingProxyType(
    {
        "a": Scanner("a", "Phantom One", "B30", 288.0, 5.0, 2.5, 10.0, 2.0, 1.0, 0.0, 1.0, -1024.0),
        "b": Scanner("b", "Phantom Sharp", "B70", 320.0, 4.0, 1.5, 18.0, 1.0, 0.85, 15.0, 1.0, 0.0, True),
        "c": Scanner("c", "Phantom Smooth", "B10", 336.0, 6.0, 3.5, 12.0, 4.0, 1.3, -25.0, 0.5, -1000.0),
    }
)

AXIAL: tuple[Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))

_AIR, _FAT, _MUSCLE, _LIVER = -1000.0, -95.0, 50.0, 115.0  # HU


@dataclass(frozen=True)
class WrittenSeries:
    """One series on disk, with its truth."""

    images: tuple[Path, ...]  # in order of instance number
    segmentation: Path | None
    truth: Mask  # (S, R, C), slice s lies on images[s]


@dataclass(frozen=True)
class _Ellipsoid:
    centre: Vector  # mm, (z, y, x)
    radii: Vector  # mm, (z, y, x) before the turn
    angle: float  # radians, in the axial plane
    hu: float


@dataclass(frozen=True)
class _Anatomy:
    body: _Ellipsoid
    organs: tuple[_Ellipsoid, ...]
    lesions: tuple[_Ellipsoid, ...]


def write_hospital(
    folder: Path,
    *,
    scanner: Scanner,
    patients: int,
    seed: int,
    slices: int = 12,
    rows: int = 128,
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
        progress: called with (patients done, patients).
    """
    written: list[WrittenSeries] = []
    for number in range(1, patients + 1):
        patient = folder / _patient_id(scanner, number)
        for series in (1, 2) if number % 5 == 0 else (1,):
            written.append(
                write_study(
                    patient, scanner=scanner, seed=seed, patient=number, series=series, slices=slices, rows=rows
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
        labelled: False leaves the truth out, as in a study that waits for a prediction.
        truth: where to write the truth instead, such as outside the study.
        axes: directions of a row and of a column in patient space, unit vectors; other than axial for a tilted series.
    """
    anatomy = _draw_anatomy(_generator(seed, scanner, patient, 0), depth_mm=60.0)
    volume, mask = _scan(anatomy, scanner, _generator(seed, scanner, patient, series), slices, rows)
    if scanner.head_first_slice:
        volume, mask = volume[::-1], mask[::-1]
    headers = _headers(scanner, seed, patient, series, slices, rows, axes)
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
    return WrittenSeries(paths, target, mask)


def dice_between(first: Path, second: Path) -> float:
    """Dice of the foreground of two DICOM SEGs of the same images; 1.0 when both are empty."""
    frames, others = _frames(first), _frames(second)
    blank = np.zeros((), dtype=bool)
    overlap = sum(int((mask & others.get(image, blank)).sum()) for image, mask in frames.items())
    total = sum(int(mask.sum()) for mask in (*frames.values(), *others.values()))
    return 2 * overlap / total if total else 1.0


def _generator(seed: int, scanner: Scanner, patient: int, series: int) -> np.random.Generator:
    return np.random.default_rng([seed, *scanner.name.encode(), patient, series])


def _patient_id(scanner: Scanner, number: int) -> str:
    return f"{scanner.name.upper()}{number:04}"


def _draw_anatomy(rng: np.random.Generator, depth_mm: float) -> _Anatomy:
    """Draw a patient: sizes vary by a tenth, positions by some mm, lesions freely within the liver."""
    size = rng.uniform(0.9, 1.08)

    def organ(centre: Vector, radii: Vector, hu: float) -> _Ellipsoid:
        z, y, x = (size * c + rng.normal(0, 3) for c in centre)
        rz, ry, rx = (size * r * rng.uniform(0.92, 1.08) for r in radii)
        return _Ellipsoid((z, y, x), (rz, ry, rx), rng.normal(0, 0.08), hu + rng.normal(0, 5))

    body = organ((0, 0, 0), (900, 92, 122), _MUSCLE)
    liver = organ((0, -6, -46), (75, 58, 56), _LIVER)
    others = (
        organ((0, 58, 0), (900, 20, 19), 320.0),  # spine
        organ((0, 30, 8), (900, 10, 10), 165.0),  # aorta
        organ((0, -22, 50), (60, 34, 34), 25.0),  # stomach, as dark as a lesion
        organ((0, 22, 72), (45, 26, 20), 120.0),  # spleen, as bright as the liver
    )
    vessels = tuple(_draw_inside(rng, liver, (4, 10), +45.0, stretch=4.0) for _ in range(3))
    lesions = tuple(
        _draw_inside(rng, liver, (9, 24), -rng.uniform(55, 105), stretch=1.0, depth_mm=depth_mm)
        for _ in range(rng.integers(1, 5))
    )
    return _Anatomy(body, (*others, liver, *vessels), lesions)


def _draw_inside(
    rng: np.random.Generator,
    organ: _Ellipsoid,
    radius_mm: tuple[float, float],
    difference_hu: float,
    *,
    stretch: float,
    depth_mm: float = 60.0,
) -> _Ellipsoid:
    """Draw an ellipsoid that lies within an organ, its centre within `depth_mm` around the middle slice."""
    radius = rng.uniform(*radius_mm)
    direction = rng.normal(size=2)
    direction *= np.sqrt(rng.random()) / np.linalg.norm(direction)
    reach = [max(r - radius * 1.2, 0.0) for r in organ.radii[1:]]
    centre = (
        float(rng.uniform(-0.4, 0.4) * depth_mm),
        float(organ.centre[1] + direction[0] * reach[0] * 0.85),
        float(organ.centre[2] + direction[1] * reach[1] * 0.85),
    )
    rz, ry, rx = (radius * rng.uniform(0.75, 1.25) for _ in range(3))
    return _Ellipsoid(centre, (rz, ry, rx * stretch), rng.uniform(0, np.pi), organ.hu + difference_hu)


def _scan(
    anatomy: _Anatomy, scanner: Scanner, rng: np.random.Generator, slices: int, rows: int
) -> tuple[Volume, Mask]:
    """See an anatomy with a machine: HU (S, R, C) and lesion mask, feet first."""
    pixel_mm = scanner.field_of_view_mm / rows
    shift = rng.normal(0, 2, size=2)  # the patient never lies twice in the same place
    z = ((np.arange(slices) - (slices - 1) / 2) * scanner.slice_thickness_mm)[:, None, None]
    y = ((np.arange(rows) - (rows - 1) / 2) * pixel_mm - shift[0])[None, :, None]
    x = ((np.arange(rows) - (rows - 1) / 2) * pixel_mm - shift[1])[None, None, :]
    grid = tuple(axis.astype(np.float32) for axis in (z, y, x))
    volume = np.full((slices, rows, rows), _AIR, dtype=np.float32)
    mask = np.zeros(volume.shape, dtype=bool)
    fat = anatomy.body
    muscle = _Ellipsoid(fat.centre, (fat.radii[0], fat.radii[1] - 12, fat.radii[2] - 12), fat.angle, fat.hu)
    _paint(volume, grid, fat, _FAT, scanner)
    for part in (muscle, *anatomy.organs, *anatomy.lesions):
        enhanced = _MUSCLE + (part.hu - _MUSCLE) * scanner.contrast
        inside = _paint(volume, grid, part, enhanced, scanner)
        if part in anatomy.lesions:
            mask |= inside
    volume += _texture(rng, volume.shape, scanner, pixel_mm)
    # Calibration is off for the patient, not for the air around them.
    volume += np.where(volume > -500, np.float32(scanner.offset_hu), np.float32(0))
    return np.clip(volume, -1000, 2000), mask.astype(np.uint8)


def _paint(
    volume: Volume, grid: tuple[Volume, ...], part: _Ellipsoid, hu: float, scanner: Scanner
) -> npt.NDArray[np.bool_]:
    """Blend an ellipsoid into the volume over an edge of the scanner's blur; return the voxels within it."""
    cosine, sine = np.float32(np.cos(part.angle)), np.float32(np.sin(part.angle))
    z, y, x = (axis - np.float32(centre) for axis, centre in zip(grid, part.centre, strict=True))
    rz, ry, rx = (np.float32(radius) for radius in part.radii)
    along, across = (cosine * x + sine * y) / rx, (cosine * y - sine * x) / ry
    level = np.sqrt(along**2 + across**2 + (z / rz) ** 2)
    depth_mm = (1 - level) * min(part.radii)
    share = np.clip(0.5 + depth_mm / np.float32(2 * scanner.blur_mm), 0, 1)
    volume += share * (np.float32(hu) - volume)
    return np.asarray(level <= 1)


def _texture(
    rng: np.random.Generator, shape: tuple[int, ...], scanner: Scanner, pixel_mm: float
) -> npt.NDArray[np.float32]:
    """Noise with the scanner's grain: white noise through a Gaussian, brought back to the stated deviation."""
    white = rng.standard_normal(shape, dtype=np.float32)
    frequency = np.fft.fftfreq(shape[1])[:, None] ** 2 + np.fft.rfftfreq(shape[2])[None, :] ** 2
    sigma = scanner.grain_mm / 2 / pixel_mm
    smooth = np.fft.irfft2(np.fft.rfft2(white) * np.exp(-2 * np.pi**2 * sigma**2 * frequency), s=shape[1:])
    return np.asarray(smooth * (scanner.noise_hu / smooth.std()), dtype=np.float32)


def _headers(
    scanner: Scanner,
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
    return [
        _header(scanner, seed, patient, series, number, rows, pixel_mm, axes, corner + step * normal)
        for number, step in enumerate(steps, start=1)
    ]


def _header(  # noqa: PLR0915  one statement per attribute, in the order of the IOD's modules
    scanner: Scanner,
    seed: int,
    patient: int,
    series: int,
    number: int,
    rows: int,
    pixel_mm: float,
    axes: tuple[Vector, Vector],
    position: npt.NDArray[np.float64],
) -> Dataset:
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
    header.PixelSpacing = [pixel_mm, pixel_mm]
    header.SliceThickness = scanner.slice_thickness_mm
    header.ImageOrientationPatient = [round(float(value), 8) for axis in axes for value in axis]
    header.ImagePositionPatient = [round(float(value), 6) for value in position]
    header.SliceLocation = round(float(np.cross(*np.asarray(axes)) @ position), 6)

    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Rows = header.Columns = rows
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


def _frames(path: Path) -> dict[str, npt.NDArray[np.bool_]]:
    """Foreground by SOP instance UID of the image it lies on."""
    segmentation = pydicom.dcmread(path)
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns) > 0
    frames: dict[str, npt.NDArray[np.bool_]] = {}
    for item, mask in zip(segmentation.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        image = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        frames[image] = frames[image] | mask if image in frames else mask
    return frames
