"""Features of a marked region, as radiology counted them before networks: grey levels, shape, texture, edge.

Definitions follow the Image Biomarker Standardisation Initiative (Zwanenburg et al., Radiology 2020) where it has them;
co-occurrence and local binary patterns are scikit-image's (Haralick et al., IEEE Trans SMC 1973; Ojala et al., IEEE
TPAMI 2002). Every feature is of ONE region of ONE image: nothing here looks at another patient.

Convention: image (y, x) float32 as prepared for the network; region (y, x) bool; lengths in pixels. Texture is of the
region alone, with its grey levels cut into 16 between its 1st and 99th percentile, so that exposure does not count.
Where the region is a circle that somebody drew, its shape says how large it was drawn and nothing else.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ErrorCode

Image: TypeAlias = NDArray[np.float32]
Region: TypeAlias = NDArray[np.bool_]

LEVELS = 16
DISTANCES = (1, 2, 4)
ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
PROPERTIES = ("contrast", "homogeneity", "energy", "correlation")
PERCENTILES = (10, 25, 50, 75, 90)
PATTERNS = ((8, 1.0), (8, 2.0))  # points, radius

_RING = 4  # pixels on either side of an edge
_SMALLEST = 9  # pixels; less has no texture


def features(image: Image, region: Region) -> dict[str, float]:
    """All features of a region, by name; finite for any region of nine pixels or more.

    Raises:
        DataError: UNSUPPORTED, the image is not flat, or the region is too small.
    """
    if image.ndim != 2 or image.shape != region.shape:
        raise DataError(
            f"features are of flat images with a region of the same size, got {image.ndim} axes. Use a run with "
            "model.dims 2.",
            ErrorCode.UNSUPPORTED,
        )
    if int(region.sum()) < _SMALLEST:
        raise DataError(
            f"a region has {int(region.sum())} pixels, too few for texture; expected {_SMALLEST}. Prepare images "
            "finer, or leave the study out.",
            ErrorCode.UNSUPPORTED,
        )
    image, region = _around(image, region)
    return {
        **first_order(image[region]),
        **shape(region),
        **co_occurrence(quantised(image, region), region),
        **binary_patterns(image, region),
        **edge(image, region),
    }


def first_order(values: Image) -> dict[str, float]:
    """Of the grey levels, wherever they lie. Kurtosis is 3 for a normal distribution; entropy in bits of 16 bins."""
    exact = values.astype(np.float64)
    mean, deviation = float(exact.mean()), float(exact.std())
    shares = np.bincount(_cut(exact), minlength=LEVELS) / len(exact)
    standard = (exact - mean) / deviation if deviation > 0 else np.zeros_like(exact)
    return {
        "mean": mean,
        "deviation": deviation,
        "skewness": float((standard**3).mean()),
        "kurtosis": float((standard**4).mean()),
        "entropy": float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()),
        **{f"percentile-{one}": float(np.percentile(exact, one)) for one in PERCENTILES},
    }


def shape(region: Region) -> dict[str, float]:
    """Of the region. Solidity: the share of its convex hull; roundness: 4 pi area / perimeter squared."""
    from skimage.measure import regionprops  # noqa: PLC0415 - heavy

    (found,) = regionprops(region.astype(np.uint8))
    return {
        "area": float(found.area),
        "eccentricity": float(found.eccentricity),
        "solidity": float(found.solidity),
        "roundness": float(4 * np.pi * found.area / max(float(found.perimeter), 1.0) ** 2),
    }


def quantised(image: Image, region: Region) -> NDArray[np.uint8]:
    """1..16 within the region, 0 without."""
    levels = np.zeros(image.shape, np.uint8)
    levels[region] = _cut(image[region].astype(np.float64)) + 1
    return levels


def co_occurrence(levels: NDArray[np.uint8], region: Region) -> Mapping[str, float]:
    """Haralick's features of pairs that lie both in the region; means over four directions, for each distance."""
    from skimage.feature import graycomatrix, graycoprops  # noqa: PLC0415 - heavy

    counts = graycomatrix(levels * region, DISTANCES, ANGLES, levels=LEVELS + 1, symmetric=True)[1:, 1:]
    pairs = counts.sum(axis=(0, 1), keepdims=True)
    shares = counts / np.maximum(pairs, 1)
    found = {}
    for name in PROPERTIES:
        values = graycoprops(shares, name)
        for place, distance in enumerate(DISTANCES):
            there = values[place][pairs[0, 0, place] > 0]  # a narrow region may have no such pair
            found[f"{name}-{distance}"] = float(there.mean()) if there.size else 0.0
    return found


def binary_patterns(image: Image, region: Region) -> dict[str, float]:
    """Shares of the uniform local binary patterns around the pixels of the region, which turning does not change."""
    from skimage.feature import local_binary_pattern  # noqa: PLC0415 - heavy

    # Whole numbers, as the method wants them: differences of rounding are no texture.
    low, high = float(image.min()), float(image.max())
    grey = np.round((image.astype(np.float64) - low) / max(high - low, 1e-12) * 65535).astype(np.uint16)
    found: dict[str, float] = {}
    for points, radius in PATTERNS:
        codes = local_binary_pattern(grey, points, radius, method="uniform")[region].astype(np.int64)
        shares = np.bincount(codes, minlength=points + 2) / len(codes)
        found |= {f"pattern-{points}-{radius:g}-{code}": float(share) for code, share in enumerate(shares)}
    return found


def edge(image: Image, region: Region) -> dict[str, float]:
    """How the region stands out, how sharply it ends, and whether brightness falls away from its middle.

    contrast: mean within, minus mean of a ring of four pixels around it. sharpness: the mean size of the gradient on
    the edge, in units of the deviation around. radial: the mean cosine between the gradient and the way to the middle,
    weighted by the gradient's size; 1 for a bright disc, near 0 for lines in all directions.
    """
    from scipy import ndimage  # noqa: PLC0415 - heavy

    values = image.astype(np.float64)
    within, without = ndimage.distance_transform_edt(region), ndimage.distance_transform_edt(~region)
    ring = (without > 0) & (without <= _RING)
    rim = ((within > 0) & (within <= 1)) | ((without > 0) & (without <= 1))
    down, right = np.gradient(values)
    size = np.hypot(down, right)
    middle = np.array(ndimage.center_of_mass(region))
    rows, columns = np.indices(image.shape)
    to_middle = np.stack([middle[0] - rows, middle[1] - columns])
    away = np.hypot(*to_middle)
    cosine = (down * to_middle[0] + right * to_middle[1]) / np.maximum(size * away, 1e-12)
    wide = region | ring
    around = values[ring] if ring.any() else values[region]
    deviation = max(float(around.std()), 1e-6)
    return {
        "contrast": float(values[region].mean() - around.mean()),
        "deviation-around": float(around.std()),
        "sharpness": float(size[rim].mean()) / deviation,
        "radial": float((cosine * size)[wide].sum() / max(float(size[wide].sum()), 1e-12)),
    }


def _cut(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """0..15 between the 1st and 99th percentile."""
    low, high = np.percentile(values, (1, 99))
    scaled = (values - low) / max(float(high - low), 1e-12) * LEVELS
    return np.asarray(np.clip(scaled.astype(np.int64), 0, LEVELS - 1))


def _around(image: Image, region: Region) -> tuple[Image, Region]:
    """What the features can see: the region with room for its ring."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    room = 2 * _RING
    part = (
        slice(max(0, rows[0] - room), rows[-1] + room + 1),
        slice(max(0, columns[0] - room), columns[-1] + room + 1),
    )
    return image[part], region[part]


__all__ = ["features"]
