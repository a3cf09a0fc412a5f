"""Generated MR volumes of a hippocampus, to pretrain a network on images that no patient stands behind.

What is drawn is what an anatomy book tells: a curved grey tube that falls from its tail at the back to a bulkier head
in front, white matter below it, fluid above and beside it, folded cortex and deep grey matter around. Shapes, tissues
and the machine (blur, noise, uneven field) vary from patient to patient far more than in one hospital, so that real
volumes lie among them. Nothing was measured on real images; where on the whole the network failed was looked at.

Convention: a volume is 1 mm, axes (right, anterior, superior) as in NIfTI, labels 1 anterior (head), 2 posterior (body
and tail). The same seed and number give the same volume.
"""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_CSF, _GREY, _WHITE = 0.25, 0.62, 1.0
# Along the tube, from the tail (0) to the end of the head (1): centre across (mm from the middle of the volume, to the
# side of the midline positive) and the two half axes.
_ALONG = np.array([0.0, 0.12, 0.35, 0.58, 0.8, 0.93, 1.0])
_ACROSS_MM = np.array([3.0, 0.0, -4.0, -4.0, -1.5, 0.0, 0.5])
_HALF_WIDTH_MM = np.array([2.5, 4.5, 5.5, 6.0, 8.0, 7.0, 4.0])
_HALF_HEIGHT_MM = np.array([2.0, 3.2, 4.0, 4.6, 5.4, 4.8, 2.5])


