"""A LiDAR that casts rays into a scene of convex solids on a height field, with numpy alone.

The sensor is like the Velodyne HDL-64E of KITTI: 32 beams from +2 to -8.33 degrees and 32 from -8.83 to -24.33 degrees
(HDL-64E S2 data sheet), 1.73 m above the ground (Geiger et al. 2013). Every solid is planes and at most one quadric, so
that a ray is inside it for one interval of closed form; the ground is met by bisection.
Intensity, drop-outs and roughness are our choice, held against quantiles of real KITTI scans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

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
    return Solid(material, base - half_size, base + half_size + up_axis(height), planes)


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
    return Solid(material, base - reach, base + reach + up_axis(height), planes, np.eye(3)[:2] / radius, base)


def turn_about_z(yaw: float) -> Array:
    """Rotation matrix [3, 3], counter-clockwise seen from above, radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def up_axis(height: float) -> Array:
    return np.array([0.0, 0.0, height])


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
    degrees = np.concatenate([np.linspace(2.0, -8.33, upper), np.linspace(-8.83, -24.33, beams - upper)])
    radians: Array = np.deg2rad(degrees)
    return radians


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
        storey = ((height > 0.95) & (height < 2.3)) | ((height > 3.7) & (height < 5.1))
        glass: NDArray[np.bool_] = storey & (along % 2.7 < 1.15)
        return glass

    def returns(self, heading: float, noise: bool) -> SyntheticScan:
        """The rays that come back, in the sensor's frame."""
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
        steps: NDArray[np.float32] = (np.rint(np.clip(value, 0.0, 0.99) * 100) / 100).astype(np.float32)
        return steps


def cast(scene: Scene, rng: np.random.Generator, beams: int, azimuth_steps: int, noise: bool = True) -> SyntheticScan:
    """One turn of the sensor in a scene: at most one return per ray, beam after beam from the top.

    ``noise=False`` gives every ray that meets something, at its exact range.
    """
    return _Turn(scene, rng, beams, azimuth_steps).returns(scene.heading, noise)
