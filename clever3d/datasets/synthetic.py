"""A synthetic street scan, ray-cast with numpy alone: the demo and the tests need no data and no network.

The sensor is like the Velodyne HDL-64E of KITTI: 32 beams from +2 to -8.33 degrees and 32 from -8.83 to -24.33 degrees
(HDL-64E S2 data sheet), 1.73 m above the ground (Geiger et al. 2013). Every solid is convex, planes and at most one
quadric, so that a ray is inside it for one interval of closed form; the ground is a height field, met by bisection.
Intensity, drop-outs, roughness and the street are our choice, held against quantiles of real KITTI scans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from clever3d.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]
    Indices: TypeAlias = NDArray[np.intp]

LABELS = (
    "road", "sidewalk", "terrain", "building", "fence", "vegetation", "trunk",
    "pole", "sign", "car", "truck", "person", "bicyclist",
)  # fmt: skip
SENSOR_HEIGHT = 1.73  # m
MAX_RANGE = 80.0  # m
RANGE_NOISE = 0.02  # m, one standard deviation


@dataclass(frozen=True)
class SyntheticScan:
    """One turn of the sensor, in its own frame (x forward, y left, z up, metres)."""

    xyz: NDArray[np.float32]  # [N, 3]
    intensity: NDArray[np.float32]  # [N] in [0, 1], in steps of 0.01
    label: NDArray[np.uint8]  # [N] index into label_names
    label_names: tuple[str, ...] = LABELS


@dataclass(frozen=True)
class Material:
    """How a surface answers the beam."""

    label: str
    reflectance: float  # typical intensity, when near and met squarely
    spread: float = 0.06  # one standard deviation from point to point
    dropout: float = 0.01  # share of the rays that do not return
    smoothness: float = 0.0  # of the ground: how much less comes back from a grazing beam
    depth: float = 0.0  # m, mean way into the solid before something is met (leaves, pickets); 0 is opaque
    windows: tuple[float, float, float] | None = None  # yaw of the wall, height of its foot, shift along it


GROUND = (
    Material("road", 0.25, 0.07, smoothness=1.5),
    Material("sidewalk", 0.30, 0.05, smoothness=0.7),
    Material("terrain", 0.33, 0.07),
    Material("road", 0.55, 0.12, smoothness=1.5),  # markings
)
_GLASS = Material("building", 0.12, 0.12, dropout=0.45)
_TERRAIN = 2
_GRASS_HEIGHT = 0.025  # m


@dataclass(frozen=True)
class Solid:
    """The convex set of points p with planes[:, :3] @ p <= planes[:, 3] and |quadric @ (p - center)| <= 1."""

    material: Material
    low: Array  # [3] corners of a box around it
    high: Array  # [3]
    planes: Array = field(default_factory=lambda: np.empty((0, 4)))  # [K, 4] unit outward normal, offset
    quadric: Array | None = None  # [3, 3] an ellipsoid, [2, 3] an endless cylinder
    center: Array = field(default_factory=lambda: np.zeros(3))

    def interval(self, directions: Array) -> tuple[Array, Array, Array]:
        """Where rays from the origin are inside: entry [M], exit [M] (missed if before it), cosine of incidence [M]."""
        enter, leave = np.full(len(directions), -np.inf), np.full(len(directions), np.inf)
        cosine = np.ones(len(directions))
        with np.errstate(divide="ignore", invalid="ignore"):
            for plane in self.planes:
                slope = directions @ plane[:3]
                distance = plane[3] / slope
                leave = np.where(slope > 0, np.minimum(leave, distance), leave)
                leave = np.where((slope == 0) & (plane[3] < 0), -np.inf, leave)
                later = (slope < 0) & (distance > enter)
                enter, cosine = np.where(later, distance, enter), np.where(later, -slope, cosine)
            if self.quadric is not None:
                d = directions @ self.quadric.T  # [M, Q]; solve |t d - c|^2 = 1
                c = self.quadric @ self.center  # [Q]
                dd, dc = (d * d).sum(axis=1), d @ c
                discriminant = dc * dc - dd * (c @ c - 1.0)
                root = np.sqrt(np.maximum(discriminant, 0.0))
                near = (dc - root) / dd
                leave = np.where(discriminant > 0, np.minimum(leave, (dc + root) / dd), -np.inf)
                normal = (near[:, None] * d - c) @ self.quadric
                facing = np.abs((normal * directions).sum(axis=1)) / np.linalg.norm(normal, axis=1)
                later = near > enter
                enter, cosine = np.where(later, near, enter), np.where(later, facing, cosine)
        return enter, leave, cosine


def box(
    material: Material,
    base: Array,
    size: tuple[float, float, float],
    yaw: float = 0.0,
    lean: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Solid:
    """Box of (length, width, height) over its base centre [3]; front, back and sides lean in by ``lean`` at the top."""
    length, width, height = size
    faces = [(0.0, 0.0, 1.0, height), (0.0, 0.0, -1.0, 0.0)]
    for x, y, half, inset in (
        (1, 0, length, lean[0]), (-1, 0, length, lean[1]), (0, 1, width, lean[2]), (0, -1, width, lean[2]),
    ):  # fmt: skip
        norm = np.hypot(height, inset)
        faces.append((x * height / norm, y * height / norm, inset / norm, half / 2 * height / norm))
    local, turn = np.array(faces), turn_about_z(yaw)
    normals = local[:, :3] @ turn.T
    half_size = np.abs(turn) @ np.array([length / 2, width / 2, 0.0])
    planes = np.column_stack([normals, local[:, 3] + normals @ base])
    return Solid(material, base - half_size, base + half_size + [0, 0, height], planes)


def ellipsoid(material: Material, center: Array, radii: tuple[float, float, float], axes: Array | None = None) -> Solid:
    """Ellipsoid with half-axes ``radii`` along the columns of the rotation ``axes`` [3, 3] (default x, y, z)."""
    turn = np.eye(3) if axes is None else axes
    half_size = np.sqrt(((turn * np.array(radii)) ** 2).sum(axis=1))
    return Solid(
        material, center - half_size, center + half_size, quadric=turn.T / np.array(radii)[:, None], center=center
    )


def cylinder(material: Material, base: Array, radius: float, height: float) -> Solid:
    """Upright cylinder over its base centre [3]."""
    planes = np.array([[0, 0, 1, base[2] + height], [0, 0, -1, -base[2]]])
    reach = np.array([radius, radius, 0.0])
    return Solid(material, base - reach, base + reach + [0, 0, height], planes, np.eye(3)[:2] / radius, base)


def turn_about_z(yaw: float) -> Array:
    """Rotation matrix [3, 3], counter-clockwise seen from above, radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


