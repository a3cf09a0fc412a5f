"""Invented photographs of the retina with the truth of their vessels: public images to pretrain on.

No image, label or measurement of a patient went into them. What is drawn is what a textbook says of the fundus: vessels
(simulations/generators/retina_vessels.py), veins darker and wider than arteries, which carry a light reflex. Around
them lies what must not be taken for a vessel: disc edge, nerve fibres, choroid, haemorrhages, exudates, reflections,
and the edge of the field. Eye and camera are drawn anew for every patient, far wider than any clinic's.

Convention: the eye is in degrees of visual angle from the centre of the disc, x towards the temple, y down; the picture
is (y, x) in pixels; colours are red, green, blue in [0, 1].
"""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from simulations.generators.pictures import write_pictures
from simulations.generators.retina_vessels import Camera, Plane, grow, render

Colours = npt.NDArray[np.float32]  # (rows, columns, 3)
Picture = npt.NDArray[np.uint8]

_ABSORPTION = (0.28, 1.0, 0.8)  # of blood for red, green, blue, in relation to green
_MOTTLE = ((18.0, 0.16), (6.0, 0.08), (2.0, 0.06), (0.7, 0.045), (0.25, 0.04))  # degrees, spread


def write_retinas(
    folder: Path,
    *,
    count: int,
    seed: int,
    rows: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `images/0001.png` (colour) and `labels/0001.png` (0 and 255) and so on, one picture a patient.

    Args:
        folder: receives the two folders.
        count: how many patients.
        seed: all follows from it.
        rows: of every picture; columns and field differ from camera to camera.
        progress: called with (patients done, count).
    """

    def draw(rng: np.random.Generator) -> tuple[Picture, Picture]:
        image, label = draw_retina(rng, rows)
        return image, label * np.uint8(255)

    write_pictures(folder, draw, count=count, seed=seed, progress=progress)


def draw_retina(rng: np.random.Generator, rows: int) -> tuple[Picture, Picture]:
    """One eye through one camera.

    Returns:
        Picture (rows, columns, 3), and its vessels (rows, columns), 0 or 1.
    """
    camera = _camera(rng, rows)
    vein, artery = grow(rng, camera)
    inside = camera.field()
    light = _background(rng, camera)
    _add_lesions(rng, camera, light)
    label = np.zeros(inside.shape, dtype=bool)
    patchy = np.exp(0.2 * _noise(rng, camera, 8.0))  # blood shows better in some places than in others
    strength, fade = rng.uniform(0.45, 1.1), rng.uniform(0.35, 0.65)
    for vessels, darkness in ((vein, 1.0), (artery, rng.uniform(0.55, 0.85))):
        reflex = rng.uniform(0.0, 0.35) if vessels is vein else rng.uniform(0.05, 0.9)
        cover, depth, shine = render(vessels, camera, rng.uniform(0.22, 0.45), fade)
        if vessels is vein and rng.random() < 0.5:
            light *= _sheen(rng, camera, cover)[..., None]
        depth *= 1 - reflex * shine
        for channel, absorption in enumerate(_ABSORPTION):
            light[..., channel] *= np.exp(-strength * darkness * absorption * depth * patchy)
        label |= cover >= 0.5
    image = _develop(rng, camera, light, inside)
    label &= inside > 0.5
    if rng.random() < 0.5:  # the other eye
        image, label = image[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(label).astype(np.uint8)


def _camera(rng: np.random.Generator, rows: int) -> Camera:
    columns = round(rows * rng.uniform(0.95, 1.55))
    radius = rng.uniform(0.44, 0.5) * min(columns, rows * 1.48)
    scale = rng.uniform(9.5, 17.0) * rows / 512 * max(1.0, 0.8 * radius / rows + 0.55)
    middle = (rng.uniform(-3.0, 17.0), rng.uniform(-3.0, 3.0))
    shake = rng.uniform(-0.02, 0.02, 2) * rows
    fovea = (rng.uniform(14.0, 16.5), rng.uniform(0.0, 2.5))
    return Camera(rows, columns, scale, fovea, middle, (rows / 2 + shake[0], columns / 2 + shake[1]), radius)


def _background(rng: np.random.Generator, camera: Camera) -> Colours:
    """The retina without vessels: colour, choroid, fovea, nerve fibres and disc."""
    x, y = camera.degrees()
    red = rng.uniform(0.55, 0.85)
    green = red * rng.uniform(0.3, 0.62)
    tone = np.array([red, green, green * rng.uniform(0.2, 0.85)], dtype=np.float32)
    mottle = sum(rng.uniform(0.2, 1.0) * width * _noise(rng, camera, size) for size, width in _MOTTLE)
    stain = rng.uniform(0.0, 0.1) * _noise(rng, camera, 10.0)
    choroid = rng.choice((0.0, 0.06, 0.15)) * rng.random() * _ridges(rng, camera)
    fovea = np.exp(-((x - camera.fovea[0]) ** 2 + (y - camera.fovea[1]) ** 2) / (2 * rng.uniform(1.0, 2.8) ** 2))
    dark = rng.uniform(0.05, 0.4) * fovea
    streaks = _fibres(rng, camera)
    light = np.empty((camera.rows, camera.columns, 3), dtype=np.float32)
    for channel, (weight, of_choroid, of_fovea) in enumerate(((0.7, 1.0, 0.4), (1.0, 0.8, 1.0), (0.9, 0.4, 1.0))):
        warmth = (channel - 1) * stain
        light[..., channel] = tone[channel] * np.exp(
            weight * mottle + warmth + of_choroid * choroid - of_fovea * dark + (0.3 + 0.7 * weight) * streaks
        )
    _add_disc(rng, camera, light)
    return light


def _add_disc(rng: np.random.Generator, camera: Camera, light: Colours) -> None:
    x, y = camera.degrees()
    wide, high = rng.uniform(2.1, 2.9), rng.uniform(2.3, 3.3)
    wobble = 1 + 0.04 * _noise(rng, camera, 3.0)
    far = np.hypot(x / wide, y / high) * wobble
    edge = rng.uniform(0.03, 0.15)
    # A ring of pigment or bare sclera around the disc, strongest on one side.
    ring = np.exp(-(((far - 1.12) / rng.uniform(0.05, 0.2)) ** 2)) * (0.6 + 0.4 * np.tanh(x * rng.choice((-1, 1))))
    light *= (1 + rng.uniform(-0.25, 0.35) * ring)[..., None]
    inside = _within((far - 1) / edge)
    cup_at = rng.uniform(-0.2, 0.3)
    cup = _within((np.hypot(x / wide - cup_at, y / high) - rng.uniform(0.2, 0.6)) / 0.08)
    glow = rng.uniform(1.1, 1.9)
    tone = np.array([1.0, rng.uniform(0.6, 0.9), rng.uniform(0.25, 0.6)], dtype=np.float32)
    base = light.mean(axis=(0, 1)).max() * glow
    disc = base * (1 + rng.uniform(0.05, 0.4) * cup + 0.04 * _noise(rng, camera, 0.8))[..., None] * tone
    light += (inside * rng.uniform(0.6, 1.0))[..., None] * (disc - light)


def _fibres(rng: np.random.Generator, camera: Camera) -> Plane:
    """Streaks of nerve fibres that run out of the disc, bright and dark."""
    strength = rng.choice((0.0, 0.04, 0.12)) * rng.random()
    x, y = camera.degrees()
    far = np.hypot(x, y)
    # Fibres bend with the arcades: towards the temple the angle opens as they go.
    angle = np.arctan2(y, x + 0.015 * y * y)
    table = ndimage.gaussian_filter(rng.standard_normal((360, 24)), (0.8, 1.5), mode=("wrap", "nearest"))
    table /= table.std()
    at = np.stack(np.broadcast_arrays((angle + math.pi) / (2 * math.pi) * 359, far * 1.2))
    value: Plane = ndimage.map_coordinates(table.astype(np.float32), at, order=1, mode="nearest")
    patches = np.clip(0.5 + _noise(rng, camera, 6.0), 0, 2)
    return np.asarray(strength * value * patches * np.exp(-((far / rng.uniform(5.0, 11.0)) ** 2)), dtype=np.float32)


def _ridges(rng: np.random.Generator, camera: Camera) -> Plane:
    """Vessels of the choroid: wide, blurred, lying side by side, brighter or darker than what lies between them."""
    x, y = camera.degrees()
    turn = rng.uniform(0, math.pi)
    bend = rng.uniform(0.5, 2.5) * _noise(rng, camera, 8.0)
    along, across = _turned(x, y, turn)
    table = rng.standard_normal((64, 128)).astype(np.float32)
    size, longer = rng.uniform(0.25, 1.0), rng.uniform(2.0, 8.0)
    at = np.stack(np.broadcast_arrays(along / (size * longer), (across + bend) / size))
    net: Plane = ndimage.map_coordinates(table, at, order=1, mode="grid-wrap")
    if rng.random() < 0.5:
        net = np.exp(-((net / 0.5) ** 2)) * 2 - 1
    where = np.clip(0.4 + _noise(rng, camera, 12.0), 0, 1.5)
    return np.asarray(rng.choice((-1.0, 1.0)) * net * where, dtype=np.float32)


def _sheen(rng: np.random.Generator, camera: Camera, cover: Plane) -> Plane:
    """Factor of the bright reflections that accompany wide vessels in the young."""
    near = ndimage.gaussian_filter(cover, rng.uniform(0.4, 0.9) * camera.scale, truncate=2.5)
    flicker = _noise(rng, camera, 3.0) + 0.5 * _noise(rng, camera, 0.8) + 0.2 * _noise(rng, camera, 0.2)
    hard = rng.uniform(1.0, 4.0)  # some reflections have edges
    return np.asarray(1 + rng.uniform(0.0, 1.5) * near * np.clip(hard * (flicker - 0.5), 0, 1.5), dtype=np.float32)


def _add_lesions(rng: np.random.Generator, camera: Camera, light: Colours) -> None:
    """Haemorrhages, exudates and soft spots, of which most eyes have none or few."""
    ill = rng.random() < 0.5
    for share, tone, sizes in (
        (8, (-0.15, -0.6, -0.5), (0.08, 0.5)),  # haemorrhages and aneurysms
        (12, (0.25, 0.5, 0.4), (0.06, 0.3)),  # exudates, drusen
        (2, (0.2, 0.4, 0.5), (0.4, 1.2)),  # cotton wool
    ):
        clusters = rng.integers(0, 5) if ill else 0
        for _ in range(clusters):
            at = np.array(camera.middle) + rng.normal(0.0, 8.0, 2)
            strength = rng.uniform(0.2, 1.0)
            for _ in range(rng.integers(1, share + 1)):
                x, y = at + rng.normal(0.0, 1.5, 2)
                size = math.exp(rng.uniform(*np.log(sizes)))
                _add_spot(rng, camera, light, at=(x, y), size=size, tone=np.array(tone, dtype=np.float32) * strength)


def _add_spot(
    rng: np.random.Generator, camera: Camera, light: Colours, *, at: tuple[float, float], size: float, tone: Plane
) -> None:
    row, column = camera.pixels(np.float32(at[0]), np.float32(at[1]))  # type: ignore[arg-type]
    reach = math.ceil(3 * size * camera.scale) + 1
    top, left = max(0, int(row) - reach), max(0, int(column) - reach)
    part = light[top : max(0, int(row) + reach), left : max(0, int(column) + reach)]
    if not part.size:
        return
    y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    turn, longer = rng.uniform(0, math.pi), rng.uniform(1.0, 1.8)
    dx, dy = (x - column) / camera.scale / size, (y - row) / camera.scale / size
    u, v = _turned(dx, dy, turn)
    waves = 0.2 * np.sin(3 * np.arctan2(v, u) + rng.uniform(0, 6))
    far = np.hypot(u / longer, v * longer) * (1 + waves)
    part *= np.exp(_within((far - 1) / 0.15)[..., None] * tone)


def _develop(rng: np.random.Generator, camera: Camera, light: Colours, inside: Plane) -> Picture:
    """Illumination, scattered light, blur, sharpening, grain, tone curve, edge of the field, compression."""
    x, y = camera.degrees()
    reach = camera.radius / camera.scale
    right, down = (x - camera.middle[0]) / reach, (y - camera.middle[1]) / reach
    lean, fall = rng.normal(0.0, 0.25, 2), rng.uniform(0.0, 1.0) ** 2 * 1.8
    lamp = np.exp(lean[0] * right + lean[1] * down - fall * (right**2 + down**2) ** rng.uniform(0.8, 2.0))
    lamp = lamp * np.exp(0.1 * _noise(rng, camera, 20.0))
    rim = rng.uniform(-0.3, 0.5) * np.exp(-np.maximum(inside, 0) / (rng.uniform(0.005, 0.05) * camera.rows))
    side = np.clip(right * rng.normal() + down * rng.normal(), 0, 1)
    light = light * (lamp * (1 + rim * side))[..., None]
    haze = rng.uniform(0.0, 0.3) * light[camera.rows // 2, camera.columns // 2].mean()
    light = (light + haze * rng.uniform(0.3, 1.0, 3).astype(np.float32)) * rng.uniform(0.75, 1.25)
    # Edges of the field are sharp in the camera; only the eye is out of focus.
    blur = math.exp(rng.uniform(math.log(0.25), math.log(1.3))) * camera.rows / 512
    light = ndimage.gaussian_filter(light, (blur, blur, 0), truncate=3)
    if rng.random() < 0.4:
        soft = ndimage.gaussian_filter(light, (1.5, 1.5, 0), truncate=2)
        light += rng.uniform(0.2, 1.2) * (light - soft)
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    if rng.random() < 0.7:
        grain = ndimage.gaussian_filter(grain, (0.7, 0.7, 0), truncate=2) * 2
    light += rng.uniform(0.002, 0.025) * np.array([1.0, 0.8, 1.3], dtype=np.float32) * grain
    light = np.clip(light, 0, 1) ** rng.uniform(0.75, 1.3)
    seen, around = _frame(rng, camera, inside)
    light = light * seen[..., None] + around * (1 - seen[..., None])
    picture = (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.8:
        with io.BytesIO() as file:
            Image.fromarray(picture).save(file, "JPEG", quality=int(rng.integers(55, 97)))
            picture = np.asarray(Image.open(file).convert("RGB"))
    return picture


def _frame(rng: np.random.Generator, camera: Camera, inside: Plane) -> tuple[Plane, Colours]:
    """How much of each pixel the field is, 0 to 1, and what lies around it: nearly black."""
    seen = np.clip(inside, 0, 1)
    if rng.random() < 0.4:  # the notch that tells which way up
        turn, size = rng.uniform(0, 2 * math.pi), rng.uniform(0.02, 0.05) * camera.rows
        row = camera.centre[0] + camera.radius * math.sin(turn)
        column = camera.centre[1] + camera.radius * math.cos(turn)
        rows, columns = np.ogrid[: camera.rows, : camera.columns]
        seen = np.maximum(seen, np.clip(size - np.hypot(rows - row, columns - column), 0, 1))
    black = rng.uniform(0.0, 0.07)
    around = black * rng.random((*seen.shape, 1), dtype=np.float32) ** rng.uniform(0.0, 1.0) * np.ones(3, np.float32)
    if rng.random() < 0.4:  # strips that a scanner or a program left along the edges
        for edge in range(4):
            width = int(rng.uniform(0.0, 0.04) * camera.rows) if rng.random() < 0.5 else 0
            strip = np.rot90(around, edge)[:width, int(rng.integers(2) * rng.uniform(0, 0.8) * camera.columns) :]
            strip[...] *= rng.choice((0.0, rng.uniform(0.0, 2.0)))
    return seen, around


def _turned(x: Plane, y: Plane, turn: float) -> tuple[Plane, Plane]:
    """Coordinates along axes that are turned by an angle, radians."""
    return x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)


def _within(far: Plane) -> Plane:
    """1 where the argument is negative, 0 where it is positive, over an edge of about 1."""
    return np.asarray(1 / (1 + np.exp(np.clip(far, -30, 30))))


def _noise(rng: np.random.Generator, camera: Camera, degrees: float) -> Plane:
    """A smooth random field with variance about 1, and structures of a given size."""
    size = max(1.0, degrees * camera.scale)
    shape = (math.ceil(camera.rows / size) + 3, math.ceil(camera.columns / size) + 3)
    coarse = Image.fromarray(rng.standard_normal(shape, dtype=np.float32))
    # The window starts anywhere in the first cell, so that the grid's nodes have no fixed place.
    left, top = rng.uniform(0, 1, 2)
    box = (left, top, left + camera.columns / size, top + camera.rows / size)
    smooth = coarse.resize((camera.columns, camera.rows), Image.Resampling.BICUBIC, box=box)
    return np.asarray(smooth, dtype=np.float32) * np.float32(1.25)
