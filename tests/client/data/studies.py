"""Small studies with known content, written by other libraries than the one under test."""

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from PIL import Image
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.data.read import sources
from client.data.study.study import Reference, Study
from common.config import RunConfig, SiteConfig, SourceConfig, validate

KEY = bytes(range(32))
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def run_config(dims: int = 2, **tables: Any) -> RunConfig:
    """A run on CT with one class; tables replace or add to it."""
    values: dict[str, Any] = {
        "name": "test",
        "model": {"dims": dims},
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [16] * dims},
        "federation": {"rounds": 1},
    }
    return validate(RunConfig, values | tables)


def photo_run(**preprocessing: Any) -> RunConfig:
    """A run on colour photographs with one class."""
    return run_config(data={"modality": "photo", "channels": 3, "classes": ["vessel"]}, preprocessing=preprocessing)


def source(**values: Any) -> SourceConfig:
    """A source; keys in kebab-case or with underscores."""
    return validate(SourceConfig, {key.replace("_", "-"): value for key, value in values.items()})


def site(*sources: SourceConfig, **values: Any) -> SiteConfig:
    """A site with these sources."""
    return SiteConfig(name="site", data=sources, **values)


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    """Write (H, W) or (H, W, 3) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_pair(folder: Path, name: str, shape: tuple[int, int] = (20, 31), mask: np.ndarray | None = None) -> None:
    """A photograph images/NAME.png and its mask labels/NAME.png, a disc of 255 unless given."""
    rng = _rng(folder, name)
    write_picture(folder / "images" / f"{name}.png", rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    if mask is None:
        mask = np.zeros(shape, np.uint8)
        mask[5:15, 8:20] = 255
    write_picture(folder / "labels" / f"{name}.png", mask)


def _rng(folder: Path, name: str) -> np.random.Generator:
    """Other pixels in every study: the same image twice is a duplicate."""
    return np.random.default_rng(zlib.crc32(f"{folder.name}/{name}".encode()))


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Write (i, j, k) voxels with their RAS affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def ct_slices(
    stored: np.ndarray,
    *,
    patient: str = "P1",
    spacing_mm: tuple[float, float, float] = (3.0, 0.8, 0.7),
    orientation: tuple[float, ...] = AXIAL,
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
) -> list[Dataset]:
    """CT slices of one series from stored values (Z, Y, X); slice z lies z steps along the normal."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    slices: list[Dataset] = []
    for z, plane in enumerate(stored):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = patient, f"NAME^{patient}", "19700101", "O"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "101010", "1", "1"
        ds.ReferringPhysicianName, ds.Manufacturer, ds.Modality = "", "", "CT"
        ds.SeriesNumber, ds.InstanceNumber = 1, len(stored) - z  # against the order of position
        ds.ImagePositionPatient = [
            round(float(x), 6) for x in np.array([-10.0, 5.0, 40.0]) + z * spacing_mm[0] * normal
        ]
        ds.ImageOrientationPatient = list(orientation)
        ds.PixelSpacing, ds.SliceThickness = list(spacing_mm[1:]), spacing_mm[0]
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, int(signed)
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        ds.PixelData = plane.astype(np.int16 if signed else np.uint16).tobytes()
        slices.append(ds)
    return slices


def save(folder: Path, datasets: list[Dataset], names: str = "{:03}.dcm") -> None:
    """Write datasets as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ds in enumerate(datasets):
        ds.save_as(folder / names.format(number), enforce_file_format=True)


def segmentation(slices: list[Dataset], masks: dict[str, np.ndarray], kind: str = "BINARY") -> Dataset:
    """A DICOM SEG written by highdicom: segment label -> (Z, Y, X) mask (bool, or [0, 1] when FRACTIONAL)."""
    by_algorithm = AlgorithmIdentificationSequence("test", codes.DCM.ArtificialIntelligence, "1")
    descriptions = [
        SegmentDescription(
            number,
            label,
            codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Lesion,
            "AUTOMATIC",
            algorithm_identification=by_algorithm,
        )
        for number, label in enumerate(masks, start=1)
    ]
    pixels = np.stack(list(masks.values()), axis=-1)
    if kind == "LABELMAP":
        pixels = pixels.astype(np.uint8) @ np.arange(1, len(masks) + 1, dtype=np.uint8)
    return Segmentation(
        slices,
        pixels if kind == "LABELMAP" else pixels.astype(np.float64 if kind == "FRACTIONAL" else np.uint8),
        kind,
        descriptions,
        generate_uid(),
        100,
        generate_uid(),
        1,
        "maker",
        "model",
        "1",
        "serial",
    )


def write_ct(folder: Path, shape: tuple[int, int, int] = (5, 24, 31), **options: Any) -> np.ndarray:
    """A series with one box labelled "Lesion"; returns the mask (Z, Y, X)."""
    rng = _rng(folder, str(shape))
    slices = ct_slices(rng.integers(0, 3000, shape), **options)
    mask = np.zeros(shape, bool)
    mask[1:4, 6:14, 9:20] = True
    save(folder, slices)
    save(folder, [segmentation(slices, {"Lesion": mask})], "seg{}.dcm")
    return mask


def blob(shape: tuple[int, ...]) -> np.ndarray:
    """An ellipsoid that fills the middle of the array, uint8."""
    axes = np.meshgrid(*[np.linspace(-1, 1, edge) for edge in shape], indexing="ij")
    inside: np.ndarray = np.square(axes).sum(axis=0) < 0.36
    return inside.astype(np.uint8)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two binary arrays."""
    return 2 * float(np.logical_and(first, second).sum()) / float(first.sum() + second.sum())


def read_image(where: Path | Reference) -> Study:
    """One study without label, as a prediction reads it; of a path that holds one."""
    if isinstance(where, Path):
        (where,) = sources.find_images(where)
    return sources.read(where, None)


def dice_between(first: Path, second: Path) -> float:
    """Dice of the foreground of two DICOM SEGs of the same images; 1.0 when both are empty."""
    frames, others = _frames(first), _frames(second)
    blank = np.zeros((), dtype=bool)
    overlap = sum(int((mask & others.get(image, blank)).sum()) for image, mask in frames.items())
    total = sum(int(mask.sum()) for mask in (*frames.values(), *others.values()))
    return 2 * overlap / total if total else 1.0


def _frames(path: Path) -> dict[str, npt.NDArray[np.bool_]]:
    """Foreground by SOP instance UID of the image it lies on."""
    segmentation = pydicom.dcmread(path)
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns) > 0
    frames: dict[str, npt.NDArray[np.bool_]] = {}
    for item, mask in zip(segmentation.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        image = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        frames[image] = frames[image] | mask if image in frames else mask
    return frames
