"""A synthetic street scan, ray-cast with numpy alone: the demo and the tests need no data and no network.

The street is our choice; ranges, intensities and roughness are held against quantiles of real KITTI scans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clever3d.datasets.synthetic.raycast import (
    SENSOR_HEIGHT,
    Material,
    Scene,
    Solid,
    SyntheticScan,
    box,
    cast,
    cylinder,
    ellipsoid,
    turn_about_z,
    up_axis,
)
from clever3d.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clever3d.datasets.synthetic.raycast import Array, Indices

__all__ = ["SyntheticScan", "street_scan", "street_scene"]

# The scene's x axis runs along the street, a second street crosses it; solids stand on the ground of their place.

_HALF_STREET, _HALF_CROSSING, _CORNER = 5.4, 3.6, 5.0  # m: half widths of the two roads, kerb radius at their corners
_KERB, _VERGE, _PAVEMENT = 0.13, 1.3, 3.6  # m: height; where the verge and the pavement end, from the kerb
_LEAVES, _HEDGE = Material("vegetation", 0.36, 0.12, 0.03, depth=0.3), Material("vegetation", 0.34, 0.11, depth=0.12)
_BARK, _STEEL = Material("trunk", 0.34, 0.09), Material("pole", 0.3, 0.12)
_PLATE, _TYRE = Material("car", 0.9, 0.08), Material("car", 0.0, 0.06, 0.2)


class StreetGround:
    """Two crowned roads, kerbs, a verge or pavement along them, gentle lawns behind."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.middle, self.crossing = 1.6 + rng.uniform(-0.3, 0.3), rng.uniform(19.0, 24.0)
        self.tilt = rng.uniform(-0.006, 0.006, 2)
        angle = rng.uniform(0, 2 * np.pi, 4)
        wavelengths = np.array([6.0, 9.0, 15.0, 26.0])
        self.waves = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 2 * np.pi / wavelengths[:, None]
        self.phases, self.heights = rng.uniform(0, 2 * np.pi, 4), np.array([0.03, 0.05, 0.09, 0.13])
        self.level = 0.0
        self.level = float(self(np.zeros(1), np.zeros(1))[0][0]) + SENSOR_HEIGHT

    def from_kerb(self, x: Array, y: Array) -> Array:
        """Metres from the kerb, negative on the roads; beyond the corner radius it stays there."""
        past_crossing, past_street = np.abs(x - self.crossing) - _HALF_CROSSING, np.abs(y - self.middle) - _HALF_STREET
        return _CORNER - np.hypot(np.maximum(_CORNER - past_crossing, 0), np.maximum(_CORNER - past_street, 0))

    def __call__(self, x: Array, y: Array) -> tuple[Array, Indices]:
        """Height relative to the sensor and row of GROUND, [M] each."""
        kerb = self.from_kerb(x, y)
        road = kerb < 0
        z = self.tilt[0] * x + self.tilt[1] * y - self.level + np.where(road, 0.018 * np.minimum(-kerb, 3.5), _KERB)
        lawn = np.flatnonzero(kerb > _PAVEMENT)
        if lawn.size:
            rolling = np.sin(np.outer(x[lawn], self.waves[:, 0]) + np.outer(y[lawn], self.waves[:, 1]) + self.phases)
            z[lawn] += (rolling @ self.heights) * np.minimum((kerb[lawn] - _PAVEMENT) / 1.2, 1.0)
        # The verge is grass on the right-hand side; on the left the pavement begins at the kerb.
        grass = (kerb > _PAVEMENT) | ((kerb < _VERGE) & (y < self.middle) & (np.abs(x - self.crossing) > 11))
        return z, np.where(road, np.where(self._painted(x, y), 3, 0), np.where(grass, 2, 1))

    def _painted(self, x: Array, y: Array) -> NDArray[np.bool_]:
        """A dashed middle line, and zebra stripes on both sides of the crossing."""
        ahead = np.abs(x - self.crossing)
        dashes = (np.abs(y - self.middle) < 0.07) & (x % 6.0 < 3.0) & (ahead > 9)
        zebra = (np.abs(ahead - 6.5) < 1.4) & (y % 1.0 < 0.5) & (np.abs(y - self.middle) < _HALF_STREET - 0.2)
        return dashes | zebra


