"""Two streets of four lanes that cross at lights. The vehicle's street has green, the other waits, people cross there.

Widths, distances and speeds are our choice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic import furniture
from clever3d.datasets.synthetic.ground import KERB, Course
from clever3d.datasets.synthetic.mesh import Mesh
from clever3d.datasets.synthetic.roadside import (
    Side,
    backdrop,
    column,
    furnish,
    groves,
    lane,
    patches,
    riders,
    someone,
    terrace,
    walkers,
)
from clever3d.datasets.synthetic.scene import Builder
from clever3d.datasets.synthetic.traffic import Motion, Path, arc, swinging

_LANE = 3.3  # m
_HALF = 2 * _LANE  # from the middle to the kerb: two lanes each way
_ARM = 170.0  # m: how far the houses go
_MIX = {"car": 0.78, "van": 0.12, "truck": 0.05, "bus": 0.05}


@dataclass(frozen=True)
class _Plan:
    """at: x of the crossing's middle. radius: of the kerb at corners. inner: from a street's middle to its houses."""

    at: float
    radius: float
    inner: float


def crossing(b: Builder) -> Callable[[float], Matrix]:
    """Builds the crossing; the way of the vehicle."""
    rng = b.rng
    radius = float(rng.uniform(4.5, 6.5))
    plan = _Plan(float(rng.uniform(45, 62)), radius, _HALF + radius + float(rng.uniform(3.2, 4.2)))
    main, cross = Course.straight((0.0, 0.0), 0.0), Course.straight((plan.at, 0.0), np.pi / 2)
    _pave(b, plan)
    _mark(b, main, plan.at, radius)
    _mark(b, cross, 0.0, radius)
    patches(b, main, (-100, 200), _HALF)
    trees, urban, right = groves(b, 3, 0.0, (6.5, 9.5), 0.75), rng.random() < 0.65, rng.random() < 0.35
    for course, middle in ((main, plan.at), (cross, 0.0)):
        for sign in (1, -1):
            for way in (1, -1):
                _line_arm(b, course, middle, sign, way, plan, trees, urban)
    _lights(b, main, plan.at, radius, "green")
    _lights(b, cross, 0.0, radius, "red")
    backdrop(b, (plan.at, 0.0), 215.0, urban)
    _wait(b, cross, _HALF + radius + 4.6)
    # Where the vehicle turns into the other street nobody is on the stripes of that arm.
    _cross_on_foot(b, cross, radius, (1,) if right else (1, -1))
    return _cross_over(b, main, plan, right)


def _pave(b: Builder, plan: _Plan) -> None:
    """Roads, pavements with rounded corners, and the ground of the four blocks."""
    here = Course.straight((plan.at, 0.0), 0.0)
    edge = [_LANE, _HALF, _HALF + 0.15, _HALF + plan.radius, plan.inner - 1.0, plan.inner]
    far = np.concatenate([np.arange(plan.inner + 3, 120, 2.6), np.arange(120, 290, 10)])
    half = np.array([*edge, *far])
    lines = np.concatenate([-half[::-1], [0.0], half])
    middle = np.abs(lines[:-1] + lines[1:]) / 2
    x, y = middle[:, None], middle[None, :]
    nearest = np.minimum(x, y)  # to either street's middle
    kinds = np.where(nearest < plan.inner, "sidewalk", np.where(nearest > 60, "field", "lawn")).astype("<U8")
    kinds[nearest < _HALF + 0.15] = "kerb"
    corner = (np.maximum(x, y) < _HALF + plan.radius) & (nearest > _HALF)
    kinds[(nearest < _HALF) | corner] = "road"
    b.still.append(b.paver.lay(here, lines, lines, kinds))
    for quadrant, (i, j) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        # The block's corner is cut round: a quarter disc whose rim looks at the middle of the crossing.
        center = (i * (_HALF + plan.radius), j * (_HALF + plan.radius))
        b.still.append(b.paver.round_corner(here, center, plan.radius, (quadrant + 2) % 4, "sidewalk"))


def _mark(b: Builder, course: Course, at: float, radius: float) -> None:
    """Zebra stripes, stop lines and lanes of one street at a crossing."""
    for sign in (1, -1):
        stripes, line = at + sign * (_HALF + radius * 0.55), at + sign * (_HALF + radius + 3.2)
        for left in np.arange(-_HALF + 0.35, _HALF - 0.4, 1.0):
            b.still.append(b.paver.paint(course, (stripes, stripes + sign * 3.2), (left, left + 0.5)))
        incoming = (0.1, _HALF - 0.1) if sign > 0 else (-_HALF + 0.1, -0.1)
        b.still.append(b.paver.paint(course, (line, line + sign * 0.45), incoming))
        span = (line, line + 120) if sign > 0 else (line - 120, line)
        for left in (-_LANE, _LANE):
            b.still.append(b.paver.dashes(course, span, left, 3.0, 3.0, 0.12))
        for left in (-0.2, 0.08):
            b.still.append(b.paver.paint(course, span, (left, left + 0.12)))


def _line_arm(
    b: Builder, course: Course, middle: float, sign: int, way: int, plan: _Plan, trees: list[Mesh], urban: bool
) -> None:
    """One side of one arm: houses, furniture, people. The houses of the other street begin behind the corner ones."""
    main = middle == plan.at
    first = plan.inner + (0.0 if main else 14.0)

    def side(near: float, far: float, houses: float) -> Side:
        begin, end = sorted((middle + way * near, middle + way * far))
        return Side(course, sign, begin, end, _HALF, (_HALF + 1.8, plan.inner), houses)

    fronts = side(first, _ARM, plan.inner + (0.2 if main or urban else 3.0))
    terrace(b, fronts, (3, 6) if urban else (1, 3), 0.2 if urban else 0.9, 0.6 if urban else 0.1)
    near = side(plan.inner, _ARM - 60, plan.inner)
    furnish(b, near, trees, tree_gap=(10, 18))
    walkers(b, near, 9)


def _lights(b: Builder, course: Course, at: float, radius: float, state: str) -> None:
    """Signals at the stop lines of both directions of a street."""
    signal = furniture.traffic_light(b.palette, state, arm=4.5)
    for sign in (1, -1):
        turned = np.pi if sign > 0 else 0.0
        b.put(signal, course, at + sign * (_HALF + radius + 2.6), sign * (_HALF + 0.7), turned, KERB)


def _wait(b: Builder, cross: Course, stop: float) -> None:
    """Vehicles at the red lights of the other street."""
    for sign in (1, -1):
        for left in (_LANE / 2, _LANE * 1.5):
            path = lane(cross, sign * left, sign * 150, sign * stop)
            last = float(path.distance[-1])
            column(b, path, Motion.steady(0.0), last - float(b.rng.uniform(18, 45)), last - 0.5, (1.5, 3.0), _MIX)


def _cross_on_foot(b: Builder, cross: Course, radius: float, arms: tuple[int, ...]) -> None:
    """People on the stripes of the street that waits."""
    for arm in arms:
        for k in range(5):
            s, way = arm * (_HALF + radius * 0.55 + 1.6) + (k - 2) * 0.6, 1 if k % 2 else -1
            across = Path.through(cross(np.full(2, s), np.array([-_HALF - 1.5, _HALF + 1.5 + 0.4 * k]) * way))
            start, pace = float(b.rng.uniform(0, 8)), float(b.rng.uniform(1.0, 1.5))
            room = float(across.distance[-1]) - start
            stops = Motion.of(functools.partial(_until, room, pace), b.duration)
            b.send(someone(b, True), "person", across, start, stops)


def _until(room: float, pace: float, walked: float, _: float) -> float:
    """The pace of someone who stops after `room` metres."""
    return pace * float(np.clip((room - walked) / 0.3, 0, 1))


def _cross_over(b: Builder, main: Course, plan: _Plan, right: bool) -> Callable[[float], Matrix]:
    """The vehicle's own way, straight over or to the right, and the traffic that has green."""
    rng, outer, cruise = b.rng, -_LANE * 1.5, float(b.rng.uniform(7.5, 10.5))
    bend_at = np.inf
    points = main(np.arange(-100.0, 400.0, 2.0), outer)
    if right:
        turn = plan.radius + _LANE / 2
        bend_at = plan.at + outer - turn
        bend = arc(np.array([bend_at, outer]), 0.0, -np.pi / 2, turn)
        points = np.concatenate([main(np.arange(-100.0, bend_at, 1.0), outer), bend, [bend[-1] + [0.0, -300.0]]])

    def speed(driven: float, _: float) -> float:
        # Slows down before the bend and takes speed again behind it.
        return cruise * min(1.0, max(0.42, abs(driven - bend_at - 5) / 26))

    mine, motion = Path.through(points), Motion.of(speed, b.duration)
    column(b, mine, motion, 100 + float(rng.uniform(16, 24)), 290, (14, 40), {"car": 0.8, "van": 0.12, "bus": 0.08})
    column(b, mine, motion, 20, 84, (14, 30), {"car": 1.0})
    for left, ahead in ((-_LANE / 2, True), (_LANE / 2, False)):
        path = lane(main, left, *((-130.0, 420.0) if ahead else (420.0, -130.0)))
        moves = Motion.of(swinging(rng, float(rng.uniform(8, 12)), 0.12), b.duration)
        column(b, path, moves, 0, 520, (14, 60), _MIX)
    # The outer of the oncoming lanes belongs to those who ride, all at the pace of a bicycle.
    places = rng.choice(np.arange(100, 480, 8.0), 12, replace=False)
    riders(b, lane(main, _LANE * 1.5, 420, -130), sorted(places.tolist()), Motion.steady(5.0), "bicyclist")
    return b.drive(mine, motion, 100.0)
