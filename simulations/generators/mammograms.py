"""Invented mammograms with circles around benign and malignant masses: public images to pretrain on.

No pixel, label or measured number of a patient went into them. What is drawn is what a textbook of mammography says: a
breast on the chest wall, bright muscle in the upper corner, fat with strands, gland behind the nipple, vessels. Masses
are drawn in `simulations.generators.mammogram_masses`: a benign one is mostly round with a smooth edge, a malignant one
mostly irregular with spicules, and enough of both are otherwise. Breast and machine vary far more than in one archive.

Convention: a film is (y, x), 0.4 mm a pixel at 512 rows; labels 1 benign, 2 malignant, drawn as circles around the
masses, as a radiologist's rough mark is. The same seed and number give the same film.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from simulations.generators.mammogram_masses import Mass, add_mass, draw_mass
from simulations.generators.pictures import write_pictures

Plane = npt.NDArray[np.float32]

BENIGN, MALIGNANT = 1, 2

_HEIGHT_MM = 205.0
_MOST_TRIES = 40


@dataclass(frozen=True, eq=False)
class Film:
    """One generated film. image: (y, x) uint8; truth: (y, x) uint8, the masses to their edges."""

    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]
    masses: tuple[Mass, ...]

    @property
    def label(self) -> npt.NDArray[np.uint8]:
        """(y, x) uint8: the circles."""
        rows, columns = np.ogrid[: self.image.shape[0], : self.image.shape[1]]
        label = np.zeros(self.image.shape, np.uint8)
        for mass in self.masses:
            inside = np.hypot(rows - mass.row, columns - mass.column) <= mass.radius
            label[inside] = MALIGNANT if mass.malignant else BENIGN
        return label


def write_mammograms(
    folder: Path,
    *,
    count: int,
    seed: int,
    rows: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `images/0001.png` and `labels/0001.png` (0, 1 benign, 2 malignant) and so on, one film a patient.

    Args:
        folder: receives the two folders.
        count: how many patients.
        seed: all follows from it.
        rows: of every film; columns differ.
        progress: called with (patients done, count).
    """

    def draw(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        film = draw_mammogram(rng, rows)
        return film.image, film.label

    write_pictures(folder, draw, count=count, seed=seed, progress=progress)


def draw_mammogram(rng: np.random.Generator, rows: int = 512) -> Film:
    """One film with one to three masses, of either kind with equal chance."""
    shape = rows, round(rows * rng.uniform(0.7, 1.0))
    mm = _HEIGHT_MM / rows
    inside, depth_mm = _breast(rng, shape, mm)
    light = _tissue(rng, inside, depth_mm, mm)
    truth = np.zeros(shape, np.uint8)
    masses: list[Mass] = []
    for _ in range(rng.choice((1, 2, 3), p=(0.5, 0.35, 0.15))):
        mass = _place(rng, depth_mm, masses, mm)
        if mass is not None:
            drawn = draw_mass(rng, shape, mass, mm)
            truth[drawn.window][drawn.inside] = MALIGNANT if mass.malignant else BENIGN
            light = add_mass(rng, light, drawn)
            masses.append(mass)
    image = _expose(rng, np.where(inside, light, 0), inside, mm)
    if rng.random() < 0.5:  # the other breast
        image, truth = image[:, ::-1], truth[:, ::-1]
        masses = [mass.mirrored(shape[1]) for mass in masses]
    return Film(np.ascontiguousarray(image), np.ascontiguousarray(truth), tuple(masses))


def noise(rng: np.random.Generator, shape: tuple[int, ...], slope: float, largest: float) -> Plane:
    """A random field of deviation 1 whose power falls with frequency to this slope; nothing wider than `largest`.

    Breast texture has a slope of about 3 (Burgess, Medical Physics 1999).
    """
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency = np.hypot(frequency, 1 / largest)  # flat below
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * frequency ** (-slope / 2)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=shape)
    return np.asarray(field / field.std(), dtype=np.float32)


