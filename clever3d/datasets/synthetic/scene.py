"""A scene: still and moving things, the way of the vehicle, the weather; and what puts it together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clever3d.datasets.geometry import Matrix, rigid, rotation_about_z
from clever3d.datasets.synthetic.ground import Course, Land, Paver
from clever3d.datasets.synthetic.materials import Materials, Palette
from clever3d.datasets.synthetic.mesh import Mesh, merge
from clever3d.datasets.synthetic.sky import Weather
from clever3d.datasets.synthetic.textures import TILES
from clever3d.datasets.synthetic.tracer import Tracer, View
from clever3d.datasets.synthetic.traffic import Motion, Path
from clever3d.datasets.synthetic.truth import CLASSES, Object

#: Moving things farther from the vehicle than this are left out of the rays' way (metres, our choice).
SIGHT = 190.0
#: Two places this many seconds apart give a velocity.
_MOMENT = 0.02
#: Metres walked in one turn of the gait.
_GAIT = 1.5


@dataclass(frozen=True, eq=False)
class Thing:
    """One object with a box. phases: its mesh, or several through which it goes while it moves. pose: object to world,
    the origin on the ground below its middle. walked: metres at a time, which choose the phase. still: never moves.
    """

    instance: int
    label: int
    phases: tuple[Mesh, ...]
    pose: Callable[[float], Matrix]
    walked: Callable[[float], float]
    still: bool
    low: Matrix = field(init=False)
    high: Matrix = field(init=False)

    def __post_init__(self) -> None:
        bounds = [mesh.bounds() for mesh in self.phases]
        object.__setattr__(self, "low", np.min([low for low, _ in bounds], axis=0))
        object.__setattr__(self, "high", np.max([high for _, high in bounds], axis=0))

    def mesh(self, time: float) -> Mesh:
        """Its triangles in the world."""
        phase = int(np.floor(self.walked(time) / _GAIT * len(self.phases))) % len(self.phases)
        pose = self.pose(time)
        return self.phases[phase].moved(pose[:3, :3], pose[:3, 3])

    def center(self, time: float) -> Matrix:
        """The middle of its box in the world [3]."""
        pose = self.pose(time)
        middle: Matrix = pose[:3, :3] @ ((self.low + self.high) / 2) + pose[:3, 3]
        return middle

    def at(self, time: float, num_points: int) -> Object:
        """What is true of it at a time; the velocity is the change of place over 20 ms."""
        moved = np.zeros(3) if self.still else self.center(time + _MOMENT / 2) - self.center(time - _MOMENT / 2)
        return Object(
            self.instance, self.label, self.center(time), self.high - self.low, self.pose(time)[:3, :3].copy(),
            moved / _MOMENT, num_points,
        )  # fmt: skip


@dataclass(eq=False)
class Scene:
    """Everything there is in one scene. `pose` is the way of the vehicle: ego_to_world [4, 4] at a time."""

    still: Tracer
    things: tuple[Thing, ...]
    materials: Materials
    weather: Weather
    pose: Callable[[float], Matrix]
    _last: tuple[tuple[float, tuple[float, float] | None], View] | None = None

    @property
    def instances(self) -> int:
        """The highest instance number."""
        return len(self.things)

    def view(self, time: float, sector: tuple[float, float] | None = None) -> View:
        """The triangles at a moment; the last one asked for is kept.

        sector: (middle, half width) of the bearings from the vehicle in the world, radians, outside which nothing that
        moves is needed.
        """
        if self._last is not None and self._last[0] == (time, sector):
            return self._last[1]
        here = self.pose(time)[:2, 3]
        near = [thing.mesh(time) for thing in self.things if not thing.still and _within(thing, time, here, sector)]
        self._last = (time, sector), View(self.still, Tracer(merge(near)))
        return self._last[1]


def _within(thing: Thing, time: float, here: Matrix, sector: tuple[float, float] | None) -> bool:
    """Whether a thing is in SIGHT of `here` [2] and touches the sector; the sensor may be 3 m off."""
    away = thing.pose(time)[:2, 3] - here
    distance = float(np.hypot(*away))
    if sector is None or distance > SIGHT:
        return distance <= SIGHT
    reach = float(np.hypot(*(thing.high - thing.low)[:2])) + 3.0
    if distance <= reach:
        return True
    aside = (np.arctan2(away[1], away[0]) - sector[0] + np.pi) % (2 * np.pi) - np.pi
    return bool(abs(aside) <= sector[1] + np.arcsin(reach / distance))


class Builder:
    """Collects what a place is made of."""

    def __init__(self, rng: np.random.Generator, duration: float) -> None:
        self.rng, self.duration = rng, duration
        self.palette = Palette(TILES)
        self.land = Land(rng)
        self.paver = Paver(self.land, self.palette)
        self.still: list[Mesh] = []
        self.things: list[Thing] = []
        self._pools: dict[str, list[tuple[Mesh, ...]]] = {}

    def pooled(self, name: str, size: int, make: Callable[[], tuple[Mesh, ...]]) -> tuple[Mesh, ...]:
        """One of up to `size` variants of something (its meshes, one for each phase), made when first drawn."""
        pool, chosen = self._pools.setdefault(name, []), int(self.rng.integers(size))
        while len(pool) <= chosen:
            pool.append(make())
        return pool[chosen]

    def ground_pose(self, xy: Matrix, yaw: float, height: float = 0.0) -> Matrix:
        """Upright on the land at [2]."""
        return rigid(rotation_about_z(yaw), (*xy, float(self.land.height(xy)) + height))

    def put(self, mesh: Mesh, course: Course, s: float, left: float, yaw: float = 0.0, height: float = 0.0) -> None:
        """Something without a box; yaw relative to the road."""
        pose = self.ground_pose(course(s, left), float(course.heading(s)) + yaw, height)
        self.still.append(mesh.moved(pose[:3, :3], pose[:3, 3]))

    def place(
        self, mesh: Mesh, label: str, course: Course, s: float, left: float, yaw: float = 0.0, height: float = 0.0
    ) -> None:
        """A thing that stands still."""
        pose = self.ground_pose(course(s, left), float(course.heading(s)) + yaw, height)
        instance, number = len(self.things) + 1, CLASSES.index(label)
        owned = mesh.owned(instance, number)
        self.still.append(owned.moved(pose[:3, :3], pose[:3, 3]))
        self.things.append(Thing(instance, number, (owned,), lambda time: pose, lambda time: 0.0, still=True))

    def send(
        self, phases: Sequence[Mesh], label: str, path: Path, offset: float, motion: Motion, height: float = 0.0
    ) -> None:
        """A thing that moves along a path, `offset` metres from its beginning at time 0."""
        instance, number = len(self.things) + 1, CLASSES.index(label)

        def walked(time: float) -> float:
            return offset + motion(time)

        def pose(time: float) -> Matrix:
            distance = walked(time)
            return self.ground_pose(path.position(distance), path.heading(distance), height)

        owned = tuple(mesh.owned(instance, number) for mesh in phases)
        self.things.append(Thing(instance, number, owned, pose, walked, still=False))

    def drive(self, path: Path, motion: Motion, offset: float = 0.0) -> Callable[[float], Matrix]:
        """The pose of the vehicle itself: along a path, tilted as the land is, nodding a little when it brakes."""

        def pose(time: float) -> Matrix:
            distance = offset + motion(time)
            xy, yaw = path.position(distance), path.heading(distance)
            ahead, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
            slope = self.land.slope(xy)
            braking = (2 * motion(time) - motion(time - 0.2) - motion(time + 0.2)) / 0.04  # m/s^2
            pitch = -np.arctan(slope @ ahead) + np.radians(0.3) * np.clip(braking, -4, 4)
            roll = np.arctan(slope @ left)
            cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
            tilt = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]]) @ np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
            return rigid(rotation_about_z(yaw) @ tilt, (*xy, float(self.land.height(xy))))

        return pose

    def scene(self, pose: Callable[[float], Matrix], weather: Weather) -> Scene:
        """The finished scene."""
        return Scene(Tracer(merge(self.still)), tuple(self.things), self.palette.table(), weather, pose)
