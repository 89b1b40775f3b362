"""The ground: gently rolling land, roads that bend, and surfaces laid out on a grid along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.materials import Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, fan, loft, merge, quads
from clever3d.datasets.synthetic.truth import CLASSES

#: Height of kerbs in metres, and how far paint lies above the road: enough for single precision at 200 m.
KERB, PAINT = 0.12, 0.008


class Land:
    """Rolling land: height over the world's x and y. Slopes stay below 2 %, so what stands on it stands upright."""

    def __init__(self, rng: np.random.Generator) -> None:
        wavelengths, heights = np.array([310.0, 190.0, 120.0]), np.array([0.5, 0.22, 0.09]) * rng.uniform(0.4, 1.0)
        angle = rng.uniform(0, 2 * np.pi, 3)
        self.waves = np.stack([np.cos(angle), np.sin(angle)]) * 2 * np.pi / wavelengths  # [2, 3]
        self.heights, self.phases = heights, rng.uniform(0, 2 * np.pi, 3)
        angle = rng.uniform(0, 2 * np.pi, 4)
        self.bumps = np.stack([np.cos(angle), np.sin(angle)]) * 2 * np.pi / np.array([23.0, 13.0, 7.0, 4.1])
        self.bump_phases = rng.uniform(0, 2 * np.pi, 4)

    def height(self, xy: ArrayLike) -> Matrix:
        """Metres [...] at [..., 2]."""
        z: Matrix = np.sin(np.asarray(xy, dtype=np.float64) @ self.waves + self.phases) @ self.heights
        return z

    def slope(self, xy: Matrix) -> Matrix:
        """The gradient [2] at [2]."""
        gradient: Matrix = self.waves @ (np.cos(xy @ self.waves + self.phases) * self.heights)
        return gradient

    def roughness(self, xy: Matrix) -> Matrix:
        """Unevenness of meadows [...] at [..., 2], between -1 and 1, added to the height away from what is paved."""
        z: Matrix = np.sin(xy @ self.bumps + self.bump_phases) @ np.array([0.45, 0.28, 0.17, 0.1])
        return z


@dataclass(frozen=True, eq=False)
class Course:
    """Coordinates along a road: s metres along its middle line, l metres to the left of it."""

    origin: Matrix
    table: Matrix  # [K, 4]: s, x, y, heading

    @classmethod
    def bending(cls, begin: float, end: float, bend: float, wavelength: float, phase: float) -> Course:
        """Through the world's origin along x at s = 0, with a heading that swings by `bend` radians."""
        s = np.arange(begin, end + 1.0)
        heading = bend * (np.sin(2 * np.pi * s / wavelength + phase) - np.sin(phase))
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=1)
        xy = np.concatenate([np.zeros((1, 2)), np.cumsum((steps[:-1] + steps[1:]) / 2, axis=0)])
        zero = int(np.argmin(np.abs(s)))
        return cls(np.zeros(2), np.column_stack([s, xy - xy[zero], heading]))

    @classmethod
    def straight(cls, origin: ArrayLike, heading: float) -> Course:
        """Along a straight line."""
        s = np.array([-1000.0, 1000.0])
        start = np.asarray(origin, dtype=np.float64)
        xy = start + s[:, None] * [np.cos(heading), np.sin(heading)]
        return cls(start, np.column_stack([s, xy, np.full(2, heading)]))

    def heading(self, s: ArrayLike) -> Matrix:
        """Radians [...]."""
        turned: Matrix = np.interp(np.asarray(s, dtype=np.float64), self.table[:, 0], self.table[:, 3])
        return turned

    def __call__(self, s: ArrayLike, l: ArrayLike) -> Matrix:  # noqa: E741
        """World xy [..., 2]."""
        along, left = np.broadcast_arrays(np.asarray(s, dtype=np.float64), np.asarray(l, dtype=np.float64))
        heading = self.heading(along)
        x = np.interp(along, self.table[:, 0], self.table[:, 1]) - left * np.sin(heading)
        y = np.interp(along, self.table[:, 0], self.table[:, 2]) + left * np.cos(heading)
        return np.stack([x, y], axis=-1)


