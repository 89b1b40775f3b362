"""A car park: rows of bays in front of a supermarket. The vehicle goes slowly down one aisle and up the next.

Widths, distances and speeds are our choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic import buildings, furniture, plants
from clever3d.datasets.synthetic.ground import KERB, Course
from clever3d.datasets.synthetic.materials import Material
from clever3d.datasets.synthetic.mesh import Mesh, box, merge
from clever3d.datasets.synthetic.roadside import backdrop, column, groves, machine, plant, someone, vehicle
from clever3d.datasets.synthetic.scene import Builder
from clever3d.datasets.synthetic.traffic import MARGIN, Motion, Path, arc, swinging
from clever3d.datasets.synthetic.truth import CLASSES

_AISLE, _BAY, _ROWS, _BAY_WIDTH = 6.0, 5.0, 4, 2.5  # m: widths of an aisle and a bay, their number, a bay's length
_PITCH = 2 * _BAY + _AISLE  # from one aisle's middle to the next; the vehicle begins on the one at l = 0
_LEFT = (-1.5 * _PITCH - 4, (_ROWS - 1.5) * _PITCH + 4)  # l from one edge of the paved ground to the other


def car_park(b: Builder) -> Callable[[float], Matrix]:
    """Builds the car park; the way of the vehicle."""
    rng, course, length = b.rng, Course.straight((0.0, 0.0), 0.0), float(b.rng.uniform(60, 76))
    ends = (-14.0, length + 12)
    _pave(b, course, ends)
    trees, lamp = groves(b, 3, 0.0, (4.5, 7.5), 0.7), furniture.street_light(b.palette, 7.0, 1.3)
    for row in range(_ROWS):
        middle = (row - 1) * _PITCH
        for sign in (1, -1):
            _bays(b, course, middle + sign * _AISLE / 2, sign, length, float(rng.uniform(0.45, 0.85)))
        b.still.append(b.paver.dashes(course, (4, length - 6), middle, 1.5, 3.0, 0.12))
        edge = middle + _AISLE / 2 + _BAY
        for at in np.arange(6.0, length, 24.0):
            b.put(lamp, course, float(at), edge)
            if rng.random() < 0.6:
                b.put(_island(b), course, float(at) + 10, edge)
                plant(b, trees, course, float(at) + 10, edge, (0.7, 1.0))
    _around(b, course, ends, trees)
    _traffic(b, course, length)
    # Down the aisle at l = 0, round to the left, back on the next.
    ahead = course(np.arange(-60.0, length - 1.0, 1.0), -1.4)
    first = arc(ahead[-1], 0.0, np.pi / 2, 6.0)
    across = first[-1] + np.array([[0.0, _PITCH - 12.0 + 2.8]])
    second = arc(across[0], np.pi / 2, np.pi / 2, 6.0)
    mine = Path.through(np.concatenate([ahead, first, across, second, second[-1:] - [120.0, 0.0]]))
    motion = Motion.of(swinging(rng, float(rng.uniform(3.0, 4.2)), 0.3), b.duration)
    return b.drive(mine, motion, 60.0 + float(rng.uniform(0, 10)))


def _pave(b: Builder, course: Course, ends: tuple[float, float]) -> None:
    """The paved ground, a pavement round it and in front of the shop, lawns and fields."""

    def cuts(low: float, high: float) -> Matrix:
        inside = np.arange(low + 3, high - 1, 3.0)
        rim = np.array([0.0, 2.2, 12.0, 30.0, 120.0])
        return np.concatenate([low - rim[::-1], inside, high + rim])

    s_lines, l_lines = cuts(*ends), cuts(*_LEFT)
    s, left = (s_lines[:-1, None] + s_lines[1:, None]) / 2, (l_lines[None, :-1] + l_lines[None, 1:]) / 2
    outside = np.maximum(np.maximum(ends[0] - s, s - ends[1]), np.maximum(_LEFT[0] - left, left - _LEFT[1]))
    kinds = np.full(outside.shape, "field", dtype="<U8")
    for reach, kind in ((30.0, "lawn"), (2.2, "sidewalk"), (0.0, "bays")):
        kinds[outside < reach] = kind
    kinds[(s > ends[1]) & (left > _LEFT[0]) & (left < _LEFT[1])] = "sidewalk"
    b.still.append(b.paver.lay(course, s_lines, l_lines, kinds))


def _bays(b: Builder, course: Course, edge: float, sign: int, length: float, share: float) -> None:
    """One row of bays from l = `edge` away from its aisle: lines and parked vehicles."""
    for s in np.arange(0.0, length, _BAY_WIDTH):
        b.still.append(b.paver.paint(course, (s - 0.05, s + 0.05), (edge, edge + sign * _BAY)))
        if b.rng.random() < share:
            mesh, label, vehicle_length = vehicle(b, {"car": 0.88, "van": 0.12})
            if vehicle_length > _BAY + 0.1:
                continue
            yaw = sign * np.pi / 2 + (np.pi if b.rng.random() < 0.35 else 0.0) + float(b.rng.normal(0, 0.025))
            at = float(s) + _BAY_WIDTH / 2 + float(b.rng.normal(0, 0.07))
            b.place(mesh, label, course, at, edge + sign * (_BAY / 2 - 0.05 + float(b.rng.normal(0, 0.05))), yaw)


def _island(b: Builder) -> Mesh:
    kerb = b.palette(Material((0.42, 0.41, 0.39), 0.36, "concrete", 2.0))
    soil = b.palette(Material((0.12, 0.09, 0.06), 0.3, "soil", 1.0))
    label = CLASSES.index("terrain")
    return merge(
        [
            box((1.6, 1.6, 0.3), (0, 0, 0.0), kerb, CLASSES.index("sidewalk")),
            box((1.3, 1.3, 0.3), (0, 0, 0.02), soil, label),
        ]
    )


def _around(b: Builder, course: Course, s: tuple[float, float], trees: list[Mesh]) -> None:
    """The supermarket at the far end, fences, hedges and houses on the other sides."""
    rng, left, middle = b.rng, _LEFT, (_LEFT[0] + _LEFT[1]) / 2
    hall = buildings.hall(rng, b.palette, left[1] - left[0] - 4, 30, float(rng.uniform(6, 8)))
    b.put(hall, course, s[1] + 9, middle, -np.pi / 2, KERB)
    for y in np.arange(left[0] + 3, left[1] - 3, 9.0):
        b.put(furniture.bollard(b.palette), course, s[1] + 1.0, float(y), 0.0, KERB)
        if rng.random() < 0.4:
            b.put(furniture.bench(b.palette), course, s[1] + 4, float(y), 0.0, KERB)
    for y in (left[0] - 2.6, left[1] + 2.6):
        for x in np.arange(s[0], s[1], 5.0):
            if rng.random() < 0.5:
                b.put(plants.hedge(rng, b.palette, 5.0, 1.3), course, float(x) + 2.5, y, 0.0, 0.05)
            else:
                b.put(buildings.fence(rng, b.palette, 5.0), course, float(x), y, 0.0, 0.05)
        for x in np.arange(s[0], s[1], 11.0):
            plant(b, trees, course, float(x), y + np.sign(y - middle) * 4, (0.9, 1.4))
        x = s[0] - 20
        while x < s[1] + 10:
            width = float(rng.uniform(12, 20))
            house = buildings.house(rng, b.palette, width, 11, int(rng.integers(2, 5)), False)
            b.put(house, course, x + width / 2, y + np.sign(y - middle) * 14, 0.0 if y > middle else np.pi, KERB)
            x += width + float(rng.uniform(1, 9))
    for y in np.arange(left[0], left[1], 4.0):
        if abs(y) > 6:
            b.put(furniture.bollard(b.palette), course, s[0] - 1.0, float(y), 0.0, KERB)
    for k, y in enumerate(np.arange(left[0], left[1], 14.0)):
        plant(b, trees, course, s[0] - 7 - 3 * (k % 2), float(y), (0.9, 1.5))
        house = buildings.house(rng, b.palette, 13, 11, int(rng.integers(2, 5)), False)
        b.put(house, course, s[0] - 24, float(y) + 7, np.pi / 2, KERB)
    b.put(furniture.sign(b.palette, "parking", 2.0, 0.8), course, s[0] - 0.8, -5.0, 0.0, KERB)
    work = float(rng.uniform(10, 40))
    for k in range(4):
        cone = furniture.cone(b.palette)
        b.place(cone, "traffic_cone", course, work + 2.2 * k, -float(rng.uniform(2.55, 2.65)))
    b.put(furniture.work_barrier(b.palette), course, work + 9, -3.9, 0.3)
    backdrop(b, (40.0, middle), 150.0, True)


def _traffic(b: Builder, course: Course, length: float) -> None:
    """A car in another aisle, and people on their way between the cars and the door."""
    rng, count = b.rng, 14
    other = Path.through(course(np.arange(-60.0, length + 8, 2.0), -_PITCH - 1.4))
    column(b, other, Motion.steady(2.5), 62, 66, (20, 30), {"car": 1.0})
    for k in range(count):
        # One pace, one way and one edge in each aisle: away from the lanes that are driven on.
        row = k % _ROWS
        aisle, side, way = (row - 1) * _PITCH, (2.2, 2.2, -2.2, 2.2)[row], (1, -1, 1, -1)[row]
        line, pace = course(np.array([-10.0, length + 12])[::way], aisle + side), 1.1 + 0.1 * row
        place = (k + 0.5) / count * (length + 22 - pace * (b.duration + MARGIN))
        b.send(someone(b, True), "person", Path.through(line), place, Motion.steady(pace))
    for _ in range(8):
        at, left, yaw = (float(rng.uniform(*span)) for span in ((length + 14, length + 19), (6, 30), (0, 2 * np.pi)))
        b.place(someone(b, False)[0], "person", course, at, left, yaw, KERB)
    for k in range(4):
        b.place(machine(b, "bicycle"), "bicycle", course, length + 17.5, 2.0 + 0.7 * k, 0.0, KERB)
