"""Houses and halls: walls with windows, doors and shop fronts, roofs; walls and fences between them.

Own axes: x along the front, y away from it, z up; the front stands on y = 0, its middle at x = 0. Sizes are our choice.
"""

from __future__ import annotations

import itertools

import numpy as np

from clever3d.datasets.geometry import Matrix, rotation_about_z
from clever3d.datasets.synthetic.materials import Color, Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, box, merge, quads, repeat, triangles, tube
from clever3d.datasets.synthetic.truth import CLASSES
from clever3d.datasets.synthetic.vehicles import GLASS

_BUILDING, _WALL, _FENCE = (CLASSES.index(name) for name in ("building", "wall", "fence"))
_WALLS: tuple[tuple[Color, str, float], ...] = (
    ((0.33, 0.14, 0.09), "brick", 1.0), ((0.42, 0.26, 0.16), "brick", 1.0), ((0.55, 0.5, 0.42), "plaster", 4.0),
    ((0.62, 0.52, 0.34), "plaster", 4.0), ((0.5, 0.48, 0.46), "concrete", 3.0), ((0.6, 0.58, 0.55), "plaster", 4.0),
    ((0.48, 0.3, 0.22), "plaster", 4.0), ((0.36, 0.42, 0.44), "plaster", 4.0), ((0.25, 0.1, 0.08), "brick", 1.0),
)  # fmt: skip
_FRAMES: tuple[Color, ...] = ((0.6, 0.6, 0.58), (0.1, 0.08, 0.06), (0.25, 0.27, 0.28), (0.3, 0.18, 0.1))
_ROOFS: tuple[Color, ...] = ((0.22, 0.08, 0.05), (0.09, 0.09, 0.1), (0.16, 0.1, 0.08))
_SIGNS: tuple[Color, ...] = (
    (0.15, 0.02, 0.02),
    (0.02, 0.05, 0.15),
    (0.02, 0.1, 0.05),
    (0.05, 0.05, 0.05),
    (0.18, 0.1, 0.01),
)


def _pick(rng: np.random.Generator, choices: tuple[Color, ...]) -> Color:
    return choices[int(rng.integers(len(choices)))]


def house(rng: np.random.Generator, palette: Palette, width: float, depth: float, storeys: int, shop: bool) -> Mesh:
    """A house of that many storeys; `shop` puts large panes, a sign and an awning on the ground floor."""
    color, tile, tile_size = _WALLS[int(rng.integers(len(_WALLS)))]
    shade = rng.uniform(0.85, 1.15)
    red, green, blue = (round(float(min(c * shade, 0.8)), 3) for c in color)
    wall = palette(Material((red, green, blue), float(rng.choice([0.3, 0.36, 0.42])), tile, tile_size, patches=0.8))
    storey, ground = rng.uniform(2.8, 3.3), rng.uniform(3.0, 3.9) if shop else rng.uniform(2.9, 3.3)
    height = ground + storey * (storeys - 1)
    parts = [_shell(width, depth, height, wall)]
    style = _Windows(rng, palette, ground, storey, storeys)
    for side, (length, turn, shift) in enumerate(
        ((width, 0.0, (0.0, 0.0)), (depth, np.pi / 2, (width / 2, depth / 2)), (width, np.pi, (0.0, depth)),
         (depth, -np.pi / 2, (-width / 2, depth / 2)))
    ):  # fmt: skip
        facade = style.facade(length, shop and side == 0, side == 0)
        parts.append(facade.moved(rotation_about_z(turn), (*shift, 0)))
    plinth = palette(Material((0.22, 0.21, 0.2), 0.3, "concrete", 3.0))
    parts.append(box((width + 0.08, depth + 0.08, 0.9), (0, depth / 2, 0.05), plinth, _BUILDING))
    parts += _roof(rng, palette, width, depth, height, wall, flat=storeys > 3 and rng.random() < 0.6)
    for x in (-width / 2 + 0.3, width / 2 - 0.3):
        parts.append(tube([(x, -0.08, 0), (x, -0.08, height)], 0.05, plinth, _BUILDING, 6, caps=False))
    return merge(parts)


def _shell(width: float, depth: float, height: float, wall: int) -> Mesh:
    """Four walls from 1.5 m below the ground, with texture coordinates that run around them."""
    x, y, low = width / 2, depth, -1.5
    corner = np.array([(-x, 0.0), (x, 0.0), (x, y), (-x, y), (-x, 0.0)])
    run = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corner, axis=0), axis=1))])
    faces, uv = [], []
    for k in range(4):
        a, b = corner[k], corner[k + 1]
        faces.append([(*a, low), (*b, low), (*b, height), (*a, height)])
        uv.append([(run[k], low), (run[k + 1], low), (run[k + 1], height), (run[k], height)])
    return quads(faces, wall, _BUILDING, uv=uv)