class _Street:
    """Collects the solids of one street."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.ground = rng, StreetGround(rng)
        self.solids: list[Solid] = []

    def at(self, x: float, y: float, above: float = 0.0) -> Array:
        """The point [3] so many metres above the ground."""
        return np.array([x, y, self.ground(np.array([x]), np.array([y]))[0][0] + above])

    def side(self, sign: int, from_kerb: float) -> float:
        """The y of a line along the street, on its left (+1) or right (-1)."""
        return self.ground.middle + sign * (_HALF_STREET + from_kerb)

    def along(self, begin: float, end: float, gap: tuple[float, float], clear: float) -> list[float]:
        """Random places x along the street, none within ``clear`` metres of the crossing street's middle."""
        places = np.arange(begin, end, (gap[0] + gap[1]) / 2)
        places = places + self.rng.uniform(-0.5, 0.5, len(places)) * (gap[1] - gap[0])
        return [float(x) for x in places if abs(x - self.ground.crossing) > clear]

    def car(self, x: float, y: float, yaw: float) -> None:
        rng, turn = self.rng, turn_about_z(yaw)
        length, width, height = rng.uniform(3.8, 4.7), rng.uniform(1.68, 1.84), rng.uniform(1.4, 1.62)
        # About two fifths of the points on KITTI's cars read zero: dark paint mirrors the beam away.
        paint = Material("car", float(rng.choice([-0.1, -0.04, 0.05, 0.2, 0.34, 0.42, 0.5])), 0.1, 0.06)
        glass = Material("car", min(paint.reflectance, 0.08), 0.15, 0.35)
        belt, base = height * 0.6, self.at(x, y)
        back = rng.uniform(0.15, 0.6)
        self.solids += [
            box(paint, base + up_axis(0.2), (length, width, belt - 0.38), yaw, (-0.06, -0.05, -0.04)),
            box(paint, base + up_axis(belt - 0.18), (length * 0.99, width + 0.06, 0.18), yaw, (0.3, 0.08, 0.1)),
            box(glass, base + turn @ [-0.07 * length, 0, belt], (0.66 * length, width - 0.1, height - belt), yaw,
                (0.75, back, 0.22)),
            *(box(_PLATE, base + turn @ [end * length / 2, 0, 0.45], (0.06, 0.5, 0.11), yaw) for end in (-1, 1)),
        ]  # fmt: skip
        self._wheels(base, turn, 0.31 * length, width / 2 - 0.05, 0.32)

    def _wheels(self, base: Array, turn: Array, half_axle: float, half_track: float, radius: float) -> None:
        for i in (-1, 1):
            for j in (-1, 1):
                middle = base + turn @ [i * half_axle, j * half_track, radius]
                self.solids.append(ellipsoid(_TYRE, middle, (radius, 0.13, radius), turn))

    def truck(self, x: float, y: float, yaw: float) -> None:
        turn, base = turn_about_z(yaw), self.at(x, y)
        paint, cargo = Material("truck", 0.25, 0.1, 0.05), Material("truck", 0.38, 0.07)
        self.solids += [
            box(cargo, base + turn @ [-0.9, 0, 0.85], (4.6, 2.2, 2.2), yaw),
            box(paint, base + turn @ [2.4, 0, 0.4], (1.7, 2.05, 2.0), yaw, (0.5, 0.0, 0.12)),
            box(paint, base + turn @ [-0.3, 0, 0.5], (5.6, 0.9, 0.35), yaw),
        ]
        self._wheels(base, turn, 2.1, 0.95, 0.42)

    def person(self, x: float, y: float, cloth: Material | None = None, seat: float = 0.0) -> None:
        rng, turn, base = self.rng, turn_about_z(self.rng.uniform(0, np.pi)), self.at(x, y, seat)
        cloth = cloth or Material("person", float(rng.uniform(0.25, 0.45)), 0.1)
        tall, step = rng.uniform(0.92, 1.06), rng.uniform(0.05, 0.22)
        for way in (-1, 1):
            self.solids.append(ellipsoid(cloth, base + turn @ [way * step, way * 0.09, 0.43], (0.1, 0.09, 0.47)))
            hand = base + turn @ [-way * step, way * 0.26, 1.12 * tall]
            self.solids.append(ellipsoid(cloth, hand, (0.07, 0.06, 0.33)))
        self.solids.append(ellipsoid(cloth, base + up_axis(1.15 * tall), (0.2, 0.19, 0.36)))
        self.solids.append(ellipsoid(cloth, base + up_axis(1.63 * tall), (0.1, 0.1, 0.13)))

    def cyclist(self, x: float, y: float, yaw: float) -> None:
        frame = Material("bicyclist", 0.25, 0.15, depth=0.06)
        turn, base = turn_about_z(yaw), self.at(x, y)
        for way in (-1, 1):
            self.solids.append(ellipsoid(frame, base + turn @ [way * 0.52, 0, 0.34], (0.34, 0.03, 0.34), turn))
        self.solids.append(box(frame, base + up_axis(0.4), (0.9, 0.06, 0.45), yaw))
        self.person(x, y, Material("bicyclist", 0.33, 0.1), seat=0.12)

    def clumps(self, material: Material, center: Array, extent: Array, count: int, size: tuple[float, float]) -> None:
        """Foliage: ellipsoids of leaves scattered in an ellipsoid of half-axes ``extent``, more of them outside."""
        offsets = self.rng.normal(size=(count, 3))
        offsets *= self.rng.random((count, 1)) ** 0.4 / np.linalg.norm(offsets, axis=1, keepdims=True)
        for offset in offsets * extent:
            radius, flatness = self.rng.uniform(*size), self.rng.uniform(0.5, 0.9)
            self.solids.append(ellipsoid(material, center + offset, (radius, radius, radius * flatness)))

    def tree(self, x: float, y: float, stem: float = 2.6) -> None:
        rng, radius, stem = self.rng, self.rng.uniform(0.11, 0.24), stem * self.rng.uniform(0.8, 1.2)
        base = self.at(x, y, -0.2)
        self.solids += [cylinder(_BARK, base, radius, stem + 0.6), cylinder(_BARK, base, radius * 1.35, 0.45)]
        top = base + up_axis(stem)
        for _ in range(7):  # branches
            yaw, pitch, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.1), rng.uniform(0.6, 1.1)
            out, up = np.cos(pitch), np.sin(pitch)
            lift = np.array([[out, 0, -up], [0, 1, 0], [up, 0, out]])
            axes = turn_about_z(yaw) @ lift
            self.solids.append(ellipsoid(_BARK, top + axes[:, 0] * reach, (reach, 0.05, 0.05), axes))
        crown = rng.uniform(1.6, 2.7)
        self.clumps(_LEAVES, top + up_axis(crown * 0.8), np.array([crown, crown, crown * 0.95]), 70, (0.3, 0.75))

    def bush(self, x: float, y: float) -> None:
        size = self.rng.uniform(0.4, 1.2)
        self.clumps(_HEDGE, self.at(x, y, size * 0.6), np.array([size, size, size * 0.8]), 14, (0.2, 0.2 + size * 0.35))

    def hedge(self, begin: float, end: float, y: float) -> None:
        height = self.rng.uniform(0.9, 1.9)
        for x in np.arange(begin, end, 0.4):
            for level in (0.25, 0.55, 0.85):
                shift, radius = self.rng.normal(0.0, 0.1, 3), self.rng.uniform(0.25, 0.5)
                radii = (radius, self.rng.uniform(0.2, 0.42), height * self.rng.uniform(0.16, 0.3))
                middle = self.at(x + shift[0], y + shift[1], height * level + shift[2])
                self.solids.append(ellipsoid(_HEDGE, middle, radii))

    def fence(self, begin: float, end: float, y: float) -> None:
        wall = self.rng.random() < 0.4
        material = Material("fence", 0.33, 0.08) if wall else Material("fence", 0.33, 0.11, depth=0.05)
        height = self.rng.uniform(0.7, 1.2)
        for x in np.arange(begin, end, 2.0):
            size = (min(2.0, end - x), 0.24 if wall else 0.05, height)
            self.solids.append(box(material, self.at(x + size[0] / 2, y), size))
            self.solids.append(box(Material("fence", 0.3), self.at(x, y), (0.1, 0.1, height + 0.08)))

    def building(self, x: float, y: float, size: tuple[float, float], yaw: float) -> None:
        base, wall = self.at(x, y, -0.3), float(self.rng.uniform(0.28, 0.42))
        windows = (yaw, float(base[2]) + 0.3, float(self.rng.uniform(0, 2.7)))
        facade = Material("building", wall, 0.06, windows=windows)
        turn, bay = turn_about_z(yaw), self.rng.uniform(-0.25, 0.25) * size[0]
        self.solids += [
            box(facade, base, (*size, 6.5), yaw),
            box(Material("building", wall - 0.06), base, (size[0] + 0.08, size[1] + 0.08, 0.9), yaw),  # plinth
            box(facade, base + turn @ [bay, 0, 0], (2.6, size[1] + 1.2, 6.0), yaw),  # oriels, porches
        ]
        for end in (-1, 1):
            for face in (-1, 1):
                corner = base + turn @ [end * (size[0] / 2 - 0.3), face * (size[1] / 2 + 0.07), 0]
                self.solids.append(cylinder(Material("building", 0.3, 0.1), corner, 0.05, 6.0))  # drain pipes

    def pole(self, x: float, y: float, radius: float = 0.07, height: float = 6.0) -> None:
        self.solids.append(cylinder(_STEEL, self.at(x, y), radius, height))

    def sign(self, x: float, y: float, yaw: float) -> None:
        """Faces the drivers who come along ``yaw``. A round or a square plate."""
        plate, middle = Material("sign", 0.85, 0.2, 0.02), self.at(x, y, self.rng.uniform(1.9, 2.25))
        self.pole(x, y, 0.035, middle[2] - self.at(x, y)[2] + 0.3)
        middle = middle - turn_about_z(yaw) @ [0.06, 0, 0]
        round_ = self.rng.random() < 0.5
        self.solids.append(ellipsoid(plate, middle, (0.02, 0.33, 0.33), turn_about_z(yaw)) if round_
                           else box(plate, middle - up_axis(0.33), (0.03, 0.6, 0.66), yaw))  # fmt: skip

    def traffic_light(self, x: float, y: float) -> None:
        self.pole(x, y, 0.08, 3.4)
        self.solids.append(box(Material("pole", 0.2, 0.12), self.at(x, y, 2.3), (0.34, 0.34, 0.95)))