Ground: TypeAlias = "Callable[[Array, Array], tuple[Array, Indices]]"


@dataclass(frozen=True)
class Scene:
    """What is around the sensor, which is at the origin."""

    ground: Ground  # x [M], y [M] -> height [M] relative to the sensor, row of GROUND [M]
    solids: tuple[Solid, ...] = ()
    ground_bounds: tuple[float, float] = (-3.2, -0.5)  # m, no ground is lower or higher
    heading: float = 0.0  # radians from the scene's x axis to the sensor's


def beam_elevations(beams: int = 64) -> Array:
    """Elevation of each beam, radians [beams], top down; fewer beams share the HDL-64E's two blocks."""
    upper = (beams + 1) // 2
    return np.radians(np.concatenate([np.linspace(2.0, -8.33, upper), np.linspace(-8.83, -24.33, beams - upper)]))


class _Turn:
    """One turn of the sensor: every ray, and the nearest thing that each has met so far."""

    def __init__(self, scene: Scene, rng: np.random.Generator, beams: int, steps: int) -> None:
        self.rng, self.steps = rng, steps
        self.elevation = beam_elevations(beams)
        # Like a real sensor's, the beams do not fire in one plane; in step, returns would line up in columns.
        columns = np.arange(steps) + rng.random(beams)[:, None]
        self.azimuth = columns * (2 * np.pi / steps) - np.pi  # [B, A] in the scene
        flat = np.cos(self.elevation)[:, None]
        up = np.broadcast_to(np.sin(self.elevation)[:, None], self.azimuth.shape)
        around = np.stack([flat * np.cos(self.azimuth), flat * np.sin(self.azimuth), up], axis=-1)
        self.directions = around.reshape(-1, 3)  # [R, 3]
        self.depth = np.full(len(self.directions), np.inf)
        self.cosine = np.ones(len(self.directions))
        self.material = np.zeros(len(self.directions), dtype=np.intp)  # row of materials
        self.materials = [*GROUND, _GLASS]
        self._meet_ground(scene)
        for solid in scene.solids:
            self._meet_solid(solid)

    def _meet_ground(self, scene: Scene) -> None:
        """Steps down between the ground's bounds to the first point below it, then bisects."""
        rays = np.flatnonzero(self.directions[:, 2] < -1e-3)
        d = self.directions[rays]
        lowest, highest = scene.ground_bounds
        begin, end = highest / d[:, 2], np.minimum(lowest / d[:, 2], MAX_RANGE)
        stride = (end - begin) / 32
        below = begin.copy()
        open_ = np.flatnonzero(stride > 0)  # rays that are above the ground at ``below``
        for _ in range(32):
            below[open_] += stride[open_]
            at = d[open_] * below[open_, None]
            open_ = open_[at[:, 2] > scene.ground(at[:, 0], at[:, 1])[0]]
        met = np.setdiff1d(np.flatnonzero(stride > 0), open_)
        rays, d, below, above = rays[met], d[met], below[met], below[met] - stride[met]
        for _ in range(16):
            middle = (below + above) / 2
            at = d * middle[:, None]
            sunk = at[:, 2] <= scene.ground(at[:, 0], at[:, 1])[0]
            below, above = np.where(sunk, middle, below), np.where(sunk, above, middle)
        at = d * below[:, None]
        kind = scene.ground(at[:, 0], at[:, 1])[1]
        # Grass is met above the soil, the earlier the more slanting the ray.
        blades = np.abs(self.rng.normal(0.0, _GRASS_HEIGHT, len(rays))) * (kind == _TERRAIN)
        self.depth[rays] = below - np.minimum(blades / -d[:, 2], 0.6)
        self.cosine[rays], self.material[rays] = -d[:, 2], kind

    def _meet_solid(self, solid: Solid) -> None:
        rays = self._rays_towards(solid.low, solid.high)
        if not rays.size:
            return
        enter, leave, cosine = solid.interval(self.directions[rays])
        material = np.full(len(rays), len(self.materials))
        self.materials.append(solid.material)
        if solid.material.depth > 0:
            enter = enter + self.rng.exponential(solid.material.depth, len(rays))
        if solid.material.windows is not None:
            glass = self._behind_a_window(solid.material.windows, self.directions[rays] * enter[:, None])
            enter = np.where(glass, enter + 0.16 / np.maximum(cosine, 0.3), enter)
            material[glass] = len(GROUND)
        met = (enter > 0) & (enter < leave) & (enter < self.depth[rays])
        self.depth[rays[met]], self.cosine[rays[met]] = enter[met], cosine[met]
        self.material[rays[met]] = material[met]

    def _rays_towards(self, low: Array, high: Array) -> Indices:
        """Rays that could meet a box: those of its angular frame. Spares testing every ray with every solid."""
        nearest = np.hypot(*np.maximum(np.maximum(low, -high), 0.0)[:2])
        farthest = np.hypot(*np.maximum(np.abs(low), np.abs(high))[:2])
        if nearest > MAX_RANGE:
            return np.empty(0, dtype=np.intp)
        nearest = max(nearest, 1e-3)
        top = np.arctan2(high[2], nearest if high[2] > 0 else farthest)
        bottom = np.arctan2(low[2], nearest if low[2] < 0 else farthest)
        beams = np.flatnonzero((self.elevation <= top) & (self.elevation >= bottom))
        if nearest > 1e-3:
            middle = np.arctan2(low[1] + high[1], low[0] + high[0])
            corners = np.arctan2([low[1], low[1], high[1], high[1]], [low[0], high[0], low[0], high[0]])
            spread = np.abs((corners - middle + np.pi) % (2 * np.pi) - np.pi).max()
        else:
            middle, spread = 0.0, np.pi
        per_radian = self.steps / (2 * np.pi)
        first = int(np.floor((middle - spread + np.pi) * per_radian)) - 1
        count = min(int(np.ceil(2 * spread * per_radian)) + 3, self.steps)
        columns = (first + np.arange(count)) % self.steps
        return (beams[:, None] * self.steps + columns).ravel()

    @staticmethod
    def _behind_a_window(windows: tuple[float, float, float], points: Array) -> NDArray[np.bool_]:
        yaw, foot, shift = windows
        # On a wall of a box one of its two horizontal coordinates varies, the other does not: their sum serves all.
        along = points @ turn_about_z(yaw)[:, :2].sum(axis=1) + shift
        height = points[:, 2] - foot
        return ((along % 2.7) < 1.15) & (((height > 0.95) & (height < 2.3)) | ((height > 3.7) & (height < 5.1)))

    def returns(self, heading: float, noise: bool) -> SyntheticScan:
        """The rays that come back. ``noise=False``: exact points of every ray that meets something."""
        dropout = np.array([material.dropout for material in self.materials])[self.material]
        # The road returns too little light from afar: in KITTI it thins out from about 45 m on.
        dropout = np.where(self.material < len(GROUND), np.maximum(dropout, (self.depth - 45) / 30), dropout)
        keep = self.depth < MAX_RANGE
        if noise:
            keep &= self.rng.random(len(keep)) >= dropout
            keep &= ~self._on_own_roof(heading).ravel()
        depth = self.depth[keep] + (self.rng.normal(0.0, RANGE_NOISE, keep.sum()) if noise else 0.0)
        xyz = self.directions[keep] * depth[:, None] @ turn_about_z(heading)
        ids = np.array([LABELS.index(material.label) for material in self.materials], dtype=np.uint8)
        return SyntheticScan(xyz.astype(np.float32), self._intensity(keep), ids[self.material[keep]])

    def _on_own_roof(self, heading: float) -> NDArray[np.bool_]:
        """The car below the sensor hides the steepest beams ahead and behind, as in KITTI."""
        ahead = np.abs((self.azimuth - heading + np.pi) % (2 * np.pi) - np.pi)
        steep = np.degrees(self.elevation)[:, None]
        hidden: NDArray[np.bool_] = ((ahead > 2.7) & (steep < -18.5)) | ((ahead < 0.35) & (steep < -21.3))
        return hidden

    def _intensity(self, keep: NDArray[np.bool_]) -> NDArray[np.float32]:
        rows, depth, cosine = self.material[keep], self.depth[keep], self.cosine[keep]
        reflectance = np.array([material.reflectance for material in self.materials])[rows]
        spread = np.array([material.spread for material in self.materials])[rows]
        beam = np.flatnonzero(keep) // self.steps
        uneven = self.rng.normal(0.0, 0.025, len(self.elevation))[beam]  # lasers differ a little
        smooth = np.array([material.smoothness for material in self.materials])[rows]
        lost = 0.0045 * np.maximum(depth - 12.0, 0.0) + smooth * np.maximum(0.11 - cosine, 0.0)
        value = reflectance + uneven - lost + spread * self.rng.normal(size=len(rows))
        # A weak return often reads zero: more of them the farther, most from smooth ground that the beam grazes.
        value[self.rng.random(len(rows)) < (1 + smooth) * (0.02 + 0.006 * np.maximum(depth - 15.0, 0.0))] = 0.0
        return (np.rint(np.clip(value, 0.0, 0.99) * 100) / 100).astype(np.float32)


