"""Invented masses of the breast, as the BI-RADS atlas names them: shape, margin, density.

Benign ones are mostly round, oval or lobulated, circumscribed, some with a thin dark halo or coarse calcifications.
Malignant ones are mostly irregular, with an ill-defined edge, denser in the middle and with spicules that run out of
them. A share of each kind looks like the other, as in life (radial scars, medullary carcinoma).

Convention: (y, x) in pixels, sizes in mm where the name says so; brightness in [0, 1].
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Plane = npt.NDArray[np.float32]

_LIKE_THE_OTHER = 0.15  # share of each kind that looks like the other


@dataclass(frozen=True)
class Mass:
    """A mass and the circle around it. at: (row, column) of its own middle; row, column, radius: of the circle."""

    row: float
    column: float
    radius: float
    size_mm: float  # mean distance from the middle to the edge
    malignant: bool
    at: tuple[float, float]

    def mirrored(self, columns: int) -> Self:
        """The same on a film that was turned over, left to right."""
        last = columns - 1
        return replace(self, column=last - self.column, at=(self.at[0], last - self.at[1]))


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a mass adds to its film, each (y, x) in a window of it.

    window: rows and columns of the film; light: brightness; halo: how much darker the tissue is just outside;
    cover: how much of a pixel the mass is, 0 to 1; inside: to its edge.
    """

    window: tuple[slice, slice]
    light: Plane
    halo: Plane
    cover: Plane
    inside: npt.NDArray[np.bool_]


def draw_mass(rng: np.random.Generator, shape: tuple[int, ...], mass: Mass, mm: float) -> Drawn:
    """A mass on a film of this shape."""
    looks_malignant = mass.malignant != (rng.random() < _LIKE_THE_OTHER)
    window = _window(shape, mass, mm)
    rows, columns = np.ogrid[window]
    down, right = (rows - mass.at[0]) * mm, (columns - mass.at[1]) * mm
    turn, longer = rng.uniform(0, math.pi), rng.uniform(1.0, 1.35)
    u, v = right * math.cos(turn) + down * math.sin(turn), down * math.cos(turn) - right * math.sin(turn)
    far = np.hypot(u / math.sqrt(longer), v * math.sqrt(longer))
    angle = np.arctan2(v, u)
    edge_mm = mass.size_mm * _outline(rng, angle, irregular=looks_malignant)
    blur_mm = rng.uniform(0.6, 0.18 * mass.size_mm + 0.9) if looks_malignant else rng.uniform(0.2, 0.7)
    cover = 1 / (1 + np.exp(np.clip((far - edge_mm) / blur_mm, -30, 30)))
    # A body thins towards its edge; a malignant one has a core.
    depth = np.clip(1 - (far / edge_mm) ** 2, 0, 1) ** (rng.uniform(0.4, 1.0) if looks_malignant else 0.35)
    light = rng.uniform(0.1, 0.3) * cover * (0.35 + 0.65 * depth)
    halo = np.zeros(far.shape)
    if looks_malignant:
        light += _spicules(rng, far, angle, edge_mm, mass.size_mm)
    elif rng.random() < 0.3:
        halo = rng.uniform(0.05, 0.25) * np.exp(-(((far - edge_mm - 1.0) / 0.7) ** 2))
    if rng.random() < (0.3 if looks_malignant else 0.25):
        light += _calcifications(rng, window, mass, mm, coarse=not looks_malignant)
    texture = ndimage.gaussian_filter(rng.standard_normal(far.shape), rng.uniform(0.6, 2.5) / mm)
    light += rng.uniform(0.0, 0.035) * cover * texture / texture.std()
    planes = [np.asarray(one, np.float32) for one in (light, halo, cover)]
    return Drawn(window, planes[0], planes[1], planes[2], far <= edge_mm)


def add_mass(rng: np.random.Generator, light: Plane, drawn: Drawn) -> Plane:
    """The film with the mass, which lies among the tissue: some of what is before and behind it shows through."""
    film = light.copy()
    tissue = film[drawn.window]
    around = tissue[(drawn.cover > 0.02) & (drawn.cover < 0.5)]
    level = float(around.mean()) if around.size else float(tissue.mean())
    hidden = rng.uniform(0.1, 0.7) * drawn.cover
    film[drawn.window] = (tissue + hidden * (level - tissue)) * (1 - drawn.halo) + drawn.light
    return film


def _window(shape: tuple[int, ...], mass: Mass, mm: float) -> tuple[slice, slice]:
    """All that the mass and its spicules reach."""
    reach = math.ceil((3 * mass.size_mm + 4) / mm)
    down, right = (
        slice(max(0, int(at) - reach), min(edge, int(at) + reach + 1)) for at, edge in zip(mass.at, shape, strict=True)
    )
    return down, right


def _outline(rng: np.random.Generator, angle: Plane, *, irregular: bool) -> Plane:
    """How far the edge is in each direction, 1 on average."""
    edge = np.ones_like(angle)
    waves = range(2, 12) if irregular else range(2, 5)
    strength = rng.uniform(0.12, 0.3) if irregular else rng.uniform(0.0, 0.09)
    for number in waves:
        edge += strength * rng.normal() / math.sqrt(number) * np.cos(number * angle + rng.uniform(0, 2 * math.pi))
    return np.clip(edge, 0.45, 1.8)


def _spicules(rng: np.random.Generator, far: Plane, angle: Plane, edge_mm: Plane, size_mm: float) -> Plane:
    """Thin bright lines that run outwards from the edge, and end."""
    light = np.zeros_like(far)
    strength = rng.uniform(0.06, 0.2)
    for _ in range(rng.integers(7, 26)):
        at, bend = rng.uniform(-math.pi, math.pi), rng.normal(0, 0.25)
        length_mm = size_mm * rng.uniform(0.4, 1.6)
        beyond = far - 0.7 * edge_mm
        aside = (angle - at - bend * beyond / size_mm + math.pi) % (2 * math.pi) - math.pi
        width_mm = rng.uniform(0.3, 0.8)
        line = np.exp(-((aside * far / width_mm) ** 2)) * (np.abs(aside) < math.pi / 2)
        light += strength * rng.uniform(0.4, 1.0) * line * (beyond > 0) * np.clip(1 - beyond / length_mm, 0, 1)
    return np.minimum(light, 2 * strength)


def _calcifications(
    rng: np.random.Generator, window: tuple[slice, slice], mass: Mass, mm: float, *, coarse: bool
) -> Plane:
    """Bright grains: few and coarse, or many and fine."""
    dots = np.zeros([one.stop - one.start for one in window])
    for _ in range(rng.integers(1, 5) if coarse else rng.integers(5, 20)):
        row, column = (
            round(middle - one.start + rng.normal(0, 0.4) * mass.size_mm / mm)
            for middle, one in zip(mass.at, window, strict=True)
        )
        if 0 <= row < dots.shape[0] and 0 <= column < dots.shape[1]:
            dots[row, column] += rng.uniform(0.5, 1.0)
    sigma = rng.uniform(0.5, 1.2) if coarse else rng.uniform(0.15, 0.35)
    spread = ndimage.gaussian_filter(dots, max(sigma / mm, 0.5))
    return np.asarray(rng.uniform(0.1, 0.4) * spread / max(float(spread.max()), 1e-6), dtype=np.float32)


__all__ = ["Drawn", "Mass", "add_mass", "draw_mass"]