def street_scene(rng: np.random.Generator) -> Scene:
    """A street with a crossing ahead: parked and moving cars, people, houses behind gardens, and a small park."""
    street = _Street(rng)
    for sign in (-1, 1):
        _furnish_kerb(street, sign)
        _furnish_gardens(street, sign)
    _fill_road(street)
    _plant_park(street)
    return Scene(street.ground, tuple(street.solids), heading=float(rng.uniform(-0.05, 0.05)))


def _furnish_kerb(street: _Street, sign: int) -> None:
    """Parked cars, trees, lamps, signs and people on one side."""
    rng, crossing = street.rng, street.ground.crossing
    for x in street.along(-70, 75, (5.3, 7.3), clear=12):
        if rng.random() < 0.7 and not (sign < 0 and -3 < x < 9):  # one beside the sensor would hide a whole side
            street.car(x, street.side(sign, -1.15 + rng.normal(0, 0.08)), rng.normal(0, 0.02) + np.pi * (sign > 0))
    for x in street.along(-72, 78, (8, 13), clear=10):
        street.tree(x, street.side(sign, 0.65))
    for x in street.along(-66, 78, (24, 30), clear=9):
        street.pole(x, street.side(sign, 0.4), 0.08)
    for x in street.along(-60, 75, (14, 26), clear=7):
        street.sign(x, street.side(sign, 0.35), np.pi * (sign > 0))
    for end in (-1, 1):
        street.traffic_light(crossing + end * 9.3, street.side(sign, 0.5))
    for _ in range(7):
        x = rng.uniform(-20, 35)
        street.person(x, street.side(sign, rng.uniform(1.6, 3.3) + 2.5 * (abs(x - crossing) < 9)))


