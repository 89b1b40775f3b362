"""A motorway: two carriageways of two or three lanes, barriers, gantries, sometimes noise walls and a bridge.

Widths, distances and speeds are our choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic import furniture, plants
from clever3d.datasets.synthetic.ground import KERB, Course
from clever3d.datasets.synthetic.materials import Material
from clever3d.datasets.synthetic.mesh import box, merge
from clever3d.datasets.synthetic.roadside import backdrop, column, groves, lane, plant, riders
from clever3d.datasets.synthetic.scene import Builder
from clever3d.datasets.synthetic.traffic import Motion, swinging
from clever3d.datasets.synthetic.truth import CLASSES

_WALL, _OTHER = CLASSES.index("wall"), CLASSES.index("other")


def motorway(b: Builder) -> Callable[[float], Matrix]:
    """Builds the motorway; the way of the vehicle."""
    rng = b.rng
    begin, end, lane_width = -190.0, 830.0, 3.6
    lanes = int(rng.integers(2, 4))
    bend, wavelength, phase = (float(rng.uniform(*span)) for span in ((-0.16, 0.16), (700, 1100), (0, 2 * np.pi)))
    course = Course.bending(begin - 20, end + 20, bend, wavelength, phase)
    median, inner = 1.6, 2.2  # l of the carriageway's inner edge and of the first lane's line
    outer, edge = inner + lanes * lane_width, inner + lanes * lane_width + 2.6
    seams = [inner + k * lane_width for k in range(1, lanes + 1)]
    cuts = [0.0, median, *seams, edge, edge + 1.4, edge + 5, edge + 12, edge + 24, 70.0, 120.0]
    names = ["shoulder", *["road"] * lanes, "shoulder", "verge", "lawn", "lawn", "field", "field", "field"]
    l_lines, l_kinds = [-x for x in cuts[:0:-1]] + cuts, names[::-1] + names
    s_lines = np.arange(begin, end + 1, 4.0)
    kinds = np.tile(np.array(l_kinds, dtype="<U8"), (len(s_lines) - 1, 1))
    b.still.append(b.paver.lay(course, s_lines, l_lines, kinds))
    for sign in (1, -1):
        for left in (inner, outer):
            b.still.append(b.paver.paint(course, (begin, end), (sign * (left - 0.08), sign * (left + 0.08))))
        for k in range(1, lanes):
            b.still.append(b.paver.dashes(course, (begin, end), sign * (inner + k * lane_width), 4.0, 8.0, 0.15))
    _rails(b, course, begin, end, edge)
    _beside(b, course, begin, end, edge)
    mine = lane(course, -(inner + lane_width * (lanes - 0.5)), -150.0, end)
    speeds = [float(rng.uniform(16, 19)) + 3.0 * (lanes - 1 - k) for k in range(lanes)]
    mixes = [{"car": 0.9, "van": 0.1}] * (lanes - 1) + [{"car": 0.5, "van": 0.15, "truck": 0.31, "bus": 0.04}]
    motion = Motion.steady(0)
    for sign in (1, -1):
        for k in range(lanes):
            left = sign * (inner + lane_width * (k + 0.5))
            path = lane(course, left, begin, end) if sign < 0 else lane(course, left, end, begin)
            moves = Motion.of(swinging(rng, speeds[k], 0.08), b.duration)
            if sign < 0 and k == lanes - 1:
                motion = moves
                column(b, mine, motion, 150 + float(rng.uniform(18, 30)), 560, (20, 60), mixes[k])
                column(b, mine, motion, 0, 150 - 24, (20, 50), mixes[k])
            else:
                column(b, path, moves, 0 if sign < 0 else 200, 760 if sign < 0 else 1000, (18, 60), mixes[k])
    # Between the lanes nobody rides; one motorcycle goes far ahead of the column on the first lane.
    riders(b, lane(course, -(inner + lane_width / 2), begin, end), [780.0], Motion.steady(speeds[0]), "motorcyclist")
    return b.drive(mine, motion, 150.0)


def _rails(b: Builder, course: Course, begin: float, end: float, edge: float) -> None:
    """The barrier in the middle and the rails on both sides, in pieces that follow the bend."""
    make = furniture.concrete_barrier if b.rng.random() < 0.5 else furniture.guard_rail
    middle = make(b.palette, 6.03)
    rail = furniture.guard_rail(b.palette, 6.03)
    for s in np.arange(begin, end, 6.0):
        b.put(middle, course, float(s), 0.0)
        for sign in (1, -1):
            b.put(rail, course, float(s), sign * (edge + 0.5), 0.0, KERB - 0.02)


def _beside(b: Builder, course: Course, begin: float, end: float, edge: float) -> None:
    """Gantries, signs, lamps, noise walls, a bridge, woods and fields."""
    rng = b.rng
    for s in np.arange(float(rng.uniform(20, 90)), end, 260):
        b.put(furniture.gantry(b.palette, edge + 1.2), course, float(s), -edge - 1.0, 0.0)
        b.put(furniture.gantry(b.palette, edge + 1.2), course, float(s) + 60, edge + 1.0, np.pi)
    for s in np.arange(begin + 30, end, 90.0):
        kind = str(rng.choice(["limit", "warning", "arrow"]))
        b.put(furniture.sign(b.palette, kind, 2.0, 0.95), course, float(s), -edge - 1.2, 0.0, KERB)
        b.put(furniture.sign(b.palette, kind, 2.0, 0.95), course, float(s) + 40, edge + 1.2, np.pi, KERB)
    if rng.random() < 0.5:
        lamp = furniture.street_light(b.palette, 10.5, 2.4)
        for s in np.arange(begin, end, 42.0):
            b.put(lamp, course, float(s), -edge - 1.1, np.pi / 2, KERB)
    bollard = furniture.bollard(b.palette)
    for s in np.arange(begin, end, 25.0):
        for sign in (1, -1):
            b.put(bollard, course, float(s), sign * (edge + 0.9), 0.0, KERB - 0.02)
    walled = [sign for sign in (1, -1) if rng.random() < 0.4]
    for sign in walled:
        _noise_wall(b, course, float(rng.uniform(-60, 100)), float(rng.uniform(260, 520)), sign * (edge + 4.2))
    if rng.random() < 0.6:
        _bridge(b, course, float(rng.uniform(90, 330)), edge)
    woods = groves(b, 5, 0.5, (8, 15), 1.5)
    for _ in range(230):
        sign = 1 if rng.random() < 0.5 else -1
        away = edge + 11 + float(rng.exponential(22)) + 6 * (sign in walled)
        plant(b, woods, course, float(rng.uniform(begin, end)), sign * away)
    shrubs = [plants.bush(rng, b.palette, float(rng.uniform(0.8, 2.0))) for _ in range(4)]
    for _ in range(260):
        sign = 1 if rng.random() < 0.5 else -1
        bush, away = shrubs[int(rng.integers(4))], edge + float(rng.uniform(5.5, 11))
        b.put(bush, course, float(rng.uniform(begin, end)), sign * away, float(rng.uniform(0, 6)), 0.05)
    backdrop(b, (300.0, 0.0), 560.0, False)


def _noise_wall(b: Builder, course: Course, begin: float, end: float, left: float) -> None:
    color = float(b.rng.uniform(0.2, 0.4))
    panel = b.palette(Material((color, color * 0.95, color * 0.8), 0.35, "planks", 1.5, patches=0.8))
    post = b.palette(furniture.STEEL)
    piece = merge(
        [box((4.0, 0.16, 4.2), (2.0, 0, 1.9), panel, _WALL), box((0.22, 0.26, 4.4), (0, 0, 2.0), post, _WALL)]
    )
    for s in np.arange(begin, end, 4.0):
        b.put(piece, course, float(s), left, 0.0)


def _bridge(b: Builder, course: Course, s: float, edge: float) -> None:
    """A road bridge over the motorway."""
    concrete = b.palette(Material((0.4, 0.39, 0.37), 0.37, "concrete", 4.0, patches=1.0))
    rail = b.palette(furniture.STEEL)
    span = 2 * edge + 14
    parts = [box((9.0, span, 1.3), (0, 0, 6.3), concrete, _OTHER), box((1.0, 1.6, 6.0), (0, 0, 2.9), concrete, _OTHER)]
    for sign in (-1, 1):
        parts.append(box((8.0, 1.4, 6.6), (0, sign * (edge + 5.2), 2.9), concrete, _OTHER))
        parts.append(box((0.1, span, 0.08), (sign * 4.4, 0, 7.95), rail, _OTHER))
        parts += [
            box((0.06, 0.06, 1.0), (sign * 4.4, float(y), 7.45), rail, _OTHER)
            for y in np.arange(-span / 2, span / 2, 1.5)
        ]
    b.put(merge(parts), course, s, 0.0)
