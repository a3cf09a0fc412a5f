"""The images of the gallery: small, generated, always the same, each with the fault that a step is for."""

import numpy as np

from common.preparation import Geometry, Voxels
from simulations.generators.anatomy import SCANNERS, draw_anatomy, scan
from simulations.generators.mammograms import draw_mammogram
from simulations.generators.retina import draw_retina

_ROWS = 160


def ct() -> tuple[Voxels, Geometry]:
    """An abdomen in HU with lesions, (1, 3, Y, X)."""
    scanner = SCANNERS["a"]
    volume, mask = scan(draw_anatomy(np.random.default_rng(6)), scanner, np.random.default_rng(7), 3, _ROWS)
    mm = scanner.field_of_view_mm / _ROWS
    return Voxels(volume[None], mask), Geometry(mask.shape, 1, (scanner.slice_thickness_mm, mm, mm))


def mr() -> tuple[Voxels, Geometry]:
    """The middle of the same body, as brightness without a unit, black around it."""
    voxels, geometry = ct()
    body = voxels.image[:, 1] > -300
    image = np.where(body, voxels.image[:, 1] + 300, 0).clip(0).astype(np.float32)
    label = None if voxels.label is None else voxels.label[1]
    spacing = None if geometry.spacing_mm is None else geometry.spacing_mm[1:]
    return Voxels(image, label), Geometry(image.shape[1:], 1, spacing)


def shaded() -> tuple[Voxels, Geometry]:
    """The same, brighter where a coil lies."""
    voxels, geometry = mr()
    rows, columns = np.mgrid[-1 : 1 : _ROWS * 1j, -1 : 1 : _ROWS * 1j]
    field = np.exp(0.7 * rows - 0.6 * columns).astype(np.float32)
    return Voxels(voxels.image * field, voxels.label), geometry


def noisy() -> tuple[Voxels, Geometry]:
    """The same with noise."""
    voxels, geometry = mr()
    noise = np.random.default_rng(8).normal(0, 25, voxels.image.shape).astype(np.float32)
    return Voxels(voxels.image + noise * (voxels.image > 0), voxels.label), geometry


def speckled() -> tuple[Voxels, Geometry]:
    """The same with voxels that are black or white."""
    voxels, geometry = mr()
    drawn = np.random.default_rng(9).random(voxels.image.shape)
    image = np.where(drawn < 0.02, 0, np.where(drawn > 0.98, 700, voxels.image)).astype(np.float32)
    return Voxels(image, voxels.label), geometry


def broken() -> tuple[Voxels, Geometry]:
    """The same with a spot of no numbers, three dead rows and a dead column."""
    voxels, geometry = mr()
    image = voxels.image.copy()
    image[0, 60:66, 50:58] = np.nan
    image[0, np.random.default_rng(10).random(image.shape[1:]) < 0.004] = np.nan
    image[0, 40] = 650
    image[0, 90] += 250
    image[0, 110] = 0
    image[0, :, 100] -= 200
    return Voxels(image, voxels.label), geometry


def fundus() -> tuple[Voxels, Geometry]:
    """The back of an eye, on [0, 1]; the camera's ground is not quite black."""
    picture, _ = draw_retina(np.random.default_rng(3), _ROWS)
    image = np.moveaxis(picture, -1, 0).astype(np.float32) / 255
    ground = np.random.default_rng(11).uniform(0.02, 0.07, image.shape)
    return Voxels(np.maximum(image, ground).astype(np.float32)), Geometry(image.shape[1:], 3, None)


def film() -> tuple[Voxels, Geometry]:
    """A mammogram with muscle, a label on the film and a circled mass."""
    drawn = draw_mammogram(np.random.default_rng(12), 256)
    return Voxels(drawn.image[None].astype(np.float32), drawn.label), Geometry(drawn.image.shape, 1, (1.0, 1.0))


__all__ = ["broken", "ct", "film", "fundus", "mr", "noisy", "shaded", "speckled"]