class _Windows:
    """The windows of one house: the same for all its sides."""

    def __init__(self, rng: np.random.Generator, palette: Palette, ground: float, storey: float, storeys: int) -> None:
        self.rng, self.palette = rng, palette
        self.levels = [0.95, *(ground + storey * k + 0.85 for k in range(storeys - 1))]
        self.pitch, self.width = rng.uniform(1.9, 3.0), rng.uniform(0.95, 1.45)
        self.height, self.ground = rng.uniform(1.3, 1.7), ground
        self.frame = palette(Material(_pick(rng, _FRAMES), 0.4))
        self.glass = palette(GLASS)
        self.curtain = palette(Material((0.3, 0.28, 0.24), 0.12, mirror=0.1))
        self.sill = palette(Material((0.42, 0.41, 0.39), 0.4, "concrete", 2.0))
        self.balconies = rng.random() < 0.3 and storeys > 2
        self.shutters = palette(Material(_pick(rng, _SIGNS), 0.3, "planks", 0.6)) if rng.random() < 0.25 else -1

    def facade(self, length: float, shop: bool, street: bool) -> Mesh:
        """All that is on a wall which runs along x, outside being -y; `street` for the side with the entrance."""
        count = max(1, int((length - 0.8) / self.pitch))
        xs = (np.arange(count) - (count - 1) / 2) * self.pitch
        entrance = int(self.rng.integers(count)) if street else -1
        parts: list[Mesh] = []
        places = [(float(x), low) for level, low in enumerate(self.levels) for k, x in enumerate(xs)
                  if not (level == 0 and (shop or k == entrance))]  # fmt: skip
        offsets = np.array([(x, 0.0, z) for x, z in places]).reshape(-1, 3)
        curtained = self.rng.random(len(offsets)) < 0.35
        for pane, chosen in ((self.glass, ~curtained), (self.curtain, curtained)):
            window = repeat(self._pane(0, 0, self.width, self.height, pane, 0.03), offsets[chosen])
            parts.append(window.tinted(np.repeat(self.rng.uniform(0.6, 1.5, int(chosen.sum())), 2)))
        parts.append(repeat(self._frame(street), offsets))
        if shop:
            parts += self._shop(length)
        elif street:
            parts += self._door(float(xs[entrance]))
        if street and self.balconies:
            parts.append(repeat(self._balcony(), offsets[(offsets[:, 2] > 2) & (np.arange(len(offsets)) % 2 == 0)]))
        return merge(parts)

    def _pane(self, x: float, z: float, width: float, height: float, material: int, out: float = 0.012) -> Mesh:
        a, b = width / 2, height
        return quads(
            [[(x - a, -out, z), (x + a, -out, z), (x + a, -out, z + b), (x - a, -out, z + b)]], material, _BUILDING
        )

    def _frame(self, sill: bool) -> Mesh:
        """What surrounds a pane whose lower edge has its middle at the origin."""
        w, h, t = self.width, self.height, 0.07
        parts = [
            self._pane(0, -t, w + 2 * t, h + 2 * t, self.frame, 0.018),
            self._pane(0, 0, 0.05, h, self.frame, 0.036),
            self._pane(0, h * 0.68, w, 0.05, self.frame, 0.036),
        ]
        if sill:
            parts.append(box((w + 0.24, 0.2, 0.07), (0, -0.08, -t - 0.03), self.sill, _BUILDING))
            if self.shutters >= 0:
                for sign in (-1, 1):
                    parts.append(
                        box((w / 2, 0.05, h), (sign * (w * 0.76 + 0.08), -0.03, h / 2), self.shutters, _BUILDING)
                    )
        return merge(parts)

    def _balcony(self) -> Mesh:
        w, frame = self.width, self.frame
        parts = [box((w + 1.0, 1.1, 0.14), (0, -0.55, -0.78), self.sill, _BUILDING)]
        for dx, dy, size in ((0, -1.07, (w + 1.0, 0.04, 0.05)), (-w / 2 - 0.48, -0.55, (0.04, 1.1, 0.05)),
                             (w / 2 + 0.48, -0.55, (0.04, 1.1, 0.05))):  # fmt: skip
            parts.append(box(size, (dx, dy, 0.28), frame, _BUILDING))
        bars = [(x, -1.07, -0.22) for x in np.linspace(-w / 2 - 0.45, w / 2 + 0.45, 9)]
        parts.append(repeat(box((0.025, 0.025, 1.0), (0, 0, 0), frame, _BUILDING), bars))
        return merge(parts)

    def _door(self, x: float) -> list[Mesh]:
        leaf = self.palette(Material(_pick(self.rng, _SIGNS), 0.3, "planks", 0.8, mirror=0.03))
        return [
            box((1.0, 0.06, 2.15), (x, -0.02, 1.2), leaf, _BUILDING),
            box((1.3, 0.12, 0.14), (x, -0.05, 2.35), self.frame, _BUILDING),
            box((0.12, 0.12, 2.3), (x - 0.58, -0.05, 1.2), self.frame, _BUILDING),
            box((0.12, 0.12, 2.3), (x + 0.58, -0.05, 1.2), self.frame, _BUILDING),
            box((1.6, 0.5, 0.16), (x, -0.25, 0.1), self.sill, _BUILDING),
        ]

    def _shop(self, length: float) -> list[Mesh]:
        rng, count = self.rng, max(1, int(length / 2.6))
        color = _pick(rng, _SIGNS)
        sign = self.palette(Material(color, 0.35, tile="shop", tile_size=0))
        frame = self.palette(Material(color, 0.3))
        parts = [box((length - 0.3, 0.14, 0.16), (0, -0.03, 0.52), frame, _BUILDING)]
        pitch, top = (length - 0.4) / count, self.ground - 0.75
        for k in range(count):
            x = (k - (count - 1) / 2) * pitch
            parts.append(self._pane(x, 0.55, pitch - 0.12, top - 0.55, self.glass).tinted(rng.uniform(0.8, 2.5)))
            parts.append(box((0.12, 0.12, top), (x - pitch / 2, -0.03, top / 2), frame, _BUILDING))
        z, a = self.ground - 0.7, min(length - 0.6, 5.5) / 2
        board = [(-a, -0.16, z), (a, -0.16, z), (a, -0.16, z + 0.6), (-a, -0.16, z + 0.6)]
        parts.append(quads([board], sign, _BUILDING, uv=[[(0, 0.2), (1, 0.2), (1, 0.8), (0, 0.8)]]))
        parts.append(box((length - 0.3, 0.15, 0.62), (0, -0.08, z + 0.3), frame, _BUILDING))
        if rng.random() < 0.5:
            cloth = self.palette(Material(tuple(min(3 * c, 0.6) for c in color), 0.4, thin=0.2))  # type: ignore[arg-type]
            awning = [
                (-length * 0.45, -1.3, z - 0.45),
                (length * 0.45, -1.3, z - 0.45),
                (length * 0.45, -0.1, z),
                (-length * 0.45, -0.1, z),
            ]
            parts.append(quads([awning], cloth, _BUILDING))
        return parts