@dataclass(frozen=True)
class Surface:
    """One kind of ground: height above the land, material, class, and whether it is a meadow."""

    height: float
    material: Material
    label: str
    rough: bool = False


_ASPHALT = Material((0.085, 0.085, 0.088), 0.19, "asphalt", 2.2, patches=1.4)
SURFACES = {
    "road": Surface(0.0, _ASPHALT, "road"),
    "cycle": Surface(0.0, Material((0.2, 0.07, 0.05), 0.24, "asphalt", 2.0, patches=1.0), "road"),
    "shoulder": Surface(0.0, Material((0.12, 0.118, 0.115), 0.22, "asphalt", 2.6, patches=1.2), "road"),
    "parking": Surface(0.0, Material((0.17, 0.16, 0.155), 0.26, "cobbles", 1.6, patches=1.0), "parking"),
    "bays": Surface(0.0, Material((0.12, 0.12, 0.122), 0.22, "asphalt", 2.4, patches=1.4), "parking"),
    "sidewalk": Surface(KERB, Material((0.31, 0.3, 0.285), 0.33, "paving", 1.6, patches=0.9), "sidewalk"),
    "kerb": Surface(KERB, Material((0.42, 0.41, 0.39), 0.36, "concrete", 2.0, patches=0.8), "sidewalk"),
    "path": Surface(KERB, Material((0.33, 0.28, 0.2), 0.34, "soil", 2.5, patches=1.0), "sidewalk"),
    "verge": Surface(KERB - 0.02, Material((0.085, 0.125, 0.035), 0.38, "grass", 1.3, patches=1.6), "terrain"),
    "lawn": Surface(KERB - 0.03, Material((0.075, 0.12, 0.03), 0.4, "grass", 1.5, patches=2.0), "terrain", rough=True),
    "soil": Surface(KERB - 0.03, Material((0.16, 0.115, 0.075), 0.3, "soil", 2.0, patches=1.4), "terrain", rough=True),
    "field": Surface(KERB - 0.06, Material((0.13, 0.14, 0.05), 0.36, "grass", 2.6, patches=2.4), "terrain", rough=True),
}
MARKING = Material((0.62, 0.62, 0.6), 0.62, "worn", 1.2)