def cast(scene: Scene, rng: np.random.Generator, beams: int, azimuth_steps: int, noise: bool = True) -> SyntheticScan:
    """One turn of the sensor in a scene: at most one return per ray, beam after beam from the top."""
    return _Turn(scene, rng, beams, azimuth_steps).returns(scene.heading, noise)


def street_scan(seed: int = 0, beams: int = 64, azimuth_steps: int = 2048) -> SyntheticScan:
    """Makes one scan of a city street at a crossing; another seed gives another street.

    Args:
        seed: everything random comes from it.
        beams: number of lasers; 64 is the HDL-64E.
        azimuth_steps: shots of each laser in a turn; 2048 gives about 115,000 points.

    Raises:
        InputError: fewer than 2 beams or fewer than 16 steps.
    """
    if beams < 2 or azimuth_steps < 16:
        raise InputError(f"{beams} beams of {azimuth_steps} steps are no scan; the HDL-64E has 64 and about 2048")
    world, rays = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    return cast(street_scene(world), rays, beams, azimuth_steps)


# ------------------------------------------------------------------------------------------------ the street
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
            box(paint, base + [0, 0, 0.2], (length, width, belt - 0.38), yaw, (-0.06, -0.05, -0.04)),
            box(paint, base + [0, 0, belt - 0.18], (length * 0.99, width + 0.06, 0.18), yaw, (0.3, 0.08, 0.1)),
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
            self.solids.append(ellipsoid(cloth, base + turn @ [-way * step, way * 0.26, 1.12 * tall], (0.07, 0.06, 0.33)))
        self.solids.append(ellipsoid(cloth, base + [0, 0, 1.15 * tall], (0.2, 0.19, 0.36)))
        self.solids.append(ellipsoid(cloth, base + [0, 0, 1.63 * tall], (0.1, 0.1, 0.13)))

    def cyclist(self, x: float, y: float, yaw: float) -> None:
        frame = Material("bicyclist", 0.25, 0.15, depth=0.06)
        turn, base = turn_about_z(yaw), self.at(x, y)
        for way in (-1, 1):
            self.solids.append(ellipsoid(frame, base + turn @ [way * 0.52, 0, 0.34], (0.34, 0.03, 0.34), turn))
        self.solids.append(box(frame, base + [0, 0, 0.4], (0.9, 0.06, 0.45), yaw))
        self.person(x, y, Material("bicyclist", 0.33, 0.1), seat=0.12)

    def clumps(self, material: Material, center: Array, extent: Array, count: int, size: tuple[float, float]) -> None:
        """Foliage: ellipsoids of leaves scattered in an ellipsoid of half-axes ``extent``, more of them outside."""
        offsets = self.rng.normal(size=(count, 3))
        offsets *= self.rng.random((count, 1)) ** 0.4 / np.linalg.norm(offsets, axis=1, keepdims=True)
        for offset in offsets * extent:
            radius = self.rng.uniform(*size)
            self.solids.append(ellipsoid(material, center + offset, (radius, radius, radius * self.rng.uniform(0.5, 0.9))))

    def tree(self, x: float, y: float, stem: float = 2.6) -> None:
        rng, radius, stem = self.rng, self.rng.uniform(0.11, 0.24), stem * self.rng.uniform(0.8, 1.2)
        base = self.at(x, y, -0.2)
        self.solids += [cylinder(_BARK, base, radius, stem + 0.6), cylinder(_BARK, base, radius * 1.35, 0.45)]
        top = base + [0, 0, stem]
        for _ in range(7):  # branches
            yaw, pitch, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.1), rng.uniform(0.6, 1.1)
            out, up = np.cos(pitch), np.sin(pitch)
            lift = np.array([[out, 0, -up], [0, 1, 0], [up, 0, out]])
            axes = turn_about_z(yaw) @ lift
            self.solids.append(ellipsoid(_BARK, top + axes[:, 0] * reach, (reach, 0.05, 0.05), axes))
        crown = rng.uniform(1.6, 2.7)
        self.clumps(_LEAVES, top + [0, 0, crown * 0.8], np.array([crown, crown, crown * 0.95]), 70, (0.3, 0.75))

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
                           else box(plate, middle - [0, 0, 0.33], (0.03, 0.6, 0.66), yaw))  # fmt: skip

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
