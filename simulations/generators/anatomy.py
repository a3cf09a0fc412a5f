"""An abdomen of ellipsoids, and how three CT scanners see it.

Body, liver, stomach, spleen, spine, vessels, and one to four lesions in the liver. A lesion is darker than the liver
but as bright as the muscle around it, so no threshold finds it. The scanners differ in spacing, slice thickness,
sharpness, noise, contrast phase and calibration. All sizes and intensities are round numbers of the usual order, made
for a network to learn from, not measured on patients.

Convention: arrays are (z, y, x), feet first; lengths in mm around the middle of the image, y to the back, x to the
patient's left; intensities are Hounsfield units.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Vector = tuple[float, float, float]


_AIR, _FAT, _MUSCLE, _LIVER = -1000.0, -95.0, 50.0, 115.0  # HU
_DEPTH_MM = 60.0  # of a series of usual length: lesions lie where the slices are


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
        "d": Scanner("d", "Phantom Late", "B30", 288.0, 5.0, 2.5, 14.0, 2.0, 0.7, 0.0, 1.0, -1024.0),
        "e": Scanner("e", "Phantom Coarse", "B20", 384.0, 5.0, 4.5, 10.0, 5.0, 1.0, -40.0, 1.0, -1024.0),
        "f": Scanner("f", "Phantom Quick", "B50", 304.0, 5.0, 2.0, 26.0, 1.5, 0.9, 10.0, 1.0, -1024.0),
        "g": Scanner("g", "Phantom Early", "B40", 288.0, 3.0, 2.0, 16.0, 1.5, 1.2, 30.0, 1.0, 0.0, True),
        "h": Scanner("h", "Phantom Wide", "B10", 400.0, 6.0, 4.0, 9.0, 4.0, 0.8, 0.0, 0.5, -1000.0),
        "i": Scanner("i", "Phantom Old", "B60", 320.0, 5.0, 3.0, 32.0, 2.5, 1.1, 45.0, 1.0, -1024.0),
    }
)


@dataclass(frozen=True)
class Ellipsoid:
    """A part of the body, of one intensity."""

    centre: Vector  # mm, (z, y, x)
    radii: Vector  # mm, (z, y, x) before the turn
    angle: float  # radians, in the axial plane
    hu: float


@dataclass(frozen=True)
class Anatomy:
    """A patient: later parts lie over earlier ones, lesions over all."""

    body: Ellipsoid
    organs: tuple[Ellipsoid, ...]
    lesions: tuple[Ellipsoid, ...]


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient: sizes vary by a tenth, positions by some mm, lesions freely within the liver."""
    size = rng.uniform(0.9, 1.08)

    def organ(centre: Vector, radii: Vector, hu: float) -> Ellipsoid:
        z, y, x = (size * c + rng.normal(0, 3) for c in centre)
        rz, ry, rx = (size * r * rng.uniform(0.92, 1.08) for r in radii)
        return Ellipsoid((z, y, x), (rz, ry, rx), rng.normal(0, 0.08), hu + rng.normal(0, 5))

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
        _draw_inside(rng, liver, (9, 24), -rng.uniform(55, 105), stretch=1.0) for _ in range(rng.integers(1, 5))
    )
    return Anatomy(body, (*others, liver, *vessels), lesions)


def scan(anatomy: Anatomy, scanner: Scanner, rng: np.random.Generator, slices: int, rows: int) -> tuple[Volume, Mask]:
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
    muscle = Ellipsoid(fat.centre, (fat.radii[0], fat.radii[1] - 12, fat.radii[2] - 12), fat.angle, fat.hu)
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


def _draw_inside(
    rng: np.random.Generator,
    organ: Ellipsoid,
    radius_mm: tuple[float, float],
    difference_hu: float,
    *,
    stretch: float,
) -> Ellipsoid:
    """Draw an ellipsoid that lies within an organ, its centre near the middle slice."""
    radius = rng.uniform(*radius_mm)
    direction = rng.normal(size=2)
    direction *= np.sqrt(rng.random()) / np.linalg.norm(direction)
    reach = [max(r - radius * 1.2, 0.0) for r in organ.radii[1:]]
    centre = (
        float(rng.uniform(-0.4, 0.4) * _DEPTH_MM),
        float(organ.centre[1] + direction[0] * reach[0] * 0.85),
        float(organ.centre[2] + direction[1] * reach[1] * 0.85),
    )
    rz, ry, rx = (radius * rng.uniform(0.75, 1.25) for _ in range(3))
    return Ellipsoid(centre, (rz, ry, rx * stretch), rng.uniform(0, np.pi), organ.hu + difference_hu)


def _paint(
    volume: Volume, grid: tuple[Volume, ...], part: Ellipsoid, hu: float, scanner: Scanner
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