class Paver:
    """Lays surfaces and paint on the land along courses."""

    def __init__(self, land: Land, palette: Palette) -> None:
        self.land, self.palette = land, palette

    def lay(self, course: Course, s_lines: ArrayLike, l_lines: ArrayLike, kinds: NDArray[np.str_]) -> Mesh:
        """Cells between lines along s and l; kinds [len(s_lines) - 1, len(l_lines) - 1] are names in SURFACES or "".

        Between cells of different height stands a kerb.
        """
        s, left = np.asarray(s_lines, dtype=np.float64), np.asarray(l_lines, dtype=np.float64)
        xy = course(s[:, None], left[None, :])  # [S, L, 2]
        z, uv = self.land.height(xy), np.stack(np.broadcast_arrays(s[:, None], left[None, :]), axis=-1)
        rough = self._rough_corners(kinds) * self.land.roughness(xy)  # [S, L]
        parts = []
        heights = np.full(kinds.shape, np.nan)
        for name in np.unique(kinds):
            if not name:
                continue
            surface = SURFACES[str(name)]
            heights[kinds == name] = surface.height
            i, j = np.nonzero(kinds == name)
            corner = np.stack([i, i + 1, i + 1, i]), np.stack([j, j, j + 1, j + 1])  # [4, Q] each
            level = z[corner] + surface.height + (0.22 * rough[corner] if surface.rough else 0)
            points = np.concatenate([xy[corner], level[..., None]], axis=-1).transpose(1, 0, 2)
            label = CLASSES.index(surface.label)
            parts.append(quads(points, self.palette(surface.material), label, uv=uv[corner].transpose(1, 0, 2)))
        for axis in (0, 1):
            parts += self._kerbs(xy, z, heights, kinds, axis)
        return merge(parts)

    def _rough_corners(self, kinds: NDArray[np.str_]) -> Matrix:
        """1 at grid corners all of whose cells are meadows, 0 elsewhere and at the rim: [S, L]."""
        names = [name for name, surface in SURFACES.items() if surface.rough]
        meadow = np.pad(np.isin(kinds, names), 1)
        return np.asarray(meadow[:-1, :-1] & meadow[1:, :-1] & meadow[:-1, 1:] & meadow[1:, 1:], dtype=np.float64)

    def _kerbs(self, xy: Matrix, z: Matrix, heights: Matrix, kinds: NDArray[np.str_], axis: int) -> list[Mesh]:
        """Upright faces between neighbours along `axis` that differ in height, each belonging to the higher one."""
        rows = (slice(None, -1), slice(1, None))
        before, after = ((row,) if axis == 0 else (slice(None), row) for row in rows)
        one, other = heights[before], heights[after]
        i, j = np.nonzero(np.abs(other - one) > 1e-6)  # NaN, where there is no cell, compares false
        first = (i + 1, j) if axis == 0 else (i, j + 1)
        second = (first[0], first[1] + 1) if axis == 0 else (first[0] + 1, first[1])
        low, high = np.minimum(one, other)[i, j], np.maximum(one, other)[i, j]
        corner = [
            np.column_stack([xy[at], z[at] + up])
            for up, at in ((low, first), (low, second), (high, second), (high, first))
        ]
        faces = np.stack(corner, axis=1)  # [Q, 4, 3]
        later = (other > one)[i, j]
        flip = later == (axis == 0)
        faces[flip] = faces[flip][:, ::-1]
        upper = np.where(later, kinds[after][i, j], kinds[before][i, j])
        parts = []
        for name in np.unique(upper):
            surface = SURFACES[str(name)]
            stone = surface if surface.label == "terrain" else SURFACES["kerb"]
            chosen = faces[upper == name]
            parts.append(quads(chosen, self.palette(stone.material), CLASSES.index(surface.label)))
        return parts

    def paint(self, course: Course, s: tuple[float, float], left: tuple[float, float], material: Material = MARKING,
              label: str = "lane_marking", height: float = PAINT) -> Mesh:  # fmt: skip
        """A rectangle of paint (or of other asphalt) on the road, between two s and two l."""
        along = np.linspace(s[0], s[1], max(2, int(np.ceil(abs(s[1] - s[0]) / 2.0)) + 1))
        across = np.linspace(min(left), max(left), max(2, int(np.ceil(abs(left[1] - left[0]) / 2.5)) + 1))
        xy = course(along[:, None], across[None, :])
        points = np.concatenate([xy, (self.land.height(xy) + height)[..., None]], axis=-1)
        uv = np.stack(np.broadcast_arrays(along[:, None], across[None, :]), axis=-1)
        i, j = (
            index.ravel() for index in np.meshgrid(np.arange(len(along) - 1), np.arange(len(across) - 1), indexing="ij")
        )
        corner = np.stack([i, i + 1, i + 1, i]), np.stack([j, j, j + 1, j + 1])
        return quads(
            points[corner].transpose(1, 0, 2),
            self.palette(material),
            CLASSES.index(label),
            uv=uv[corner].transpose(1, 0, 2),
        )

    def dashes(self, course: Course, s: tuple[float, float], at: float, dash: float, gap: float, width: float) -> Mesh:
        """A broken line at l = `at`."""
        starts = np.arange(s[0], s[1] - dash, dash + gap)
        return merge([self.paint(course, (a, a + dash), (at - width / 2, at + width / 2)) for a in starts])

    def round_corner(
        self, course: Course, center: tuple[float, float], radius: float, quadrant: int, kind: str
    ) -> Mesh:
        """A quarter disc of a kerbed surface about center (s, l), in the quadrant where (s, l) grow like (cos, sin)."""
        surface = SURFACES[kind]
        angle = np.linspace(0, np.pi / 2, 9) + quadrant * np.pi / 2
        rim = course(center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle))
        points = np.concatenate([rim, course(*center)[None]])
        ring = np.column_stack([points, self.land.height(points) + surface.height])
        label = CLASSES.index(surface.label)
        top = fan(ring, self.palette(surface.material), label)
        edge = ring[:9]
        side = loft(
            np.stack([edge - [0, 0, surface.height], edge]),
            self.palette(SURFACES["kerb"].material),
            CLASSES.index("sidewalk"),
            closed=False,
        )
        return merge([top, side])