def _breast(rng: np.random.Generator, shape: tuple[int, int], mm: float) -> tuple[npt.NDArray[np.bool_], Plane]:
    """Where the breast is, the chest wall at the left edge, and how far from the skin, mm."""
    rows, columns = shape
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    middle, half = rows * rng.uniform(0.42, 0.58), rows * rng.uniform(0.36, 0.52)
    reach = columns * rng.uniform(0.45, 0.9)
    up = np.clip(np.abs(y - middle) / half, 0, 1)
    edge = reach * (1 - up ** rng.uniform(1.8, 3.2)) ** rng.uniform(0.4, 0.7)
    wander = ndimage.gaussian_filter1d(rng.standard_normal(rows), rows / 12, mode="nearest")
    edge *= 1 + 0.05 * (wander / max(float(wander.std()), 1e-6))[:, None]
    nipple = np.exp(-(((y - middle - rows * rng.normal(0, 0.03)) / (rng.uniform(3, 6) / mm)) ** 2))
    edge += rng.uniform(0, 7) / mm * nipple
    inside = x < edge
    outside_of_chest = np.pad(inside, ((1, 1), (0, 1)))  # skin everywhere but at the chest wall
    return inside, np.asarray(ndimage.distance_transform_edt(outside_of_chest)[1:-1, :-1] * mm, dtype=np.float32)


def _tissue(rng: np.random.Generator, inside: npt.NDArray[np.bool_], depth_mm: Plane, mm: float) -> Plane:
    """Brightness without masses: fat, strands, gland, skin, vessels and muscle."""
    shape = inside.shape
    rows, columns = shape
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * np.float32(mm)
    thick = 1 - np.exp(-depth_mm / rng.uniform(6, 18))  # the breast thins towards the skin
    light = thick * rng.uniform(0.18, 0.34) + 0.03
    light += thick * rng.uniform(0.015, 0.05) * noise(rng, shape, rng.uniform(2.2, 3.2), 30 / mm)
    for width in (25, 10):  # strands: where a field passes through zero
        field = noise(rng, shape, 4.0, width / mm)
        light += thick * rng.uniform(0.01, 0.06) * np.exp(-((field / rng.uniform(0.05, 0.15)) ** 2))
    # Gland: denser behind the nipple, in lobes; from nearly none (fatty) to nearly all (dense).
    far = (x[inside].max(), float(y[inside].mean())) if inside.any() else (0.0, 0.0)
    spread = rng.uniform(20, 60), rng.uniform(20, 55)
    behind = np.exp(-(((x - far[0] * rng.uniform(0.35, 0.8)) / spread[0]) ** 2) - ((y - far[1]) / spread[1]) ** 2)
    lobes = noise(rng, shape, rng.uniform(3.2, 4.4), rng.uniform(15, 45) / mm)
    dense = 1 / (1 + np.exp(-(3.5 * behind + lobes - rng.uniform(0.8, 3.6)) / rng.uniform(0.35, 1.0)))
    light += thick * dense * (rng.uniform(0.12, 0.4) + 0.04 * noise(rng, shape, rng.uniform(2.6, 3.4), 8 / mm))
    light += rng.uniform(0.02, 0.15) * np.exp(-((depth_mm / rng.uniform(0.8, 2.0)) ** 2))  # skin
    for _ in range(rng.integers(0, 6)):
        light += thick * _vessel(rng, x, y)
    return _with_muscle(rng, light, x, y, mm)