def write_hippocampi(
    folder: Path, *, count: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `images/NNNN.nii.gz` and `labels/NNNN.nii.gz`, one volume a patient.

    Args:
        folder: receives the two folders.
        count: volumes; volume n is the same whatever their number.
        seed: all follows from it.
        progress: called with (volumes done, volumes).
    """
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        image, label = draw(np.random.default_rng([seed, number]))
        for name, array in (("images", image), ("labels", label)):
            volume = nibabel.Nifti1Image(array, np.eye(4))  # type: ignore[no-untyped-call]  # nibabel leaves it untyped
            nibabel.save(volume, folder / name / f"{number:04}.nii.gz")
        if progress is not None:
            progress(number, count)


def draw(rng: np.random.Generator) -> tuple[Array, npt.NDArray[np.uint8]]:
    """One volume (R, A, S) float32 and its labels uint8, about 36 x 50 x 36 voxels of 1 mm."""
    shape = tuple(int(edge) for edge in rng.integers((33, 46, 29), (40, 55, 42)))
    x, y, z = (
        axis + _smooth(rng, shape, rng.uniform(5, 9), rng.uniform(0.3, 1.6))
        for axis in np.meshgrid(*(np.arange(edge, dtype=np.float32) - (edge - 1) / 2 for edge in shape), indexing="ij")
    )
    along, level, angle, thickness = _tube(rng, x, y, z)
    distance_mm = (level - 1) * thickness
    uncus = _uncus(rng, x, y, z)
    volume = _surroundings(rng, x, z)
    for _ in range(rng.integers(1, 4)):
        _add_gyrus(rng, volume, x, y, z)
    _coat(rng, volume, distance_mm, angle, along)
    distance_mm = np.minimum(distance_mm, uncus)
    inside = _share(-distance_mm, 0.5)
    # Layers within: a darker band, more grey than the cortex, more at the head.
    grain = _smooth(rng, shape, 1.3, 0.05) + _smooth(rng, shape, 3.0, 0.04)
    grey = np.float32(rng.uniform(0.55, 0.72))
    volume += inside * (grey + grain - volume)
    mask = distance_mm <= 0
    # Head and body part at a coronal plane, where the head's inner bulge ends.
    border_mm = rng.uniform(1.5, 5.5)
    label = np.where(mask, np.where(y > border_mm, 1, 2), 0).astype(np.uint8)
    return _scan(rng, volume), label


def _tube(rng: np.random.Generator, x: Array, y: Array, z: Array) -> tuple[Array, ...]:
    """Place along the tube (0 the tail, 1 the head), level (1 the surface), angle in the cross-section, half height."""
    size = rng.uniform(0.85, 1.12)
    length = 42.0 * size * rng.uniform(0.92, 1.08)
    fall = np.radians(rng.uniform(15, 38))
    yaw = np.radians(rng.uniform(-8, 8))
    centre = rng.normal(0, 1.2, size=3)
    x, y, z = x - centre[0], y - centre[1], z - centre[2] * 0.8
    x, y = np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y
    forward, up = np.cos(fall) * y - np.sin(fall) * z, np.sin(fall) * y + np.cos(fall) * z
    along = forward / length + 0.5
    bend = rng.uniform(0.5, 3.5)
    up = up + bend * (4 * (along - 0.5) ** 2 - 0.5)  # the middle arches upwards, both ends lie lower
    spread = rng.uniform(0.85, 1.2, size=2) * size
    across = x - np.interp(along, _ALONG, _ACROSS_MM * rng.uniform(0.6, 1.3))
    roll = np.radians(rng.uniform(-25, 15))
    across, up = np.cos(roll) * across - np.sin(roll) * up, np.sin(roll) * across + np.cos(roll) * up
    width = np.interp(along, _ALONG, _HALF_WIDTH_MM * spread[0] * rng.uniform(0.93, 1.07, len(_ALONG)))
    height = np.interp(along, _ALONG, _HALF_HEIGHT_MM * spread[1] * rng.uniform(0.93, 1.07, len(_ALONG)))
    beyond = np.maximum(np.abs(along - 0.5) - 0.5, 0) * length / 2.0
    level = np.sqrt((across / width) ** 2 + (up / height) ** 2 + beyond**2)
    return tuple(np.asarray(one, dtype=np.float32) for one in (along, level, np.arctan2(up, across), height))


def _uncus(rng: np.random.Generator, x: Array, y: Array, z: Array) -> Array:
    """Distance in mm from the hook by which the head turns to the midline."""
    centre = rng.normal((5.5, 13.0, -3.5), 1.5)
    radii = rng.uniform((3.0, 3.0, 2.0), (6.0, 6.0, 4.0))
    parts = ((one - middle) / radius for one, middle, radius in zip((x, y, z), centre, radii, strict=True))
    return np.asarray((np.sqrt(sum(part**2 for part in parts)) - 1) * radii.min(), dtype=np.float32)


def _add_gyrus(rng: np.random.Generator, volume: Array, x: Array, y: Array, z: Array) -> None:
    """A fold of the temporal lobe beside the tube and much like it, which is not to be marked."""
    side = rng.uniform(np.pi, 2.2 * np.pi)  # below, or to either side
    away = rng.uniform(10, 18)
    shift_y = rng.normal(0, 8)
    _, level, _, thickness = _tube(rng, x - away * np.cos(side), y - shift_y, z - away * np.sin(side))
    distance_mm = (level - 1) * thickness - rng.uniform(-1.0, 1.5)
    volume += _share(rng.uniform(0.5, 2.5) - distance_mm, 0.5) * (np.float32(rng.uniform(0.9, 1.05)) - volume)
    volume += _share(-distance_mm, 0.5) * (np.float32(rng.uniform(0.55, 0.72)) - volume)
    if rng.random() < 0.5:
        volume += _share(-rng.uniform(1.5, 3.0) - distance_mm, 0.5) * (np.float32(_WHITE) - volume)


def _surroundings(rng: np.random.Generator, x: Array, z: Array) -> Array:
    """Cortex in folds below and to the side, white and deep grey matter above."""
    shape = x.shape
    folds = _smooth(rng, shape, rng.uniform(1.8, 4.0), 1.0)
    gyri = _stack(folds, _quantiles(folds, rng.uniform(0.08, 0.2), rng.uniform(0.45, 0.65)))
    calm = _smooth(rng, shape, rng.uniform(3.5, 6), 1.0)
    deep = np.float32(rng.uniform(0.78, 0.95)) + np.float32(0.08) * calm
    white = np.float32(_WHITE) + np.float32(0.03) * calm
    core = _share(calm - rng.normal(0, 0.6), 0.2)
    above = white + core * (deep - white)
    border = _smooth(rng, shape, 5.0, 3.0)
    upper = _share(z + border - rng.uniform(0, 6), 2.0)
    volume = gyri + upper * (above - gyri)
    # Fluid along the midline, in front and above.
    cistern = _share(x - rng.uniform(7, 16) + border + 0.15 * z, 1.0) * _share(rng.uniform(2, 9) - z, 2.0)
    volume += cistern * rng.uniform(0.3, 1.0) * (np.float32(rng.uniform(0.15, 0.4)) - volume)
    return np.asarray(volume, dtype=np.float32)


def _coat(rng: np.random.Generator, volume: Array, distance_mm: Array, angle: Array, along: Array) -> None:
    """White matter below the tube, fluid in the horn above and to the side of it; both come and go along it."""
    shape = volume.shape
    below = _share(-np.sin(angle + rng.normal(0, 0.3)) - rng.uniform(-0.5, 0.2), 0.25)
    thick = rng.uniform(1.2, 3.5) + _smooth(rng, shape, 4.0, 0.8)
    volume += below * _share(thick - distance_mm, 0.5) * (np.float32(rng.uniform(0.92, 1.05)) - volume)
    rim = _share(rng.uniform(0.6, 1.3) - distance_mm, 0.3) * rng.uniform(0.2, 0.8)  # alveus, a thin bright coat
    volume += rim * (np.float32(_WHITE) - volume)
    side = np.cos(angle - rng.uniform(1.6, 3.2))  # above, or away from the midline
    horn = _share(side - rng.uniform(0.2, 0.8), 0.2) * _share(
        rng.uniform(0.5, 2.8) + _smooth(rng, shape, 4.0, 1.0) + 1.5 * (along - 0.6) - distance_mm, 0.5
    )
    volume += horn * (np.float32(rng.uniform(0.15, 0.35)) - volume)
    inner = np.cos(angle - rng.uniform(0.0, 1.2))  # towards the midline: the cistern
    cistern = _share(inner - rng.uniform(0.3, 0.9), 0.2) * _share(
        rng.uniform(0.3, 2.5) + _smooth(rng, shape, 4.0, 1.0) - distance_mm, 0.5
    )
    volume += cistern * (np.float32(rng.uniform(0.15, 0.4)) - volume)


def _scan(rng: np.random.Generator, volume: Array) -> Array:
    """Contrast, uneven field, blur and noise of a machine."""
    gamma = rng.uniform(0.75, 1.35)
    seen = np.clip(volume, 0.02, None) ** gamma
    seen *= 1 + _smooth(rng, volume.shape, 14.0, rng.uniform(0.02, 0.1))
    seen = _blur(seen, rng.uniform(0.3, 0.7))
    noise = rng.uniform(0.01, 0.06)
    real, imaginary = rng.normal(0, noise, size=(2, *volume.shape))
    return np.asarray(rng.uniform(100, 1000) * np.hypot(seen + real, imaginary), dtype=np.float32)


def _stack(field: Array, levels: tuple[float, float]) -> Array:
    """Fluid, grey and white matter by two levels of a field, blended over an edge."""
    low, high = levels
    grey = np.float32(_GREY)
    volume = np.float32(_CSF) + _share(field - low, 0.15) * (grey - np.float32(_CSF))
    return np.asarray(volume + _share(field - high, 0.15) * (np.float32(_WHITE) - grey), dtype=np.float32)


def _quantiles(field: Array, low: float, high: float) -> tuple[float, float]:
    first, second = np.quantile(field, (low, high))
    return float(first), float(second)


def _share(depth: Array, edge: float) -> Array:
    """0 outside, 1 inside, over an edge of twice this width."""
    return np.asarray(np.clip(0.5 + depth / (2 * edge), 0, 1), dtype=np.float32)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float, deviation: float) -> Array:
    """A smooth random field of this deviation; sigma in voxels."""
    field = _blur(rng.standard_normal(shape, dtype=np.float32), sigma)
    return np.asarray((field - field.mean()) * (deviation / field.std()), dtype=np.float32)


def _blur(field: Array, sigma: float) -> Array:
    """Through a Gaussian, with the volume continued by itself."""
    frequencies = np.meshgrid(
        *(np.fft.fftfreq(edge) for edge in field.shape[:-1]), np.fft.rfftfreq(field.shape[-1]), indexing="ij"
    )
    kernel = np.exp(-2 * np.pi**2 * sigma**2 * sum(one**2 for one in frequencies))
    return np.asarray(
        np.fft.irfftn(np.fft.rfftn(field) * kernel, s=field.shape, axes=range(field.ndim)), dtype=np.float32
    )


__all__ = ["draw", "write_hippocampi"]
