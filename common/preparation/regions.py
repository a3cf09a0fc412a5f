"""What several steps ask of an image: its planes, its noise, what in it is foreground, and a picture's brightness."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from common.preparation.step import Geometry, Image, Mask

# Values that noise and thresholds are taken from; their sampling error is far below what is told apart with them.
_SAMPLE = 2**20


def planes(image: Image) -> Iterator[tuple[tuple[int, ...], NDArray[np.float32]]]:
    """Each (Y, X) plane of an image (C, *sp), with its place in the axes before them."""
    for place in np.ndindex(image.shape[:-2]):
        plane: NDArray[np.float32] = image[place]
        yield place, plane


def by_plane(image: Image, change: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> Image:
    """The image with each plane of each channel changed by itself."""
    changed = np.empty_like(image)
    for place, plane in planes(image):
        changed[place] = change(plane)
    return changed


def along_axes(width: float, before: Geometry, *, volume: bool) -> tuple[float, ...]:
    """A width in voxels of a row, for each axis of *sp: as many mm along all, where the image knows its spacing.

    No further than the image is long: of voxels 50 mm x 0.005 mm it would be ten thousand times the row's.
    volume: False: nothing along z, so that slices stay apart.
    """
    spacing = before.spacing_mm or (1.0,) * len(before.shape)
    widths = [min(width * spacing[-1] / mm, edge) for mm, edge in zip(spacing, before.shape, strict=True)]
    return tuple(widths) if volume else (*(0.0 for _ in widths[:-2]), *widths[-2:])


def brightness(image: Image) -> NDArray[np.float32]:
    """(*sp) of (C, *sp): the mean over the channels."""
    mean: NDArray[np.float32] = image[0] if len(image) == 1 else image.mean(axis=0, dtype=np.float32)
    return mean


def on_brightness(image: Image, change: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> Image:
    """A picture on [0, 1] with another brightness (the value of HSV, the brightest channel) and its own colours."""
    value = image.max(axis=0)
    changed = np.asarray(change(value), np.float32)
    if len(image) == 1:
        return changed[None]
    gain = np.divide(changed, value, out=np.zeros_like(changed), where=value > 0)
    return np.where(value > 0, image * gain, changed).astype(np.float32)


def otsu(values: NDArray[np.float32]) -> float:
    """The threshold that parts dark from bright best (Otsu, IEEE Trans. Syst. Man Cybern. 1979).

    Of a constant image its value, above which there is nothing.
    """
    from skimage.filters import threshold_otsu  # noqa: PLC0415 - heavy

    return float(threshold_otsu(every_so_often(values).astype(np.float64)))


def stands_out(values: NDArray[np.float32]) -> Mask:
    """What is brighter than Otsu's threshold of the logarithm of brightness: all that is no background, where the dark
    parts of what is shown are hardly brighter than that, and the bright ones much.
    """
    low, high = float(values.min()), float(values.max())
    logarithm = np.log1p(255 * ((values.astype(np.float64) - low) / max(high - low, 1e-6))).astype(np.float32)
    found: Mask = logarithm > otsu(logarithm)
    return found


def every_so_often(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values of an array spread evenly over it, all where there are few."""
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLE) | 1]


def noise(channel: NDArray[np.float32], inside: Mask | None = None) -> float:
    """Standard deviation of the noise of (*sp), in its units, estimated from its planes.

    The difference of two Laplacians takes out what is smooth (Immerkaer, Comput. Vis. Image Underst. 1996); of its
    absolute values the median is taken instead of the mean, which edges would raise, and without the exact zeros, which
    are a background that was set and not measured.
    """
    if min(channel.shape[-2:]) < 3:
        return 0.0
    c = channel.astype(np.float64)
    rows = c[..., :-2, :] - 2 * c[..., 1:-1, :] + c[..., 2:, :]
    left = rows[..., :-2] - 2 * rows[..., 1:-1] + rows[..., 2:]
    seen = np.abs(left if inside is None else left[inside[..., 1:-1, 1:-1]])
    seen = seen[seen > 0]
    return float(np.median(every_so_often(seen)) / (6 * 0.6744897501960817)) if seen.size else 0.0


def largest(mask: Mask) -> Mask:
    """The largest connected part of a mask; of an empty one nothing."""
    from scipy import ndimage  # noqa: PLC0415 - heavy

    numbered, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    found: Mask = numbered == sizes.argmax()
    return found


__all__ = [
    "along_axes",
    "brightness",
    "by_plane",
    "every_so_often",
    "largest",
    "noise",
    "on_brightness",
    "otsu",
    "planes",
    "stands_out",
]