def _vessel(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A long bright line that bends."""
    turn, bend = rng.uniform(-0.9, 0.9), rng.uniform(-0.004, 0.004)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    middle = rng.uniform(20, 180) + bend * along**2 + rng.uniform(0, 4) * np.sin(along / rng.uniform(8, 25))
    line = np.exp(-(((across - middle) / rng.uniform(0.5, 1.3)) ** 2))
    return np.asarray(rng.uniform(0.02, 0.12) * line, dtype=np.float32)


def _with_muscle(rng: np.random.Generator, light: Plane, x: Plane, y: Plane, mm: float) -> Plane:
    """The pectoral muscle: bright, striped, in the upper corner at the chest wall; not on every film."""
    if rng.random() < 0.15:
        return light
    wide, high = rng.uniform(25, 70), rng.uniform(60, 150)
    bulge = rng.uniform(-6, 10) * np.sin(np.pi * np.clip(y / high, 0, 1))
    edge_mm = (wide * (1 - y / high) + bulge - x) * high / np.hypot(wide, high)
    inside = 1 / (1 + np.exp(-np.clip(edge_mm / rng.uniform(0.4, 2.0), -30, 30)))
    stripes = ndimage.gaussian_filter(rng.standard_normal(light.shape), (8 / mm, 0.8 / mm), mode="nearest")
    level = light * rng.uniform(0.2, 0.6) + rng.uniform(0.3, 0.5) + 0.02 * stripes / stripes.std()
    return np.asarray(light + inside * (np.maximum(level, light) - light), dtype=np.float32)


def _place(rng: np.random.Generator, depth_mm: Plane, others: list[Mass], mm: float) -> Mass | None:
    """Where a mass lies and how it is circled; both kinds alike, so that size and place tell nothing.

    None: the breast has no room for it.
    """
    size_mm = np.exp(rng.uniform(np.log(3.5), np.log(20)))
    radius = size_mm / mm * rng.uniform(1.05, 1.5)
    enough_mm = min(size_mm + 2, 0.7 * float(depth_mm.max()))
    room = np.argwhere(depth_mm > enough_mm)
    room = room[room[:, 1] * mm > min(0.7 * size_mm, 0.5 * room[:, 1].max() * mm)]  # a little may lie beyond the film
    for _ in range(_MOST_TRIES):
        at = room[rng.integers(len(room))]
        row, column = (float(one) for one in at)
        if all(np.hypot(row - one.row, column - one.column) > radius + one.radius + 3 for one in others):
            shift = rng.uniform(-0.1, 0.1, 2) * radius  # nobody marks the very middle
            centre = row + shift[0], column + shift[1]
            return Mass(*centre, radius, size_mm, bool(rng.random() < 0.5), at=(row, column))
    return None


def _expose(rng: np.random.Generator, light: Plane, inside: npt.NDArray[np.bool_], mm: float) -> npt.NDArray[np.uint8]:
    """Blur, tone curve, grain, dust; a dark surround with what is printed on it."""
    light = ndimage.gaussian_filter(light, rng.uniform(0.1, 0.35) / mm)
    light = np.clip(light, 0, None) ** rng.uniform(0.75, 1.35)
    light *= rng.uniform(0.6, 1.0) / max(float(np.quantile(light[inside], 0.99)), 1e-3)
    light += rng.uniform(0.0, 0.08) + np.where(inside, 0, rng.uniform(0.0, 0.03))
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(grain, rng.uniform(0.0, 0.8))
    light += rng.uniform(0.004, 0.02) * grain / grain.std()
    for _ in range(rng.integers(0, 5)):  # dust
        row, column = rng.integers(light.shape[0]), rng.integers(light.shape[1])
        light[row : row + 2, column : column + 2] += rng.uniform(0.1, 0.5)
    rows, columns = light.shape
    if rng.random() < 0.6:  # the plate with side and view, beside the breast
        high, wide = int(rows * rng.uniform(0.04, 0.12)), int(columns * rng.uniform(0.06, 0.18))
        top, left = int(rng.uniform(0.02, 0.15) * rows), columns - wide - int(rng.uniform(0.0, 0.05) * columns)
        free = ~inside[top : top + high, left : left + wide]
        light[top : top + high, left : left + wide][free] = rng.uniform(0.5, 1.0)
    return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)


__all__ = ["BENIGN", "MALIGNANT", "Film", "draw_mammogram", "noise", "write_mammograms"]