def _furnish_gardens(street: _Street, sign: int) -> None:
    """House after house: hedge or fence in front, bushes and a tree in the garden, houses along the crossing street."""
    rng, crossing, edge = street.rng, street.ground.crossing, street.side(sign, _PAVEMENT + 0.3)
    x = -78.0
    while x < 82:
        length, setback = rng.uniform(9, 15), rng.uniform(2.5, 6.0)
        begin, end, park = x, x + length + rng.uniform(2.0, 5.0), sign < 0 and x > crossing
        x = end
        if begin < crossing + 9.5 and end > crossing - 9.5:
            x = max(end, crossing + 9.5)
            continue
        (street.hedge if rng.random() < 0.55 else street.fence)(begin, end - rng.uniform(1.0, 3.5), edge)
        if park:
            continue
        depth = rng.uniform(8, 11)
        street.building(begin + length / 2, edge + sign * (setback + depth / 2), (length, depth), rng.normal(0, 0.015))
        for _ in range(3):
            street.bush(rng.uniform(begin, end), edge + sign * rng.uniform(1.2, setback))
        street.tree(end - 1.0, edge + sign * rng.uniform(1.5, setback + 8), stem=1.2)
    for across in (-1, 1):
        for distance in (26, 42, 58):
            if not (sign < 0 < across):
                street.building(crossing + across * 15, sign * distance, (13, 9), np.pi / 2)
            street.tree(crossing + across * (_HALF_CROSSING + 1.2), sign * (distance + 8))