def _roof(
    rng: np.random.Generator, palette: Palette, width: float, depth: float, height: float, wall: int, flat: bool
) -> list[Mesh]:
    if flat:
        gravel = palette(Material((0.3, 0.29, 0.28), 0.3, "concrete", 3.0))
        parts = [box((width, depth, 0.2), (0, depth / 2, height), gravel, _BUILDING)]
        for side in (0.0, 1.0):
            parts.append(box((width + 0.3, 0.3, 0.7), (0, side * depth, height + 0.3), gravel, _BUILDING))
            parts.append(box((0.3, depth, 0.7), ((side - 0.5) * width, depth / 2, height + 0.3), gravel, _BUILDING))
        return parts
    tiles = palette(Material(_pick(rng, _ROOFS), 0.32, "roof", 2.4, patches=0.6))
    rise, over = depth / 2 * rng.uniform(0.55, 0.9), 0.45
    x, low = width / 2 + 0.25, height - over * rise / (depth / 2)
    front, ridge, back = (-over, low), (depth / 2, height + rise), (depth + over, low)
    slopes = [
        [(-x, *front), (x, *front), (x, *ridge), (-x, *ridge)],
        [(x, *back), (-x, *back), (-x, *ridge), (x, *ridge)],
    ]
    run = float(np.hypot(depth / 2 + over, rise))
    uv = [[(0, 0), (2 * x, 0), (2 * x, run), (0, run)]] * 2
    parts = [quads(slopes, tiles, _BUILDING, uv=uv)]
    gables = [
        [(s * width / 2, 0, height), (s * width / 2, depth, height), (s * width / 2, depth / 2, height + rise)]
        for s in (1, -1)
    ]
    parts.append(triangles(gables, wall, _BUILDING))
    parts.append(box((2 * x, 0.16, 0.14), (0, -over, low), palette(Material((0.3, 0.3, 0.3), 0.3)), _BUILDING))
    for place in rng.uniform(-0.35, 0.35, 2):
        parts.append(box((0.6, 0.6, 1.6), (place * width, depth * 0.6, height + rise * 0.9), wall, _BUILDING))
    return parts


