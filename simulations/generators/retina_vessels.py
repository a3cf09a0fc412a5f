"""Vessel trees of an invented retina: how they grow, and how they look through a camera.

They leave the optic disc in two arcades around the fovea and branch by Murray's law (r0^3 = r1^3 + r2^3; Murray, J Gen
Physiol 1926, with his angles). The widest are grown first, so that they find room.

Convention: the eye is in degrees of visual angle from the centre of the disc, x towards the temple, y down; the picture
is (y, x) in pixels.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count as numbers

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]  # (rows, columns)

_STEP = 0.15  # degrees along a vessel
_CELL = 0.4  # degrees; two vessels of a kind do not share a cell
_WIDE_SHARE = 0.5  # of what vessels cover goes to the widest first
_MARGIN = 3.0  # degrees that vessels are followed beyond the field
_LEAST_SHARE, _MOST_SHARE = 0.08, 0.14  # of the field that vessels cover


@dataclass(frozen=True)
class Camera:
    """Where the eye lies in the picture."""

    rows: int
    columns: int
    scale: float  # pixels in a degree
    fovea: tuple[float, float]  # degrees (x, y)
    middle: tuple[float, float]  # of the field, degrees (x, y)
    centre: tuple[float, float]  # of the field, pixels (y, x)
    radius: float  # of the field, pixels; may reach beyond the picture

    def pixels(self, x: Plane, y: Plane) -> tuple[Plane, Plane]:
        """Degrees (x, y) to pixels (y, x)."""
        return (y - self.middle[1]) * self.scale + self.centre[0], (x - self.middle[0]) * self.scale + self.centre[1]

    def degrees(self) -> tuple[Plane, Plane]:
        """(x, y) of every pixel; rows and columns that broadcast."""
        y, x = np.ogrid[: self.rows, : self.columns]
        across = (x - self.centre[1]) / self.scale + self.middle[0]
        down = (y - self.centre[0]) / self.scale + self.middle[1]
        return across.astype(np.float32), down.astype(np.float32)

    def field(self) -> Plane:
        """How many pixels each pixel lies within the edge of the field."""
        y, x = np.ogrid[: self.rows, : self.columns]
        return (self.radius - np.hypot(y - self.centre[0], x - self.centre[1])).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Vessels:
    """Points along vessels of one kind, `_STEP` apart; arrays (N)."""

    x: Plane
    y: Plane
    heading: Plane  # radians
    radius: Plane  # degrees
    contrast: Plane  # 1 on average


def grow(rng: np.random.Generator, camera: Camera) -> tuple[Vessels, Vessels]:
    """Veins and arteries; arteries are thinner and cover less."""
    inside = camera.field() > 0
    share = rng.uniform(_LEAST_SHARE, _MOST_SHARE)
    area = share * float(inside.sum()) / camera.scale**2  # square degrees
    tortuosity = float(np.exp(rng.normal(-0.1, 0.3)))
    spread = rng.uniform(2.2, 3.2)
    widest = rng.uniform(0.26, 0.4)
    trees = []
    for thinner in (1.0, rng.uniform(0.65, 0.85)):
        tree = _Tree(rng, camera, tortuosity, spread)
        # 1.75 is about what the two factors add up to.
        tree.grow(widest * thinner, area * thinner / 1.75)
        trees.append(tree.vessels())
    return trees[0], trees[1]


def render(vessels: Vessels, camera: Camera, reflex_width: float, fade: float) -> tuple[Plane, Plane, Plane]:
    """Draw every point as a short piece of its vessel; where pieces overlap the strongest counts.

    Returns:
        How much of each pixel is vessel, 0 to 1; how deep the blood is, 1 for a wide vessel's middle; where its reflex
        is, 0 to 1.
    """
    planes = np.zeros((3, camera.rows * camera.columns), dtype=np.float32)
    down, across = camera.pixels(vessels.x, vessels.y)
    radius = vessels.radius * camera.scale
    reach = np.ceil(radius + 1.5).astype(int)
    for size in np.unique(reach):
        chosen = reach == size
        grid = np.arange(-size, size + 1)
        y0, x0 = (np.rint(one[chosen, None, None]).astype(int) for one in (down, across))
        y, x = np.broadcast_arrays(y0 + grid[:, None], x0 + grid)
        dy, dx = y - down[chosen, None, None], x - across[chosen, None, None]
        heading, own = vessels.heading[chosen, None, None], radius[chosen, None, None]
        along, across_it = dx * np.cos(heading) + dy * np.sin(heading), dy * np.cos(heading) - dx * np.sin(heading)
        away = np.hypot(across_it, np.maximum(np.abs(along) - 0.6 * _STEP * camera.scale, 0))
        # A label is at least a pixel wide, as a person draws it.
        cover = np.clip(np.maximum(1.02 * own, 0.5) + 0.5 - away, 0, 1)
        seen = np.clip(own + 0.5 - away, 0, 1) * np.minimum(1, 2 * own)
        chord = np.sqrt(np.clip(1 - (away / (own + 0.3)) ** 2, 0, 1))
        width = vessels.radius[chosen, None, None] / 0.35
        depth = seen * (0.15 + 0.85 * chord) * width**fade * vessels.contrast[chosen, None, None]
        shine = np.exp(-((away / (reflex_width * own)) ** 2)) * np.clip(own - 1.2, 0, 1)
        valid = (y >= 0) & (y < camera.rows) & (x >= 0) & (x < camera.columns)
        where = (y * camera.columns + x)[valid]
        for plane, values in zip(planes, (cover, depth, shine), strict=True):
            np.maximum.at(plane, where, values[valid].astype(np.float32))
    cover, depth, shine = planes.reshape(3, camera.rows, camera.columns)
    return cover, depth, shine


@dataclass(frozen=True, order=True)
class _Bud:
    """Where a vessel is to grow; the widest are grown first, so that they find room."""

    thinness: float
    number: int
    x: float
    y: float
    heading: float
    arcade: float  # for the trunk of an arcade, height of its curve, signed; 0 for other vessels

    @property
    def radius(self) -> float:
        return -self.thinness


class _Tree:
    """All vessels of one kind while they grow."""

    def __init__(self, rng: np.random.Generator, camera: Camera, tortuosity: float, spread: float) -> None:
        self._random = rng
        self._fovea = camera.fovea
        self._tortuosity = tortuosity
        self._spread = spread
        self._middle = camera.middle
        self._reach = camera.radius / camera.scale
        self._heights = (camera.rows / 2 / camera.scale, camera.columns / 2 / camera.scale)
        self._pixel = 1 / camera.scale
        self._thinnest = max(0.04, 0.4 / camera.scale)
        self._points: list[tuple[float, float, float, float, float]] = []
        self._taken: dict[tuple[int, int], int] = {}
        self._buds: list[_Bud] = []
        self._numbers = numbers()
        self._area = 0.0

    def vessels(self) -> Vessels:
        return Vessels(*np.array(self._points, dtype=np.float32).reshape(-1, 5).T)

    def grow(self, widest: float, area: float) -> None:
        """Grow until the vessels in view cover an area, in square degrees."""
        rng = self._random
        for up in (-1, 1):
            x, y = rng.normal(0.0, 0.5, 2)
            arcade = up * self._spread * rng.uniform(0.85, 1.15)
            self._bud(x, y, up * rng.uniform(1.0, 1.7), widest * rng.uniform(0.85, 1.0), arcade)
            nasal = math.pi - up * rng.uniform(0.4, 1.2)
            self._bud(x, y, nasal, widest * rng.uniform(0.5, 0.8))
        for _ in range(rng.integers(1, 5)):
            x, y = rng.normal(0.0, 1.0, 2)
            self._bud(x, y, rng.uniform(-math.pi, math.pi), widest * rng.uniform(0.2, 0.45))
        for _ in range(3000):
            if self._area > area:
                break
            if self._buds and self._area < area * _WIDE_SHARE:
                self._follow(heapq.heappop(self._buds))
            elif self._buds:  # the rest goes to vessels of all widths
                self._follow(self._buds.pop(int(rng.integers(len(self._buds)))))
            else:  # the eye is sparse: more side branches, from wherever a vessel is
                x, y, heading, radius, _ = self._points[rng.integers(len(self._points))]
                aside = heading + rng.choice((-1, 1)) * rng.uniform(0.6, 1.4)
                self._bud(x, y, aside, max(self._thinnest, radius * rng.uniform(0.3, 0.6)))

    def _bud(self, x: float, y: float, heading: float, radius: float, arcade: float = 0.0) -> None:
        heapq.heappush(self._buds, _Bud(-radius, next(self._numbers), float(x), float(y), float(heading), arcade))

    def _follow(self, bud: _Bud) -> None:
        """Follow one vessel to its end; its branches become buds."""
        rng = self._random
        x, y, heading, radius, arcade = bud.x, bud.y, bud.heading, bud.radius, bud.arcade
        contrast = float(np.exp(rng.normal(0.0, 0.25)))
        bends = 0.05 + 0.015 / radius
        bend = 0.0
        life = rng.exponential(6.0) + 1.5
        stop = rng.uniform(0.8, 3.0) if not arcade else 0.0  # degrees from the fovea
        until_branch = self._interval(radius)
        length = 0.0
        jumps = _normals(rng)
        while True:
            # Curvature as an Ornstein-Uhlenbeck process that forgets within a degree.
            bend += -0.15 * bend + 0.5 * bends * self._tortuosity * next(jumps)
            heading += _STEP * (bend + self._pull(x, y, heading, arcade))
            x += _STEP * math.cos(heading)
            y += _STEP * math.sin(heading)
            length += _STEP
            if not self._goes_on(x, y, length, bud.number, stop):
                return
            radius = max(self._thinnest * 0.8, radius * (1 - 0.004 * _STEP))
            self._points.append((x, y, heading, radius, contrast))
            if self._in_view(x, y, 0.0):
                self._area += _STEP * 2 * max(radius, 0.55 * self._pixel)
            until_branch -= _STEP
            if radius <= self._thinnest:
                life -= _STEP
                if life < 0:
                    return
            elif until_branch < 0:
                heading, radius = self._branch(x, y, heading, radius, trunk=arcade != 0)
                until_branch = self._interval(radius)

    def _interval(self, radius: float) -> float:
        return float(self._random.gamma(2.0, 0.9 + 1.5 * radius))

    def _branch(self, x: float, y: float, heading: float, radius: float, *, trunk: bool) -> tuple[float, float]:
        """Bud a branch; heading and radius of the vessel behind it."""
        rng = self._random
        even = rng.random() < (0.15 if trunk else 0.4)
        flow = rng.uniform(0.2, 0.5) if even else rng.uniform(0.01, 0.12)
        side = rng.choice((-1.0, 1.0))
        aside, ahead = radius * flow ** (1 / 3), radius * (1 - flow) ** (1 / 3)
        turn, bent = _angle(radius, aside, ahead), _angle(radius, ahead, aside)
        if aside >= self._thinnest * 0.7:
            self._bud(x, y, heading + side * turn * rng.uniform(0.7, 1.2), max(aside, self._thinnest))
        return heading - side * bent * rng.uniform(0.3, 0.9), ahead

    def _pull(self, x: float, y: float, heading: float, arcade: float) -> float:
        """Curvature towards where vessels go at this place, per degree."""
        to_x, to_y = self._fovea[0] - x, self._fovea[1] - y
        far = math.hypot(to_x, to_y) + 1e-6
        if arcade:
            ahead = max(x, 0.0) + 1.5
            aim, gain = math.atan2(arcade * math.sqrt(ahead) + self._fovea[1] * ahead / 20 - y, ahead - x), 0.25
        elif x > 2 and abs(to_y) < 0.9 * self._spread * math.sqrt(x):
            aim, gain = math.atan2(to_y, to_x), 0.1
        else:
            out = math.hypot(x, y) + 1e-6
            away = 0.7 if x > 0 else 0.0
            aim, gain = math.atan2(y / out - away * to_y / far, x / out - away * to_x / far), 0.06
        return gain * math.sin(aim - heading)

    def _goes_on(self, x: float, y: float, length: float, number: int, stop: float) -> bool:
        if not self._in_view(x, y, _MARGIN) and length > 6:
            return False
        if math.hypot(x, y) > 45 or math.hypot(x - self._fovea[0], y - self._fovea[1]) < stop:
            return False
        cell = (math.floor(x / _CELL), math.floor(y / _CELL))
        owner = self._taken.setdefault(cell, number)
        # The trunks leave the disc in one bundle, and a branch starts in its parent's cell.
        return owner == number or length < 1.0 or math.hypot(x, y) < 3.5

    def _in_view(self, x: float, y: float, margin: float) -> bool:
        right, down = x - self._middle[0], y - self._middle[1]
        high, wide = self._heights
        return (
            abs(down) < high + margin and abs(right) < wide + margin and math.hypot(right, down) < self._reach + margin
        )


def _normals(rng: np.random.Generator) -> Iterator[float]:
    """Normal numbers, drawn many at a time, which is ten times faster."""
    while True:
        yield from rng.normal(size=64).tolist()


def _angle(parent: float, child: float, other: float) -> float:
    """Murray's angle between a vessel and its branch, radians."""
    cosine = (parent**4 + child**4 - other**4) / (2 * parent**2 * child**2)
    return math.acos(min(1.0, max(-1.0, cosine)))


__all__ = ["Camera", "Plane", "Vessels", "grow", "render"]