def _fill_road(street: _Street) -> None:
    """What moves: cars ahead, behind, oncoming and on the crossing street, a truck, a cyclist, someone on the zebra."""
    rng, crossing = street.rng, street.ground.crossing
    own, other = street.ground.middle - 1.6, street.ground.middle + 1.6
    street.car(rng.uniform(10, 12), own, rng.normal(0, 0.02))
    street.car(rng.uniform(11, 14), other, np.pi)
    street.car(-rng.uniform(11, 16), own, 0.0)
    street.car(rng.uniform(33, 38), own, 0.0)
    street.car(-rng.uniform(18, 30), other, np.pi)
    street.car(crossing + 1.7, rng.uniform(14, 20), np.pi / 2)
    street.car(crossing - 1.7, -rng.uniform(15, 24), -np.pi / 2)
    street.truck(crossing + rng.uniform(11, 15), other, np.pi)
    street.cyclist(rng.uniform(5.5, 7.5), other + 0.5, np.pi)
    street.cyclist(crossing - rng.uniform(-1, 1), own - 1.3, 0.0)
    street.person(crossing - 6.5, own + rng.uniform(-2.5, -1.2))


def _plant_park(street: _Street) -> None:
    """The quarter ahead to the right has no houses: lawn, trees, bushes, a path's lamps and a few people."""
    rng, crossing, edge = street.rng, street.ground.crossing, street.side(-1, _PAVEMENT + 1.5)
    for place, count in ((street.tree, 14), (street.bush, 24), (street.person, 4), (street.pole, 3)):
        for _ in range(count):
            place(crossing + rng.uniform(11, 50), edge - rng.uniform(0.5, 35))
    for _ in range(40):  # what grows behind the houses
        street.tree(rng.uniform(-75, 75), street.side(int(rng.choice([-1, 1])), rng.uniform(18, 50)), stem=1.3)


def street_scan(seed: int = 0, beams: int = 64, azimuth_steps: int = 2048) -> SyntheticScan:
    """Makes one scan of a city street at a crossing; another seed gives another street.

    Args:
        seed: everything random comes from it; 0 or more.
        beams: number of lasers; 64 is the HDL-64E.
        azimuth_steps: shots of each laser in a turn; 2048 gives about 115,000 points.

    Raises:
        InputError: a negative seed, fewer than 2 beams, or fewer than 16 steps.
    """
    if seed < 0:
        raise InputError(f"seed {seed} is negative; take 0 or more")
    if beams < 2 or azimuth_steps < 16:
        raise InputError(f"{beams} beams of {azimuth_steps} steps are no scan; the HDL-64E has 64 and about 2048")
    world, rays = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    return cast(street_scene(world), rays, beams, azimuth_steps)