def hall(rng: np.random.Generator, palette: Palette, width: float, depth: float, height: float) -> Mesh:
    """A supermarket or a workshop: sheet walls, a glass entrance under a wide sign."""
    color = float(rng.uniform(0.35, 0.6))
    sheet = palette(Material((color, color, color * 0.97), 0.45, "steel", 2.0))
    accent = palette(Material(_pick(rng, _SIGNS), 0.35, tile="shop", tile_size=0))
    plain = palette(Material(_pick(rng, _SIGNS), 0.35))
    glass = palette(GLASS)
    parts = [_shell(width, depth, height, sheet), box((width, depth, 0.3), (0, depth / 2, height), plain, _BUILDING)]
    for x in np.arange(-width / 2 + 1, width / 2, 2.0):
        parts.append(box((0.12, 0.1, height), (x, -0.04, height / 2), sheet, _BUILDING))
    for k in range(-4, 5):
        pane = [
            (k * 1.5 - 0.7, -0.1, 0.1),
            (k * 1.5 + 0.7, -0.1, 0.1),
            (k * 1.5 + 0.7, -0.1, 2.9),
            (k * 1.5 - 0.7, -0.1, 2.9),
        ]
        parts.append(quads([pane], glass, _BUILDING))
    parts.append(box((15, 2.4, 0.3), (0, -1.2, 3.2), plain, _BUILDING))
    board = [(-5, -0.2, 3.6), (5, -0.2, 3.6), (5, -0.2, height - 0.3), (-5, -0.2, height - 0.3)]
    parts.append(quads([board], accent, _BUILDING, uv=[[(0, 0.2), (1, 0.2), (1, 0.8), (0, 0.8)]]))
    return merge(parts)


def wall(rng: np.random.Generator, palette: Palette, path: Matrix, height: float) -> Mesh:
    """A garden wall with a coping along a level path [M, 2]."""
    color, tile, tile_size = _WALLS[int(rng.integers(len(_WALLS)))]
    stone, cap = (
        palette(Material(color, 0.36, tile, tile_size)),
        palette(Material((0.4, 0.39, 0.37), 0.38, "concrete", 2)),
    )
    parts = []
    for a, b in itertools.pairwise(path):
        length, yaw = float(np.hypot(*(b - a))), float(np.arctan2(*(b - a)[::-1]))
        piece = [box((length, 0.22, height + 0.4), (length / 2, 0, height / 2 - 0.2), stone, _WALL),
                 box((length, 0.32, 0.08), (length / 2, 0, height + 0.03), cap, _WALL)]  # fmt: skip
        parts.append(merge(piece).moved(rotation_about_z(yaw), (*a, 0)))
    return merge(parts)


def fence(rng: np.random.Generator, palette: Palette, length: float) -> Mesh:
    """A fence along x from 0: pickets, boards or a mesh of steel bars; what is between them shows through."""
    kind, height = rng.choice(["pickets", "boards", "bars"]), rng.uniform(0.9, 1.5)
    wood = palette(
        Material(((0.32, 0.2, 0.11), (0.55, 0.55, 0.52), (0.16, 0.11, 0.08))[int(rng.integers(3))], 0.38, "planks", 0.7)
    )
    steel = palette(Material((0.08, 0.12, 0.09), 0.25))
    material = steel if kind == "bars" else wood
    parts = [box((length, 0.05, 0.07), (length / 2, 0.03, z), material, _FENCE) for z in (0.25, height - 0.2)]
    width, gap = {"pickets": (0.09, 0.17), "boards": (0.14, 0.15), "bars": (0.02, 0.11)}[str(kind)]
    for size, center, places in (
        ((width, 0.025, height), (0, 0, height / 2 + 0.03), np.arange(gap / 2, length, gap)),
        ((0.1, 0.1, height + 0.15), (0, 0.06, height / 2), np.arange(0, length + 0.1, 2.2)),
    ):
        offsets = np.column_stack([places, np.zeros((len(places), 2))])
        parts.append(repeat(box(size, center, material, _FENCE), offsets))
    return merge(parts)
